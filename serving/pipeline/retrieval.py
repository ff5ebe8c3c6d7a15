"""Hybrid retrieval over LanceDB: words and vectors choose candidates, relevance orders them.

Belongs here: asking an index snapshot. Does not belong here: how a snapshot is made (`indexing`),
how its words and vectors are searched (`word_search`, `vector_search`), how scores become one
(`fusion`), what may be asked for (`filters`), what a score is good for (`router`).
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np

from serving.errors import IndexMismatchError, InvalidInputError
from serving.models.protocols import ChunkFilter, Embedder, Hit, Reranker, Vectors
from serving.pipeline.filters import write_condition
from serving.pipeline.fusion import Scores, fuse, limit_bm25, merge_candidates, read_vectors
from serving.pipeline.index_tables import CHUNKS, PAGES, WINDOWS
from serving.pipeline.indexing import RETRIEVAL_VERSION
from serving.pipeline.kept import Kept
from serving.pipeline.snapshot_receipt import read_version
from serving.pipeline.vector_search import VectorIndex, open_vectors
from serving.pipeline.word_search import WordIndex, open_words, split_terms

if TYPE_CHECKING:
    from lancedb.db import AsyncConnection
    from lancedb.table import AsyncTable

Result = TypeVar("Result")

CANDIDATES = 48
"""How many chunks are ordered by relevance at least; 48 = 16 times the default k. Words and vectors
each bring twice as many to choose them from."""
RERANKED = 24
"""How many of them a reranker reads at least: each takes it as long as a whole search."""
MAXIMUM_K = 50
ALL = ChunkFilter()
HITS_KEPT = 16_384
"""Chunks whose text stays in memory, the last used ones: a snapshot never changes. About 20 MB; an
index that fits is read when it is opened."""
INFERENCE_THREADS = 2
"""Models run and vectors are compared outside the event loop, in threads of their own: however many
questions wait for the embedder, the pool that asyncio shares (which makes traces durable) stays
free."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What both searches found: n chunks by position, their vectors and their pages', BM25.

    `question` is the question's vector. BM25 is 0 for a chunk that the search by words did not
    bring. `bm25_limit` is a full match of this question in a chunk; a part, being one of more
    texts, may come above it.
    """

    question: Vectors
    chunks: list[int]
    windows: list[Vectors]
    pages: Vectors
    bm25: Scores
    bm25_limit: float


class LanceRetriever:
    """Answers from one index snapshot. Safe for concurrent use on one event loop."""

    def __init__(
        self,
        chunks: "AsyncTable",
        words: WordIndex,
        vectors: VectorIndex,
        *,
        index_fingerprint: str,
        chunk_count: int,
        embedder: Embedder,
        threads: ThreadPoolExecutor,
        k: int,
        reranker: Reranker | None = None,
    ) -> None:
        self._chunks = chunks
        self._words = words
        self._vectors = vectors
        self._chunk_count = chunk_count
        self._embedder = embedder
        self._threads = threads
        self._reranker = reranker
        self._k = k
        self._kept_hits = Kept(self._read_hits, limit=HITS_KEPT)
        self.index_fingerprint = index_fingerprint

    @classmethod
    async def open(
        cls,
        folder: Path,
        *,
        fingerprint: str,
        embedder: Embedder,
        k: int,
        reranker: Reranker | None = None,
    ) -> Self:
        """Open the snapshot `folder/<fingerprint>`, and read into memory what fits there.

        Raises:
            IndexMismatchError: no such snapshot, it is damaged or was made for another version of
                retrieval, or the embedder's vectors are of another length.
            InvalidInputError: k is out of range.
        """
        checked_k = _check_k(k)
        try:
            return await cls._open(folder, fingerprint, embedder, checked_k, reranker)
        except (RuntimeError, ValueError) as error:  # LanceDB's, in the words of its libraries
            raise IndexMismatchError(
                f"opening the index {fingerprint}",
                expected=f"tables that can be read in {folder / fingerprint}",
                found=str(error).splitlines()[0],
                next_step="build it anew: `understudy run --select corpus`",
            ) from error

    @classmethod
    async def _open(
        cls,
        folder: Path,
        fingerprint: str,
        embedder: Embedder,
        k: int,
        reranker: Reranker | None,
    ) -> Self:
        database = await _connect(folder, fingerprint)
        chunks, windows, pages = [await database.open_table(t) for t in (CHUNKS, WINDOWS, PAGES)]
        stored = (await windows.schema()).field("vector").type.list_size
        if stored != embedder.dimension:
            raise IndexMismatchError(
                f"opening the index {fingerprint}",
                expected=f"vectors of length {stored}",
                found=f"an embedder of dimension {embedder.dimension}",
                next_step="rebuild the index with this embedder: `understudy run --select corpus`",
            )
        threads = ThreadPoolExecutor(INFERENCE_THREADS, thread_name_prefix="retrieval")
        chunk_count = await chunks.count_rows()
        retriever = cls(
            chunks,
            await open_words(database),
            await open_vectors(chunks, windows, pages, threads),
            index_fingerprint=fingerprint,
            chunk_count=chunk_count,
            embedder=embedder,
            threads=threads,
            k=k,
            reranker=reranker,
        )
        if chunk_count <= HITS_KEPT:
            await retriever._kept_hits.get(range(chunk_count))
        return retriever

    async def retrieve(
        self, question: str, *, k: int | None = None, where: ChunkFilter | None = None
    ) -> tuple[Hit, ...]:
        """Return at most k hits, best first by `relevance`, each with its cosine as `score`.

        Args:
            question: any text; without a word to search for, vectors alone decide.
            k: how many; the retriever's own k where it is None.
            where: which chunks may be found; all where it is None.

        Raises:
            InvalidInputError: k is out of range, or the filter names no possible page or heading.
        """
        count = self._k if k is None else _check_k(k)
        found = await self.find_candidates(question, limit=max(count, CANDIDATES), where=where)
        if not found.chunks:
            return ()
        best, nearness = read_vectors(found.question, found.windows, found.pages)
        relevance = fuse(nearness, found.bm25, limit=found.bm25_limit)
        # Equal chunks stand in the order of the corpus, whatever order the searches ended in.
        order: list[int] = np.lexsort([np.array(found.chunks), -relevance]).tolist()
        shown = order[: count if self._reranker is None else max(count, RERANKED)]
        hits = await self._kept_hits.get([found.chunks[n] for n in shown])
        scored = [
            replace(
                hit,
                score=min(1.0, max(0.0, float(best[n]))),
                relevance=float(relevance[n]),
            )
            for n, hit in zip(shown, hits, strict=True)
        ]
        return (await self._rerank(question, scored))[:count]

    async def find_candidates(
        self, question: str, *, limit: int = CANDIDATES, where: ChunkFilter | None = None
    ) -> Candidates:
        """Return what `retrieve` orders: at most `limit` chunks, in the order of their ranks.

        Raises:
            InvalidInputError: the filter names no possible page or heading.
        """
        condition = write_condition(where or ALL)
        terms = split_terms(question)

        async def search_vectors() -> tuple[Vectors, list[int]]:
            vectors = await self._run(self._embedder.embed, [question])
            return vectors[0], await self._vectors.search(vectors[0], 2 * limit, condition)

        # Words need no vector: they are searched while the question is embedded.
        (vector, by_vector), bm25 = await asyncio.gather(
            search_vectors(), self._words.search(question, 2 * limit, condition, terms=terms)
        )
        chunks = merge_candidates([by_vector, list(bm25)], limit=limit)
        windows, pages = await self._vectors.read(chunks)
        return Candidates(
            question=vector,
            chunks=chunks,
            windows=windows,
            pages=pages,
            bm25=np.array([bm25.get(chunk, 0.0) for chunk in chunks]),
            bm25_limit=limit_bm25(self._chunk_count, len(terms)),
        )

    async def _read_hits(self, chunks: Sequence[int]) -> list[Hit]:
        shown = ["chunk_id", "content_hash", "text", "title", "url", "heading_path"]
        rows = await self._chunks.take_offsets(list(chunks)).select(["chunk", *shown]).to_list()
        hits = {
            row.pop("chunk"): Hit(**{**row, "heading_path": tuple(row["heading_path"])})
            for row in rows
        }
        return [hits[chunk] for chunk in chunks]

    async def _rerank(self, question: str, hits: list[Hit]) -> tuple[Hit, ...]:
        if self._reranker is None:
            return tuple(hits)
        texts = [" > ".join(hit.heading_path) + "\n" + hit.text for hit in hits]
        scores = await self._run(self._reranker.score, question, texts)
        order = np.argsort(-scores, kind="stable")
        return tuple(replace(hits[n], relevance=float(scores[n])) for n in order)

    async def _run(self, work: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


def _check_k(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAXIMUM_K:
        raise InvalidInputError(
            "retrieving chunks",
            expected=f"k from 1 to {MAXIMUM_K}",
            found=repr(k),
            next_step="correct `retrieval.k` in the config, or the argument k",
        )
    return k


async def _connect(folder: Path, fingerprint: str) -> "AsyncConnection":
    import lancedb

    snapshot = folder / fingerprint
    if not snapshot.exists():
        raise IndexMismatchError(
            f"opening the index {fingerprint}",
            expected=f"a snapshot at {snapshot}",
            found="nothing there",
            next_step="run `understudy run --select corpus`",
        )
    database = await lancedb.connect_async(str(snapshot))
    tables = list((await database.list_tables()).tables)
    if not {CHUNKS, WINDOWS, PAGES} <= set(tables):
        raise _refuse_version(fingerprint, f"the tables {tables}")
    found = read_version(snapshot)
    if found != RETRIEVAL_VERSION:  # what it would find, no gate has seen
        raise _refuse_version(fingerprint, f"retrieval version {found}")
    return database


def _refuse_version(fingerprint: str, found: str) -> IndexMismatchError:
    return IndexMismatchError(
        f"opening the index {fingerprint}",
        expected=f"a snapshot made for retrieval version {RETRIEVAL_VERSION}",
        found=f"{found}, as another version of Understudy wrote it",
        next_step="build it anew: `understudy run --select corpus`, then release again; or serve "
        "the release with the version that made it",
    )
