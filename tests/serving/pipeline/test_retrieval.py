"""Asking an index: what is found, in which order, among what; while others ask and build."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from serving.errors import IndexMismatchError, InvalidInputError
from serving.hashing import content_hash
from serving.models.protocols import ChunkFilter, Retriever, Vectors
from serving.pipeline import indexing
from serving.pipeline.fusion import fuse, read_vectors
from serving.pipeline.indexing import IndexedChunk, build_index, plan_index
from serving.pipeline.retrieval import LanceRetriever
from serving.pipeline.word_search import split_terms

PAGES = {
    "install": ["Install Tern with one command.", "Uninstall removes every file but the backups."],
    "how-to/backups": [
        "Tern takes a backup every 6 hours.",
        "The key backup_interval_hours changes how often.",
        "Run tern restore to bring back the newest copy.",
    ],
    "how-to/sync": [
        "When two machines change one file, the newer change wins.",
        "Café files sync.",
    ],
    "how-tools": ["The tools folder holds scripts."],
}


@dataclass
class LetterEmbedder:
    """Unit vectors from counted letters: some texts are nearer than others, none is like words."""

    dimension: int = 26
    maximum_tokens: int = 24
    fingerprint: str = "letters"
    threads: set[str] = field(default_factory=set)

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.threads.add(threading.current_thread().name)
        counts = [[1e-3 + text.lower().count(chr(97 + n)) for n in range(26)] for text in texts]
        rows = np.array(counts, dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]


def make_chunks(pages: dict[str, list[str]] = PAGES) -> list[IndexedChunk]:
    return [
        IndexedChunk(
            chunk_id=f"docs:{slug}/{number}",
            content_hash=content_hash(text),
            title=slug,
            url=f"/{slug}/",
            heading_path=(slug.title(), f"Part {number}"),
            text=text,
        )
        for slug, texts in pages.items()
        for number, text in enumerate(texts, start=1)
    ]


def index(folder, chunks: Sequence[IndexedChunk], embedder: LetterEmbedder) -> str:
    plan = plan_index(
        chunks, maximum_tokens=embedder.maximum_tokens, count_tokens=embedder.count_tokens
    )
    vectors = embedder.embed(plan.texts)
    return build_index(folder, chunks, plan, vectors, embedder.fingerprint)


async def open_index(folder, pages=PAGES, *, k: int = 3, reranker=None) -> LanceRetriever:
    embedder = LetterEmbedder()
    fingerprint = await asyncio.to_thread(index, folder, make_chunks(pages), embedder)
    return await LanceRetriever.open(
        folder, fingerprint=fingerprint, embedder=embedder, k=k, reranker=reranker
    )


async def find(retriever: Retriever, question: str, **options) -> list[str]:
    return [hit.chunk_id for hit in await retriever.retrieve(question, **options)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("index")


@pytest.mark.parametrize(
    ("question", "chunk_id"),
    [
        ("restoring the newest copies", "docs:how-to/backups/3"),  # stemmed
        ("BACKUP interval", "docs:how-to/backups/2"),  # snake_case is split
        ("cafe", "docs:how-to/sync/2"),  # accents are folded
        ("part 3", "docs:how-to/backups/3"),  # headings are searched
    ],
)
async def test_words_find_their_chunk(folder, question, chunk_id):
    assert chunk_id == (await find(await open_index(folder), question))[0]


async def test_hits_carry_what_an_answer_shows_and_scores_of_0_to_1(folder):
    retriever = await open_index(folder)
    chunks = {chunk.chunk_id: chunk for chunk in make_chunks()}
    question = "How often is a backup taken?"
    hits = await retriever.retrieve(question, k=8)
    assert len(hits) == len(chunks)
    relevances = [hit.relevance for hit in hits]
    assert relevances == sorted(relevances, reverse=True)
    assert all(0 <= hit.relevance <= 1 for hit in hits)
    vector = LetterEmbedder().embed([question])[0]
    for hit in hits:
        chunk = chunks[hit.chunk_id]
        shown = (hit.text, hit.url, hit.heading_path, hit.content_hash)
        assert shown == (chunk.text, chunk.url, chunk.heading_path, chunk.content_hash)
        expected = float(LetterEmbedder().embed([chunk.search_text])[0] @ vector)
        assert hit.score == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("question", ["How often is a backup taken?", "???"])
async def test_candidates_carry_all_that_the_order_of_the_hits_is_made_from(folder, question):
    retriever = await open_index(folder)
    found = await retriever.find_candidates(question)
    _, nearness = read_vectors(found.question, found.windows, found.pages)
    relevance = fuse(nearness, found.bm25, limit=found.bm25_limit)
    ids = [chunk.chunk_id for chunk in make_chunks()]
    hits = await retriever.retrieve(question, k=len(ids))
    assert {hit.chunk_id: hit.relevance for hit in hits} == pytest.approx(
        {ids[chunk]: value for chunk, value in zip(found.chunks, relevance, strict=True)}
    )
    assert (await retriever.find_candidates(question, limit=2)).chunks == found.chunks[:2]


async def test_a_chunk_that_only_words_bring_has_its_true_cosine(folder):
    pages = {"near": ["rent uuuu iiii"] * 100, "far": ["tern tern zzzzzzzzzzzz"]}
    retriever = await open_index(folder, pages)
    texts = {chunk.chunk_id: chunk.search_text for chunk in make_chunks(pages)}
    question, far, near = LetterEmbedder().embed(
        ["tern", texts["docs:far/1"], texts["docs:near/1"]]
    )
    assert question @ far < question @ near  # vectors alone bring 96 of the others before it
    hit = (await retriever.retrieve("tern", k=1))[0]
    assert hit.chunk_id == "docs:far/1"
    assert hit.score == pytest.approx(float(question @ far), abs=1e-5)


async def test_text_past_the_embedders_maximum_is_found_by_its_meaning(folder):
    long = " ".join(["alpha"] * 40 + ["zzzz"] * 15)
    pages = {"long": [long], "short": ["alpha alpha"] * 5}
    retriever = await open_index(folder, pages)
    hits = await retriever.retrieve("zzzzz", k=1)  # no word of any chunk, the letters of one's end
    assert hits[0].chunk_id == "docs:long/1"
    assert hits[0].text == long
    assert hits[0].score > 0.5


async def test_words_that_stand_together_in_a_long_chunk_count_more(folder, tmp_path):
    """Chunks of the same words have one BM25; it is their parts' that differs."""
    other = ["filler"] * 60
    pages = {
        "apart": [" ".join(["kiln", *other, "glaze"])],
        "together": [" ".join(["kiln", "glaze", *other])],
        "short": ["nothing of it"],
    }
    retriever = await open_index(tmp_path, pages)
    for where in (None, ChunkFilter(pages=("apart", "together"))):
        found = await retriever.find_candidates("kiln glaze", where=where)
        apart, together = (found.bm25[found.chunks.index(n)] for n in (0, 1))
        assert 0 < apart < together
    hits = await retriever.retrieve("kiln glaze", where=ChunkFilter(pages=("apart",)))
    assert [hit.chunk_id for hit in hits] == ["docs:apart/1"]
    # Where the embedder reads almost all chunks whole, they are all that is searched.
    assert (await open_index(folder))._words.parts is None
    few = {"long": pages["apart"], "short": ["nothing of it"] * 30}
    assert (await open_index(tmp_path / "few", few))._words.parts is None


async def test_a_long_chunk_leaves_room_for_the_words_of_others(tmp_path):
    """Its parts alone would fill what is asked for twice."""
    pages = {
        "long": [" ".join(["kiln", *["filler"] * 15] * 250)],
        "others": [f"kiln number {n}" for n in range(60)],
        "medium": [" ".join(["filler"] * 60)] * 20,
    }
    retriever = await open_index(tmp_path, pages)
    parts = retriever._words.parts
    assert await parts.count_rows() > 200
    found = await retriever._words.search("kiln", 48, None, terms=["kiln"])
    other = [score for chunk, score in found.items() if chunk != 0]
    assert len(found) == 48
    assert min(other) == pytest.approx(max(other))  # none lacks the half that its parts give


async def test_a_snapshot_of_another_version_is_refused(tmp_path, monkeypatch):
    embedder = LetterEmbedder()
    monkeypatch.setattr(indexing, "RETRIEVAL_VERSION", "earlier")
    fingerprint = await asyncio.to_thread(index, tmp_path, make_chunks(), embedder)
    with pytest.raises(IndexMismatchError, match="retrieval version earlier"):
        await LanceRetriever.open(tmp_path, fingerprint=fingerprint, embedder=embedder, k=3)


@pytest.mark.parametrize(
    ("where", "pages"),
    [
        (ChunkFilter(), {"install", "how-to/backups", "how-to/sync", "how-tools"}),
        (ChunkFilter(pages=("install", "how-tools")), {"install", "how-tools"}),
        (ChunkFilter(below="how-to"), {"how-to/backups", "how-to/sync"}),
        (ChunkFilter(below="install"), {"install"}),
        (ChunkFilter(heading="Part 3"), {"how-to/backups"}),
        (ChunkFilter(below="how-to", heading="How-To/Sync"), {"how-to/sync"}),
        (ChunkFilter(pages=("it's", "install")), {"install"}),
        (ChunkFilter(heading="x' OR '1'='1"), set()),
        (ChunkFilter(below="how%"), set()),
        (ChunkFilter(pages=("nowhere",)), set()),
        (ChunkFilter(pages=()), set()),
    ],
)
@pytest.mark.parametrize("question", ["tern backup file change", "?!"])
async def test_a_filter_says_among_what_is_searched(folder, question, where, pages):
    retriever = await open_index(folder)
    found = await find(retriever, question, k=20, where=where)
    assert {chunk_id.removeprefix("docs:").rpartition("/")[0] for chunk_id in found} == pages


@pytest.mark.parametrize(
    "name", ["10\xa0MB", "soft\xadhyphen", "zero\u200bwidth", "full\u3000width"]
)
async def test_a_heading_with_an_unprintable_space_can_be_asked_for(tmp_path, name):
    retriever = await open_index(tmp_path, {name: ["Text."], "other": ["Text."]})
    found = await find(retriever, "text", where=ChunkFilter(heading=name.title()))
    assert found == [f"docs:{name}/1"]


@pytest.mark.parametrize(
    "where",
    [
        ChunkFilter(pages=("/install",)),
        ChunkFilter(pages=("install.mdx",)),
        ChunkFilter(pages=("",)),
        ChunkFilter(pages="install"),  # type: ignore[arg-type]
        ChunkFilter(below="how-to/"),
        ChunkFilter(below="a/../b"),
        ChunkFilter(heading="  "),
        ChunkFilter(heading="a\nb"),
        ChunkFilter(heading="a\x00b"),
        ChunkFilter(heading="a\ud800b"),
        ChunkFilter(heading=3),  # type: ignore[arg-type]
    ],
)
async def test_a_filter_that_makes_no_sense_is_refused_by_name(folder, where):
    retriever = await open_index(folder)
    with pytest.raises(InvalidInputError, match=r"filtering chunks by `(pages|below|heading)`"):
        await retriever.retrieve("backup", where=where)


@pytest.mark.parametrize("k", [0, -1, 51, True, 2.0])
async def test_a_k_out_of_range_is_refused(folder, k):
    retriever = await open_index(folder)
    with pytest.raises(InvalidInputError, match="k from 1 to 50"):
        await retriever.retrieve("backup", k=k)
    with pytest.raises(InvalidInputError, match="k from 1 to 50"):
        await open_index(folder, k=k)


@pytest.mark.parametrize(
    "question", ["", " ", "???", "how do I", ':+"(AND* ~', "\\", "🦀", "备份" * 2000, "a" * 20_000]
)
async def test_any_text_is_a_question(folder, question):
    assert len(await find(await open_index(folder), question)) == 3


def test_the_words_of_a_question_are_those_of_the_index():
    assert split_terms("How do I set max_tokens, Café?") == ["set", "max", "token", "cafe"]
    assert split_terms("how do I") == []


async def test_many_ask_at_once_while_the_next_index_is_built(tmp_path):
    retriever = await open_index(tmp_path)
    questions = ["install", "backup", "restore", "sync files", "tools folder"]
    alone = [await find(retriever, question) for question in questions]
    builds = [
        open_index(tmp_path, {**PAGES, f"new-{n}": ["Install backup restore sync tools."] * 50})
        for n in range(4)
    ]
    asked = [find(retriever, question) for _ in range(20) for question in questions]
    *nexts, answers = await asyncio.gather(*builds, asyncio.gather(*asked))
    assert answers == alone * 20
    assert len({each.index_fingerprint for each in (retriever, *nexts)}) == 5
    assert await find(nexts[0], "install backup restore sync tools") != alone[0]
    assert [await find(retriever, question) for question in questions] == alone


async def test_the_embedder_runs_outside_the_event_loop_in_few_threads(folder):
    retriever = await open_index(folder)
    embedder = retriever._embedder
    embedder.threads.clear()
    await asyncio.gather(*(find(retriever, "backup") for _ in range(50)))
    assert 1 <= len(embedder.threads) <= 2
    assert all(name.startswith("retrieval") for name in embedder.threads)


async def test_another_embedder_or_layout_or_no_index_is_refused(tmp_path):
    retriever = await open_index(tmp_path)
    fingerprint = retriever.index_fingerprint
    for folder, embedder, found in [
        (tmp_path, LetterEmbedder(dimension=7), "dimension 7"),
        (tmp_path / "nowhere", LetterEmbedder(), "nothing there"),
        (old_layout(tmp_path / "old", fingerprint), LetterEmbedder(), "another version"),
    ]:
        with pytest.raises(IndexMismatchError, match=found):
            await LanceRetriever.open(folder, fingerprint=fingerprint, embedder=embedder, k=3)


def old_layout(folder, fingerprint: str):
    import lancedb

    lancedb.connect(folder / fingerprint).create_table("chunks", [{"text": "x"}])
    return folder


async def test_what_is_kept_in_memory_is_bounded_and_changes_no_answer(folder, monkeypatch):
    questions = ["restoring the newest copies", "cafe", "tools", "which machine wins", "install"]
    plenty = await open_index(folder)
    expected = [await find(plenty, question) for question in questions * 2]
    monkeypatch.setattr("serving.pipeline.retrieval.HITS_KEPT", 2)
    monkeypatch.setattr("serving.pipeline.vector_search.CHUNKS_KEPT", 2)
    monkeypatch.setattr("serving.pipeline.index_tables.VECTORS_IN_MEMORY_MIB", 0)
    scarce = await open_index(folder)
    found = await asyncio.gather(*(find(scarce, question) for question in questions * 2))
    assert found == expected
    kept = (scarce._kept_hits, scarce._vectors._kept_windows, scarce._vectors._kept_pages)
    assert [len(each) for each in kept] == [2, 2, 2]
    assert len(plenty._kept_hits) > 2
