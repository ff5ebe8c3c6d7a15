"""Hybrid retrieval over LanceDB: words and vectors choose candidates, relevance orders them.

Belongs here: asking an index snapshot. Does not belong here: how a snapshot is made (`indexing`),
how scores become one (`fusion`), what may be asked for (`filters`), what a score is good for
(`router`).
"""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np

from serving.errors import IndexMismatchError, InvalidInputError
from serving.models.protocols import ChunkFilter, Embedder, Hit, Reranker, Vectors
from serving.pipeline.filters import write_condition
from serving.pipeline.fusion import Scores, fuse, limit_bm25, merge_candidates, read_windows
from serving.pipeline.indexing import ANALYSIS, CHUNKS, WINDOWS

if TYPE_CHECKING:
    from lancedb.table import AsyncTable

Result = TypeVar("Result")

CANDIDATES = 24
"""How many chunks are ordered by relevance at least; 24 = 8 times the default k. Words and vectors
each bring twice as many to choose them from."""
MAXIMUM_K = 50
ALL = ChunkFilter()
PARTITIONS_ASKED = 32
"""How many partitions of an approximate vector index are read at least, and more where a filter
leaves too little in them; a small index has none."""
CHUNKS_KEPT = 16_384
"""Chunks whose text and vectors stay in memory, the last used ones: a snapshot never changes, and
reading candidates took longer than finding them. About 50 MB of one window each; an index that fits
is read when it is opened."""
INFERENCE_THREADS = 2
"""Models run outside the event loop, in threads of their own: however many questions wait for the
embedder, the pool that asyncio shares (which makes traces durable) stays free."""


@dataclass(frozen=True, kw_only=True)
class _Candidates:
    """What both searches found: n chunks by position, what is shown of them, their vectors, BM25.

    `question` is the question's vector. BM25 is 0 for a chunk that the search by words did not
    bring: it is below all that it brought.
    """

    question: Vectors
    chunks: list[int]
    hits: list[Hit]
    windows: list[Vectors]
    bm25: Scores


class LanceRetriever:
    """Answers from one index snapshot. Safe for concurrent use on one event loop."""

    def __init__(
        self,
        chunks: "AsyncTable",
        windows: "AsyncTable",
        *,
        index_fingerprint: str,
        first_windows: Sequence[int],
        window_count: int,
        embedder: Embedder,
        k: int,
        reranker: Reranker | None = None,
    ) -> None:
        self._chunks = chunks
        self._windows = windows
        self._first_windows = [*first_windows, window_count]
        self._embedder = embedder
        self._reranker = reranker
        self._k = _check_k(k)
        self._kept_windows: OrderedDict[int, Vectors] = OrderedDict()
        self._kept_hits: OrderedDict[int, Hit] = OrderedDict()
        self._threads = ThreadPoolExecutor(INFERENCE_THREADS, thread_name_prefix="retrieval")
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
        """Open the snapshot `folder/<fingerprint>`.

        Raises:
            IndexMismatchError: no such snapshot, or the embedder's vectors are of another length.
            InvalidInputError: k is out of range.
        """
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
        if not {CHUNKS, WINDOWS} <= set(tables):
            raise IndexMismatchError(
                f"opening the index {fingerprint}",
                expected=f"the tables {CHUNKS} and {WINDOWS}",
                found=f"{tables}, as an earlier version of Understudy wrote them",
                next_step="build it anew: `understudy run --select corpus`, then release again",
            )
        chunks, windows = await database.open_table(CHUNKS), await database.open_table(WINDOWS)
        stored = (await windows.schema()).field("vector").type.list_size
        if stored != embedder.dimension:
            raise IndexMismatchError(
                f"opening the index {fingerprint}",
                expected=f"vectors of length {stored}",
                found=f"an embedder of dimension {embedder.dimension}",
                next_step="rebuild the index with this embedder: `understudy run --select corpus`",
            )
        retriever = cls(
            chunks,
            windows,
            index_fingerprint=fingerprint,
            first_windows=await _read_first_windows(chunks),
            window_count=await windows.count_rows(),
            embedder=embedder,
            k=k,
            reranker=reranker,
        )
        await retriever._warm()
        return retriever

    async def _warm(self) -> None:
        """Read the whole index into memory, if it fits."""
        chunks = range(len(self._first_windows) - 1)
        if len(chunks) <= CHUNKS_KEPT:
            await _read_kept(self._kept_windows, chunks, self._read_windows)
            await _read_kept(self._kept_hits, chunks, self._read_hits)

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
        limit = max(count, CANDIDATES)
        terms = split_terms(question)
        # Without a word to search for, the search by words is left out.
        words = question if terms else None
        found = await self._find_candidates(question, words, limit, write_condition(where or ALL))
        if not found.chunks:
            return ()
        best, nearness = read_windows(found.question, found.windows)
        reachable = limit_bm25(len(self._first_windows) - 1, len(terms))
        relevance = fuse(nearness, found.bm25, limit=reachable)
        # Equal chunks stand in the order of the corpus, whatever order the searches ended in.
        order = sorted(range(len(relevance)), key=lambda n: (-relevance[n], found.chunks[n]))
        scored = [
            replace(
                found.hits[n],
                score=min(1.0, max(0.0, float(best[n]))),
                relevance=float(relevance[n]),
            )
            for n in order
        ]
        return (await self._rerank(question, scored))[:count]

    async def _find_candidates(
        self, question: str, words: str | None, limit: int, condition: str | None
    ) -> _Candidates:
        async def search_vectors() -> tuple[Vectors, list[int]]:
            vectors = await self._run(self._embedder.embed, [question])
            return vectors[0], await self._search_vectors(vectors[0], 2 * limit, condition)

        (vector, by_vector), bm25 = await asyncio.gather(
            search_vectors(), self._search_words(words, 2 * limit, condition)
        )
        chunks = merge_candidates([by_vector, list(bm25)], limit=limit)
        windows, hits = await asyncio.gather(
            _read_kept(self._kept_windows, chunks, self._read_windows),
            _read_kept(self._kept_hits, chunks, self._read_hits),
        )
        return _Candidates(
            question=vector,
            chunks=chunks,
            hits=hits,
            windows=windows,
            bm25=np.array([bm25.get(chunk, 0.0) for chunk in chunks]),
        )

    async def _search_vectors(
        self, vector: Vectors, depth: int, condition: str | None
    ) -> list[int]:
        query = self._windows.query().nearest_to(vector).distance_type("cosine")
        query = query.maximum_nprobes(0).minimum_nprobes(PARTITIONS_ASKED)  # 0: no maximum
        query = query.select(["chunk", "_distance"])
        query = query.where(condition) if condition else query
        # A chunk takes as many places in this list as it has windows among the nearest: the mean is
        # a first guess, which one long chunk can fill alone.
        limit = depth * math.ceil(self._first_windows[-1] / (len(self._first_windows) - 1))
        while True:
            rows = await query.limit(limit).to_list()
            best_first = sorted(rows, key=lambda row: (row["_distance"], row["chunk"]))
            nearest = list(dict.fromkeys(row["chunk"] for row in best_first))
            if len(nearest) >= depth or len(rows) < limit:
                return nearest[:depth]
            limit *= 2

    async def _search_words(
        self, words: str | None, depth: int, condition: str | None
    ) -> dict[int, float]:
        """Return BM25 by chunk, best first; nothing where there is no word to search for."""
        if words is None:
            return {}
        query = self._chunks.query().nearest_to_text(words, columns="search_text")
        query = query.select(["chunk", "_score"])
        query = query.where(condition) if condition else query
        rows = await query.limit(depth).to_list()
        best_first = sorted(rows, key=lambda row: (-row["_score"], row["chunk"]))
        return {row["chunk"]: row["_score"] for row in best_first}

    async def _read_windows(self, chunks: Sequence[int]) -> list[Vectors]:
        spans = [range(self._first_windows[c], self._first_windows[c + 1]) for c in chunks]
        rows = [row for span in spans for row in span]
        if not rows:
            return []
        found = await self._windows.take_offsets(rows).select(["chunk", "vector"]).to_arrow()
        owners = found["chunk"].to_numpy()
        flat = found["vector"].combine_chunks().flatten().to_numpy()
        by_chunk = np.argsort(owners, kind="stable")
        vectors = flat.reshape(len(owners), -1)[by_chunk]
        ordered, wanted = owners[by_chunk], np.asarray(chunks)
        first = np.searchsorted(ordered, wanted, side="left")
        last = np.searchsorted(ordered, wanted, side="right")
        # Copies: a view that is kept would keep the vectors of all that was read with it.
        return [vectors[a:b].copy() for a, b in zip(first, last, strict=True)]

    async def _read_hits(self, chunks: Sequence[int]) -> list[Hit]:
        shown = ["chunk_id", "content_hash", "text", "title", "url", "heading_path"]
        if not chunks:
            return []
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


async def _read_kept(
    kept: OrderedDict[int, Result],
    chunks: Sequence[int],
    read: Callable[[Sequence[int]], Awaitable[list[Result]]],
) -> list[Result]:
    """Return what is kept of each chunk, after reading what is not; the oldest use is forgotten."""
    found = {chunk: kept[chunk] for chunk in chunks if chunk in kept}
    missing = [chunk for chunk in chunks if chunk not in found]
    if missing:
        found.update(zip(missing, await read(missing), strict=True))
    for chunk in chunks:
        kept[chunk] = found[chunk]
        kept.move_to_end(chunk)
    while len(kept) > CHUNKS_KEPT:
        kept.popitem(last=False)
    return [found[chunk] for chunk in chunks]


def split_terms(question: str) -> list[str]:
    """Return the words of a question as the index spells them: stemmed, without stop words."""
    import lancedb

    return [token.text for token in lancedb.tokenize(question, **ANALYSIS)]


def _check_k(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAXIMUM_K:
        raise InvalidInputError(
            "retrieving chunks",
            expected=f"k from 1 to {MAXIMUM_K}",
            found=repr(k),
            next_step="correct `retrieval.k` in the config, or the argument k",
        )
    return k


async def _read_first_windows(chunks: "AsyncTable") -> list[int]:
    found = await chunks.query().select(["chunk", "first_window"]).to_arrow()
    positions: list[int] = found.sort_by("chunk")["first_window"].to_pylist()
    return positions
