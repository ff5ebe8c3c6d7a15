"""Building an index: what is embedded, what is refused, what is left behind."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import IndexMismatchError, InvalidInputError
from serving.models.protocols import ChunkFilter, Vectors
from serving.pipeline import index_tables, vector_search
from serving.pipeline.indexing import (
    RETRIEVAL_VERSION,
    WINDOW_TOKENS,
    Cut,
    IndexedChunk,
    IndexPlan,
    build_index,
    plan_index,
)
from serving.pipeline.retrieval import LanceRetriever
from serving.pipeline.snapshot_receipt import RECEIPT, is_whole

CHUNK = IndexedChunk(
    chunk_id="docs:how-to/install/3",
    content_hash="h",
    title="Install",
    url="/how-to/install/",
    heading_path=("Install", "On Linux"),
    text="Run it.",
)


def count_words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def plan(*chunks: IndexedChunk, maximum: int = 14, window: int = 14) -> IndexPlan:
    return plan_index(
        chunks, maximum_tokens=maximum, count_tokens=count_words, window_tokens=window
    )


def plan_windows(owners: Sequence[int]) -> IndexPlan:
    """Return a plan of windows whose texts do not matter, the first of each chunk its only part."""
    firsts = {owner: place for place, owner in reversed([*enumerate(owners)])}
    return IndexPlan(
        texts=tuple(f"t{n}" for n in range(len(owners))),
        windows=Cut(chunks=tuple(owners), texts=tuple(range(len(owners)))),
        parts=Cut(chunks=tuple(sorted(firsts)), texts=tuple(firsts[n] for n in sorted(firsts))),
    )


def read(made: IndexPlan, cut: Cut) -> list[str]:
    return [made.texts[text] for text in cut.texts]


def test_a_chunk_knows_its_page_and_what_is_searched():
    assert CHUNK.page == "how-to/install"
    assert CHUNK.search_text == "Install > On Linux\nRun it."


def test_a_chunk_that_fits_is_one_window_and_one_part_of_all_it_says():
    both = Cut(chunks=(0, 1), texts=(0, 0))  # equal texts are embedded once
    assert plan(CHUNK, CHUNK) == IndexPlan(texts=(CHUNK.search_text,), windows=both, parts=both)


def test_a_longer_chunk_is_cut_into_equal_windows_under_its_headings():
    made = plan(replace(CHUNK, text=" ".join(f"w{n}" for n in range(22))), maximum=99)
    bodies = [text.removeprefix("Install > On Linux\n") for text in read(made, made.windows)]
    assert [len(body.split()) for body in bodies] == [8, 8, 6]
    assert " ".join(bodies).split() == [f"w{n}" for n in range(22)]
    assert len(made.parts) == 1
    assert len(made.texts) == 4  # the windows and the whole


def test_windows_are_short_where_the_embedder_reads_more():
    words = " ".join(["word"] * 200)
    made = plan_index([replace(CHUNK, text=words)], maximum_tokens=254, count_tokens=count_words)
    assert [len(made.windows), len(made.parts)] == [3, 1]
    assert max(count_words(read(made, made.windows))) <= WINDOW_TOKENS
    assert len(plan(replace(CHUNK, text=words), maximum=9, window=99).windows) > 22


@given(
    st.lists(st.sampled_from(["a", "bb", "\n", "  ", "| x |", "```"]), max_size=200),
    st.integers(1, 38),
    st.integers(1, 38),
    st.integers(1, 40),
)
def test_texts_fit_and_lose_no_word(words, maximum, window, headings):
    chunk = replace(CHUNK, text=" ".join(words), heading_path=("h",) * headings)
    made = plan(chunk, maximum=maximum, window=window)
    for cut, limit in ((made.windows, min(maximum, window)), (made.parts, maximum)):
        texts = read(made, cut)
        assert set(cut.chunks) == {0}
        assert max(count_words(texts)) <= limit or not chunk.text.split()  # headings are not cut
        bodies = [text.removeprefix(f"{chunk.headings}\n") for text in texts]
        if chunk.text.split():
            assert " ".join(bodies).split() == chunk.text.split()


@pytest.mark.parametrize(
    ("positions", "vector_count"),
    [([], 0), ([0], 1), ([0, 0], 2), ([1, 0], 2), ([0, 2], 2), ([0, 1], 1), ([0, 1, 2], 3)],
)
def test_a_plan_of_other_chunks_is_refused(tmp_path, positions, vector_count):
    vectors = np.ones((vector_count, 4), dtype=np.float32)
    other = Cut(chunks=tuple(positions), texts=tuple(range(len(positions))))
    own = Cut(chunks=(0, 1), texts=(0, 0))
    texts = ("x",) * max(1, len(positions))
    for windows, parts in ((other, own), (own, other)):
        made = IndexPlan(texts=texts, windows=windows, parts=parts)
        with pytest.raises(InvalidInputError, match="texts of all 2 chunks"):
            build_index(tmp_path, [CHUNK, CHUNK], made, vectors, "e")
    assert list(tmp_path.iterdir()) == []


def test_no_chunk_is_no_index(tmp_path):
    with pytest.raises(InvalidInputError, match="at least one chunk"):
        build_index(tmp_path, [], plan(), np.zeros((0, 4), dtype=np.float32), "e")


def test_an_existing_snapshot_is_kept_and_a_failed_build_leaves_nothing(tmp_path):
    vectors = np.eye(4, dtype=np.float32)[:1]
    first = build_index(tmp_path, [CHUNK], plan(CHUNK), vectors, "e")
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert build_index(tmp_path, [CHUNK], plan(CHUNK), vectors, "e") == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written
    broken = replace(CHUNK, text=3, content_hash="other")
    with pytest.raises(Exception, match="int"):
        build_index(tmp_path, [broken], plan(CHUNK), vectors, "e")
    assert {path.name for path in tmp_path.iterdir()} == {first}


def test_a_damaged_snapshot_is_told_and_built_anew(tmp_path):
    vectors = np.eye(4, dtype=np.float32)[:1]
    known = Known([0], vectors)

    async def ask():
        opened = await LanceRetriever.open(tmp_path, fingerprint=name, embedder=known, k=1)
        return [hit.chunk_id for hit in await opened.retrieve("0? run")]

    name = build_index(tmp_path, [CHUNK], plan(CHUNK), vectors, "e")
    assert asyncio.run(ask()) == [CHUNK.chunk_id]
    assert is_whole(tmp_path / name, RETRIEVAL_VERSION)  # asking changes nothing
    for data in (tmp_path / name / "windows.lance" / "data").iterdir():
        data.write_bytes(data.read_bytes()[:100])
    assert not is_whole(tmp_path / name, RETRIEVAL_VERSION)
    with pytest.raises(IndexMismatchError, match="tables that can be read"):
        asyncio.run(ask())
    assert build_index(tmp_path, [CHUNK], plan(CHUNK), vectors, "e") == name
    assert asyncio.run(ask()) == [CHUNK.chunk_id]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    for receipt in ("", "[]", "{}"):  # one that says nothing is none
        (tmp_path / name / RECEIPT).write_text(receipt)
        assert not is_whole(tmp_path / name, RETRIEVAL_VERSION)
        with pytest.raises(IndexMismatchError, match="retrieval version none"):
            asyncio.run(ask())


class Known:
    """Vectors that are known beforehand: `<n>?` has that of the n-th chunk's first window."""

    maximum_tokens, fingerprint = 256, "known"

    def __init__(self, owners: Sequence[int], vectors: Vectors) -> None:
        self.vectors = vectors
        self.owners = list(owners)
        self.dimension = vectors.shape[1]

    def embed(self, texts: Sequence[str]) -> Vectors:
        first = [self.owners.index(int(text.split("?")[0])) for text in texts]
        return self.vectors[first]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return count_words(texts)


def make_chunks(count: int) -> list[IndexedChunk]:
    return [replace(CHUNK, chunk_id=f"docs:p{n}/1", text=f"word{n}") for n in range(count)]


def draw_vectors(count: int) -> Vectors:
    vectors = np.random.default_rng(7).normal(size=(count, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("memory_mib", [0, 256], ids=["on_disk", "in_memory"])
async def test_many_batches_and_partitions_keep_every_chunk_with_its_own_vectors(
    tmp_path, monkeypatch, memory_mib
):
    monkeypatch.setattr(index_tables, "BATCH_ROWS", 64)
    monkeypatch.setattr(vector_search, "BLOCK_ROWS", 100)
    monkeypatch.setattr(index_tables, "VECTORS_IN_MEMORY_MIB", memory_mib)
    chunks = make_chunks(700)
    windows = [n for n in range(700) for _ in range(1 + n % 3)]
    vectors = draw_vectors(len(windows))
    known = Known(windows, vectors)
    fingerprint = build_index(tmp_path, chunks, plan_windows(windows), vectors, "e")
    retriever = await LanceRetriever.open(tmp_path, fingerprint=fingerprint, embedder=known, k=50)
    for position in (0, 63, 64, 350, 699):
        hits = await retriever.retrieve(f"{position}?")
        assert hits[0].chunk_id == f"docs:p{position}/1"
        assert hits[0].score == pytest.approx(1.0, abs=1e-5)
        for hit in hits:
            n = int(hit.text.removeprefix("word"))
            own = vectors[[owner == n for owner in known.owners]]
            best = float((own @ vectors[known.owners.index(position)]).max())
            assert hit.score == pytest.approx(min(1.0, max(0.0, best)), abs=1e-5)


async def test_a_filter_that_leaves_little_is_searched_beyond_the_nearest_partitions(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(index_tables, "VECTORS_IN_MEMORY_MIB", 0)
    monkeypatch.setattr(vector_search, "PARTITIONS_ASKED", 1)
    chunks, windows = make_chunks(600), range(600)
    known = Known(windows, draw_vectors(600))
    fingerprint = build_index(tmp_path, chunks, plan_windows(windows), known.vectors, "e")
    retriever = await LanceRetriever.open(tmp_path, fingerprint=fingerprint, embedder=known, k=12)
    pages = tuple(f"p{n}" for n in range(5, 600, 50))
    hits = await retriever.retrieve("0?", where=ChunkFilter(pages=pages))  # no word of any chunk
    assert {hit.chunk_id for hit in hits} == {f"docs:{page}/1" for page in pages}
    assert len(await retriever.retrieve("0?", k=50)) == 50


@pytest.mark.parametrize("memory_mib", [0, 256], ids=["on_disk", "in_memory"])
async def test_one_long_chunk_leaves_room_for_the_others(tmp_path, monkeypatch, memory_mib):
    """Its 400 windows are nearest, ten times as many rows as the mean makes the search ask for."""
    monkeypatch.setattr(index_tables, "VECTORS_IN_MEMORY_MIB", memory_mib)
    windows = [0] * 400 + list(range(1, 60))
    vectors = draw_vectors(len(windows))
    vectors[:400] = vectors[0]
    known = Known(windows, vectors)
    fingerprint = build_index(tmp_path, make_chunks(60), plan_windows(windows), vectors, "e")
    retriever = await LanceRetriever.open(tmp_path, fingerprint=fingerprint, embedder=known, k=24)
    hits = await retriever.retrieve("0?")  # no word of any chunk
    nearest = np.argsort(-(vectors[400:] @ vectors[0]), kind="stable")[:23] + 1
    assert {hit.chunk_id for hit in hits} == {f"docs:p{n}/1" for n in (0, *nearest)}


@pytest.mark.parametrize("memory_mib", [0, 256], ids=["on_disk", "in_memory"])
async def test_of_equal_chunks_the_one_whose_page_is_about_the_question_comes_first(
    tmp_path, monkeypatch, memory_mib
):
    """Pages need not stand together; what a filter leaves out still says what its page is about."""
    monkeypatch.setattr(index_tables, "VECTORS_IN_MEMORY_MIB", memory_mib)
    question, other = np.eye(4, dtype=np.float32)[:2]
    made = [("aside", question), ("about", question), ("aside", other), ("about", question)]
    chunks = [
        replace(CHUNK, chunk_id=f"docs:{page}/{n}", heading_path=(f"H{n}",), text=f"word{n}")
        for n, (page, _) in enumerate(made)
    ]
    windows = range(4)
    known = Known(windows, np.stack([vector for _, vector in made]))
    fingerprint = build_index(tmp_path, chunks, plan_windows(windows), known.vectors, "e")
    retriever = await LanceRetriever.open(tmp_path, fingerprint=fingerprint, embedder=known, k=4)
    hits = await retriever.retrieve("0?")  # no word of any chunk
    assert [hit.chunk_id[5:] for hit in hits] == ["about/1", "about/3", "aside/0", "aside/2"]
    assert [hit.score for hit in hits] == pytest.approx([1, 1, 1, 0])
    both = (1 + np.sqrt(0.5)) / 2
    expected = np.array([1, 1, both, both - 0.5]) / 2
    assert [hit.relevance for hit in hits] == pytest.approx(expected.tolist())
    filtered = await retriever.retrieve("0?", where=ChunkFilter(heading="H0"))
    assert [hit.relevance for hit in filtered] == pytest.approx([both / 2])


async def test_in_memory_and_on_disk_find_the_same_with_and_without_a_filter(tmp_path, monkeypatch):
    chunks = make_chunks(400)
    windows = [n for n in range(400) for _ in range(1 + n % 3)]
    known = Known(windows, draw_vectors(len(windows)))
    found = []
    for memory_mib in (0, 256):
        monkeypatch.setattr(index_tables, "VECTORS_IN_MEMORY_MIB", memory_mib)
        monkeypatch.setattr(vector_search, "PARTITIONS_ASKED", 1000)  # all: exact
        folder = tmp_path / str(memory_mib)
        fingerprint = build_index(folder, chunks, plan_windows(windows), known.vectors, "e")
        retriever = await LanceRetriever.open(folder, fingerprint=fingerprint, embedder=known, k=20)
        pages = ChunkFilter(pages=tuple(f"p{n}" for n in range(0, 400, 9)))
        found.append(
            [
                [hit.chunk_id for hit in await retriever.retrieve(f"{n}? word{n}", where=where)]
                for n in (0, 5, 131, 399)
                for where in (None, pages)
            ]
        )
    assert found[0] == found[1]
    assert all(len(ids) == 20 for ids in found[0])


async def test_of_equally_near_chunks_the_first_of_the_corpus_are_candidates(tmp_path):
    windows = range(200)
    vectors = np.tile(draw_vectors(1), (200, 1))
    fingerprint = build_index(tmp_path, make_chunks(200), plan_windows(windows), vectors, "e")
    known = Known(windows, vectors)
    retriever = await LanceRetriever.open(tmp_path, fingerprint=fingerprint, embedder=known, k=24)
    hits = await retriever.retrieve("0?")
    assert [hit.chunk_id for hit in hits] == [f"docs:p{n}/1" for n in range(24)]
