"""Every question the extractive teacher may be chosen on, and the corpora they are asked of.

Belongs here: reading them, and who is out of scope where. Does not belong here: the golden set and
the suites, which measure what was chosen.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bench.question_sets import CORPORA, ROOT, chunk_folder, read_beir
from orchestration.config import load_config
from serving.models.protocols import Embedder
from serving.pipeline.chunking import chunk_page, parse_page
from serving.pipeline.indexing import IndexedChunk

OWN, TENSORZERO, ANTHROPIC = "understudy-docs", "tensorzero-docs", "anthropic-docs-qa"
WRITTEN = ROOT / "data" / "development" / "questions.jsonl"

Bucket = Literal["answerable", "boundary", "out_of_scope", "near"]
"""`near`: the question of one product asked of another's docs about the same trade; shown, and
neither promised to be answered nor to be refused."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Chunks, and by chunk id the document that judgements name."""

    chunks: list[IndexedChunk]
    documents: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question of a set, and the corpus it is asked of."""

    set: str
    corpus: str
    bucket: Bucket
    text: str
    must_include: tuple[str, ...] = ()
    gold: frozenset[str] = frozenset()

    @property
    def is_answerable(self) -> bool:
        """True where the corpus holds the answer."""
        return self.bucket == "answerable"

    @property
    def is_written(self) -> bool:
        """True for the set that was written for this purpose."""
        return self.set.startswith("written")


def load_corpora(embedder: Embedder) -> dict[str, Corpus]:
    """Return every corpus that is here, cut as the product cuts pages."""
    corpora = {}
    for name, folder in ((OWN, ROOT / "docs"), (TENSORZERO, CORPORA / TENSORZERO)):
        if folder.is_dir():
            chunks = chunk_folder(folder, embedder)
            pages = {chunk.chunk_id: chunk.page for chunk in chunks}
            corpora[name] = Corpus(chunks=chunks, documents=pages)
    if (folder := CORPORA / ANTHROPIC).is_dir():
        corpora[ANTHROPIC] = _cut_sections(folder, embedder)
    return corpora


def _cut_sections(folder: Path, embedder: Embedder) -> Corpus:
    """Cut the documents of a BEIR folder, each a section with a title, into chunks."""
    sizes = load_config().chunking
    chunks, documents = [], {}
    lines = (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines):
        slug = re.sub(r"[^a-z0-9/-]", "-", row["_id"].partition("//")[2].lower())
        page = parse_page(f"{slug}.md", row["text"], url_template="/{slug}/")
        for chunk in chunk_page(
            page,
            target_tokens=sizes.target_tokens,
            maximum_tokens=sizes.maximum_tokens,
            count_tokens=embedder.count_tokens,
        ):
            documents[chunk.chunk_id] = row["_id"]
            chunks.append(
                IndexedChunk(
                    chunk_id=chunk.chunk_id,
                    content_hash=chunk.content_hash,
                    title=row["title"],
                    url=chunk.url,
                    heading_path=(row["title"],),
                    text=chunk.text,
                )
            )
    return Corpus(chunks=chunks, documents=documents)


def load_questions(
    corpus: str, corpora: Mapping[str, Corpus], *, limit: int | None = None
) -> Iterator[Asked]:
    """Yield what is asked of one corpus: its own questions, then those of the other corpora.

    Questions about this product are out of scope of the two others. The reverse are `near`: pages
    about gateways and models share their trade with these docs, which answer some of them.
    """
    for questions in own_sets(corpus):
        yield from questions[:limit]
    for other in corpora:
        if other == corpus or OWN not in (corpus, other):
            continue
        bucket: Bucket = "out_of_scope" if other == OWN else "near"
        for questions in own_sets(other):
            foreign = [q for q in questions if q.is_answerable and not q.is_written]
            for asked in foreign[:limit]:
                yield replace(
                    asked,
                    set=f"{asked.set} elsewhere",
                    corpus=corpus,
                    bucket=bucket,
                    gold=frozenset(),
                )


def own_sets(corpus: str) -> Iterator[Sequence[Asked]]:
    """Yield the sets written for one corpus, each of one bucket."""
    if corpus == ANTHROPIC:
        yield _read_judged(CORPORA / ANTHROPIC, "anthropic", corpus, least=1)
        return
    rows = [json.loads(line) for line in WRITTEN.read_text(encoding="utf-8").splitlines()]
    written = [
        Asked(
            set=f"written, {corpus}",
            corpus=corpus,
            bucket=row["bucket"],
            text=row["question"],
            must_include=tuple(row["must_include"]),
            gold=frozenset(row["gold_pages"]),
        )
        for row in rows
        if row["corpus"] == corpus
    ]
    for bucket in ("answerable", "boundary", "out_of_scope"):
        yield [asked for asked in written if asked.bucket == bucket]
    folder = ROOT / "data" / "retrieval"
    if corpus == TENSORZERO:
        yield _read_judged(folder / "tensorzero-docs", "users", corpus)
        yield _read_judged(folder / "tensorzero-docs-formal", "formal", corpus)
        return
    judged = {asked.text: asked.gold for asked in _read_judged(folder / OWN, "seeds", corpus)}
    lines = (ROOT / "data" / "seed_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    seeds = [
        Asked(
            set="seeds",
            corpus=corpus,
            bucket="out_of_scope" if "out_of_scope" in row["tags"] else "answerable",
            text=row["text"],
            gold=judged.get(row["text"], frozenset()),
        )
        for row in map(json.loads, lines)
    ]
    yield [asked for asked in seeds if asked.is_answerable]
    yield [asked for asked in seeds if not asked.is_answerable]


def _read_judged(folder: Path, name: str, corpus: str, *, least: int = 2) -> Sequence[Asked]:
    questions, judgements = read_beir(folder)
    return [
        Asked(
            set=name,
            corpus=corpus,
            bucket="answerable",
            text=text,
            gold=frozenset(d for d, grade in judgements[key].items() if grade >= least),
        )
        for key, text in questions.items()
    ]
