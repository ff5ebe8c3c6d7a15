"""Sets of questions with judgements: this repo's own, and any folder in BEIR's layout.

Belongs here: reading them and the chunks they ask about, and the embedder that both are embedded
by. Does not belong here: searching, scores.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestration.config import load_config
from resources.embeddings import CachedEmbedder
from serving.models.embedder import load_embedder
from serving.models.protocols import Embedder
from serving.pipeline.chunking import chunk_page, parse_page
from serving.pipeline.indexing import IndexedChunk

ROOT = Path(__file__).resolve().parents[1]
CORPORA = ROOT.parent / "shared" / "corpora"

Judgements = dict[str, dict[str, int]]


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """Chunks, questions by id and what answers them: documents by grade, question by question.

    `documents` says of each chunk which document is found with it.
    """

    name: str
    chunks: list[IndexedChunk]
    documents: list[str]
    questions: dict[str, str]
    judgements: Judgements


def open_embedders() -> tuple[Embedder, CachedEmbedder]:
    """Return the configured embedder, and the same one with the vectors of documents kept."""
    config = load_config()
    embedder = load_embedder(
        config.embedder.model, config.embedder.revision, config.home / "models"
    )
    return embedder, CachedEmbedder(embedder, config.home / "bench" / "vectors")


def read_beir(folder: Path) -> tuple[dict[str, str], Judgements]:
    """Return questions by id, and grades by question and document, of a folder in BEIR's layout."""
    lines = (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    texts = {row["_id"]: row["text"] for row in map(json.loads, lines)}
    judgements: Judgements = {}
    with (folder / "qrels" / "test.tsv").open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream, delimiter="\t"):
            judgements.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    return {question: texts[question] for question in judgements}, judgements


def load_beir(folder: Path) -> QuestionSet:
    """Return a BEIR folder: every document one chunk.

    A document whose id is a URL with a fragment is a section of the page at that URL; any other is
    a page of its own.
    """
    lines = (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    chunks = [
        IndexedChunk(
            chunk_id=f"docs:{row['_id'].partition('#')[0]}/{position}",
            content_hash=str(position),
            title=row.get("title", ""),
            url=row["_id"],
            heading_path=(row["title"],) if row.get("title") else (),
            text=row["text"],
        )
        for position, row in enumerate(map(json.loads, lines))
    ]
    questions, judgements = read_beir(folder)
    return QuestionSet(
        name=folder.name,
        chunks=chunks,
        documents=[chunk.url for chunk in chunks],
        questions=questions,
        judgements=judgements,
    )


def chunk_folder(folder: Path, embedder: Embedder) -> list[IndexedChunk]:
    """Return the chunks of a folder of pages as the product cuts them, at the default sizes."""
    sizes = load_config().chunking
    pages = [
        parse_page(
            path.relative_to(folder).as_posix(),
            path.read_text(encoding="utf-8"),
            url_template="/{slug}/",
        )
        for path in sorted(folder.rglob("*.mdx"))
    ]
    return [
        IndexedChunk(
            chunk_id=chunk.chunk_id,
            content_hash=chunk.content_hash,
            title=page.title,
            url=chunk.url,
            heading_path=chunk.heading_path,
            text=chunk.text,
        )
        for page in pages
        for chunk in chunk_page(
            page,
            target_tokens=sizes.target_tokens,
            maximum_tokens=sizes.maximum_tokens,
            count_tokens=embedder.count_tokens,
        )
    ]


def load_sets(beir: Sequence[Path], embedder: Embedder) -> list[QuestionSet]:
    """Return every set whose corpus is here."""
    own = chunk_folder(ROOT / "docs", embedder)
    corpora = {"understudy-docs": own}
    if (folder := CORPORA / "tensorzero-docs").is_dir():
        others = chunk_folder(folder, embedder)
        corpora |= {"tensorzero-docs": others, "tensorzero-docs-formal": others}
    sets = []
    for name, chunks in corpora.items():
        questions, judgements = read_beir(ROOT / "data" / "retrieval" / name)
        sets.append(
            QuestionSet(
                name=f"dev {name}",
                chunks=chunks,
                documents=[chunk.page for chunk in chunks],
                questions=questions,
                judgements=judgements,
            )
        )
    lines = (ROOT / "data" / "eval" / "golden_v3.jsonl").read_text(encoding="utf-8").splitlines()
    golden = [case for case in map(json.loads, lines) if case["gold_pages"]]
    sets.append(
        QuestionSet(
            name="golden (by page)",
            chunks=own,
            documents=[chunk.page for chunk in own],
            questions={case["case_id"]: case["question"] for case in golden},
            judgements={case["case_id"]: dict.fromkeys(case["gold_pages"], 1) for case in golden},
        )
    )
    return sets + [load_beir(folder) for folder in beir]
