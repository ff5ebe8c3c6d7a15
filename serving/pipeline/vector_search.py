"""The vectors of a snapshot: searched in memory where they fit, by LanceDB where they do not.

Belongs here: which chunks lie nearest to a question, reading their vectors and their pages'. Does
not belong here: how a snapshot is written (`indexing`), how nearness becomes relevance (`fusion`).
"""

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from serving.models.protocols import Vectors
from serving.pipeline.fusion import compare
from serving.pipeline.index_tables import is_held_in_memory
from serving.pipeline.kept import Kept

if TYPE_CHECKING:
    from lancedb.table import AsyncTable

Positions = npt.NDArray[np.int64]

PARTITIONS_ASKED = 32
"""How many partitions of an approximate vector index are read at least, and more where a filter
leaves too little in them."""
CHUNKS_KEPT = 16_384
"""Chunks, and pages, of which what was read stays in memory, the last used ones: a snapshot never
changes, and reading candidates takes longer than finding them."""
BLOCK_ROWS = 8_192  # of what is read at once while an index is opened


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Where the vectors of n chunks stand: consecutive windows, and one page of several chunks."""

    first_windows: Positions
    """[n + 1]; the last is the number of windows."""
    pages: Positions
    """[n]"""

    @property
    def chunk_count(self) -> int:
        """How many chunks there are."""
        return len(self.pages)


class VectorIndex(Protocol):
    """Finds chunks by their vectors, and reads these."""

    async def search(self, question: Vectors, depth: int, condition: str | None) -> list[int]:
        """Return at most `depth` chunks by their nearest window, best first."""
        ...

    async def read(self, chunks: Sequence[int]) -> tuple[list[Vectors], Vectors]:
        """Return [its windows, dimension] of each chunk, and [chunks, dimension] of their pages."""
        ...


class VectorsInMemory:
    """All vectors of a snapshot, compared one by one: exact."""

    def __init__(
        self,
        chunks: "AsyncTable",
        layout: Layout,
        *,
        windows: Vectors,
        pages: Vectors,
        threads: Executor,
    ) -> None:
        self._chunks, self._layout, self._threads = chunks, layout, threads
        self._windows, self._pages = windows, pages

    async def search(self, question: Vectors, depth: int, condition: str | None) -> list[int]:
        """Return at most `depth` chunks by their nearest window, best first."""
        allowed = None if condition is None else await self._find_allowed(condition)
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._find_nearest, question, depth, allowed
        )

    async def read(self, chunks: Sequence[int]) -> tuple[list[Vectors], Vectors]:
        """Return [its windows, dimension] of each chunk, and [chunks, dimension] of their pages."""
        first, at = self._layout.first_windows, np.asarray(chunks, dtype=np.int64)
        spans = zip(first[at].tolist(), first[at + 1].tolist(), strict=True)
        windows = [self._windows[begin:end] for begin, end in spans]
        return windows, self._pages[self._layout.pages[at]]

    async def _find_allowed(self, condition: str) -> Positions:
        found = await self._chunks.query().where(condition).select(["chunk"]).to_arrow()
        return np.sort(found["chunk"].to_numpy())

    def _find_nearest(self, question: Vectors, depth: int, allowed: Positions | None) -> list[int]:
        by_window = compare(self._windows, question)
        cosines = np.maximum.reduceat(by_window, self._layout.first_windows[:-1])
        chunks = np.arange(len(cosines)) if allowed is None else allowed
        among = cosines[chunks]
        if len(among) > depth:
            # All that are as near as the last one: of equals the first of the corpus stay.
            is_near = among >= np.partition(among, -depth)[-depth]
            chunks, among = chunks[is_near], among[is_near]
        nearest: list[int] = chunks[np.argsort(-among, kind="stable")][:depth].tolist()
        return nearest


class VectorsOnDisk:
    """Vectors that stay in LanceDB: approximate, as near as the partitions asked for are."""

    def __init__(self, windows: "AsyncTable", pages: "AsyncTable", layout: Layout) -> None:
        self._windows, self._pages, self._layout = windows, pages, layout
        self._kept_windows = Kept(self._read_windows, limit=CHUNKS_KEPT)
        self._kept_pages = Kept(self._read_pages, limit=CHUNKS_KEPT)

    async def search(self, question: Vectors, depth: int, condition: str | None) -> list[int]:
        """Return at most `depth` chunks by their nearest window, best first."""
        query = self._windows.query().nearest_to(question).distance_type("cosine")
        query = query.maximum_nprobes(0).minimum_nprobes(PARTITIONS_ASKED)  # 0: no maximum
        query = query.select(["chunk", "_distance"])
        query = query.where(condition) if condition else query
        # A chunk takes as many places in this list as it has windows among the nearest: the mean is
        # a first guess, which one long chunk can fill alone.
        limit = depth * math.ceil(self._layout.first_windows[-1] / self._layout.chunk_count)
        while True:
            rows = await query.limit(limit).to_list()
            best_first = sorted(rows, key=lambda row: (row["_distance"], row["chunk"]))
            nearest = list(dict.fromkeys(row["chunk"] for row in best_first))
            if len(nearest) >= depth or len(rows) < limit:
                return nearest[:depth]
            limit *= 2

    async def read(self, chunks: Sequence[int]) -> tuple[list[Vectors], Vectors]:
        """Return [its windows, dimension] of each chunk, and [chunks, dimension] of their pages."""
        windows, pages = await asyncio.gather(
            self._kept_windows.get(chunks),
            self._kept_pages.get(self._layout.pages[chunks].tolist()),
        )
        return windows, np.array(pages)

    async def _read_windows(self, chunks: Sequence[int]) -> list[Vectors]:
        first = self._layout.first_windows
        spans = [range(first[chunk], first[chunk + 1]) for chunk in chunks]
        found = iter(await _read_rows(self._windows, [row for span in spans for row in span]))
        return [np.stack([next(found) for _ in span]) for span in spans]

    async def _read_pages(self, pages: Sequence[int]) -> list[Vectors]:
        # Copies: a view that is kept would keep the vectors of all that was read with it.
        return [vector.copy() for vector in await _read_rows(self._pages, pages)]


async def open_vectors(
    chunks: "AsyncTable", windows: "AsyncTable", pages: "AsyncTable", threads: Executor
) -> VectorIndex:
    """Return the vectors of a snapshot, in memory where they fit."""
    layout = await _read_layout(chunks, windows)
    dimension = (await windows.schema()).field("vector").type.list_size
    if not is_held_in_memory(layout.first_windows[-1], dimension):
        return VectorsOnDisk(windows, pages, layout)
    loaded, of_pages = await _load(windows), await _load(pages)
    return VectorsInMemory(chunks, layout, windows=loaded, pages=of_pages, threads=threads)


async def _read_layout(chunks: "AsyncTable", windows: "AsyncTable") -> Layout:
    found = await chunks.query().select(["chunk", "first_window", "page_number"]).to_arrow()
    found = found.sort_by("chunk")
    count = await windows.count_rows()
    return Layout(
        first_windows=np.append(found["first_window"].to_numpy(), count),
        pages=found["page_number"].to_numpy(),
    )


async def _load(table: "AsyncTable") -> Vectors:
    schema, count = await table.schema(), await table.count_rows()
    vectors = np.empty((count, schema.field("vector").type.list_size), dtype=np.float32)
    for start in range(0, count, BLOCK_ROWS):
        rows = range(start, min(start + BLOCK_ROWS, count))
        vectors[start : rows.stop] = await _read_rows(table, rows)
    return vectors


async def _read_rows(table: "AsyncTable", rows: Sequence[int]) -> Vectors:
    """Return [len(rows), dimension] vectors of these rows, each asked for once, in their order."""
    found = await table.take_offsets(list(rows)).select(["row", "vector"]).to_arrow()
    flat = found["vector"].combine_chunks().flatten().to_numpy()
    vectors: Vectors = flat.reshape(len(found), -1)
    # What comes back stands in any order: the table says which row each is.
    order = np.argsort(found["row"].to_numpy())
    places = np.searchsorted(found["row"].to_numpy(), np.asarray(rows), sorter=order)
    return vectors[order[places]]
