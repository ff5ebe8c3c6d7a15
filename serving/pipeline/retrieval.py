"""Hybrid retrieval over LanceDB: full text and vectors, fused by reciprocal rank.

Belongs here: building an index snapshot and asking it. Does not belong here: chunking, what a score
is good for (`router`), which snapshot is current (a release says so).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from serving.errors import IndexMismatchError, InvalidInputError
from serving.files import atomic_folder
from serving.hashing import content_hash
from serving.models.protocols import Embedder, Hit, Vectors
from serving.pipeline.chunking import CHUNKER_VERSION

if TYPE_CHECKING:
    from lancedb.table import AsyncTable

TABLE = "chunks"
CANDIDATES_PER_ARM = 24
"""How many hits full text and vectors each bring to the fusion; 24 = 8 times the default k."""


@dataclass(frozen=True, kw_only=True)
class IndexedChunk:
    """A chunk as the index stores it."""

    chunk_id: str
    content_hash: str
    title: str
    url: str
    heading_path: tuple[str, ...]
    text: str

    @property
    def search_text(self) -> str:
        """What is embedded and searched: a chunk is found by its headings too."""
        return f"{' > '.join(self.heading_path)}\n{self.text}"


def fingerprint_index(chunks: Sequence[IndexedChunk], embedder_fingerprint: str) -> str:
    """Return the identity of the index over these chunks: chunks + embedder + chunker version.

    Title and url are in it, since an answer shows them and no chunk's own hash covers them.
    """
    hashes = sorted((c.chunk_id, c.content_hash, c.title, c.url) for c in chunks)
    return content_hash(hashes, embedder_fingerprint, CHUNKER_VERSION)


def build_index(
    folder: Path, chunks: Sequence[IndexedChunk], vectors: Vectors, embedder_fingerprint: str
) -> str:
    """Write an index snapshot to `folder/<fingerprint>` and return the fingerprint.

    Args:
        folder: the parent of all snapshots; an existing equal snapshot is kept.
        chunks: n chunks.
        vectors: [n, dimension] unit vectors of their `search_text`.
        embedder_fingerprint: identity of the embedder that made them.

    Raises:
        InvalidInputError: there is nothing to index.
    """
    if not chunks:
        raise InvalidInputError(
            "building the index",
            expected="at least one chunk",
            found="0 chunks",
            next_step="check `product.corpus.path` and `include` in the config",
        )
    fingerprint = fingerprint_index(chunks, embedder_fingerprint)
    target = folder / fingerprint
    if not target.exists():
        with atomic_folder(target) as staging:
            _write_table(staging, chunks, vectors)
    return fingerprint


def _write_table(folder: Path, chunks: Sequence[IndexedChunk], vectors: Vectors) -> None:
    import lancedb
    import pyarrow as pa
    from lancedb.index import FTS

    columns: dict[str, Any] = {
        "chunk_id": [c.chunk_id for c in chunks],
        "content_hash": [c.content_hash for c in chunks],
        "title": [c.title for c in chunks],
        "url": [c.url for c in chunks],
        "heading_path": [list(c.heading_path) for c in chunks],
        "text": [c.text for c in chunks],
        "search_text": [c.search_text for c in chunks],
    }
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1), type=pa.float32())
    columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    table = lancedb.connect(folder).create_table(TABLE, pa.table(columns))
    table.create_index("search_text", config=FTS())
    table.wait_for_index(["search_text_idx"], timeout=timedelta(seconds=60))


class LanceRetriever:
    """Answers from one index snapshot. Safe for concurrent use on one event loop."""

    def __init__(
        self, table: "AsyncTable", *, index_fingerprint: str, embedder: Embedder, k: int
    ) -> None:
        self._table = table
        self._embedder = embedder
        self._k = k
        self.index_fingerprint = index_fingerprint

    @classmethod
    async def open(cls, folder: Path, *, fingerprint: str, embedder: Embedder, k: int) -> Self:
        """Open the snapshot `folder/<fingerprint>`.

        Raises:
            IndexMismatchError: no such snapshot, or the embedder's vectors are of another length.
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
        table = await (await lancedb.connect_async(str(snapshot))).open_table(TABLE)
        stored = (await table.schema()).field("vector").type.list_size
        if stored != embedder.dimension:
            raise IndexMismatchError(
                f"opening the index {fingerprint}",
                expected=f"vectors of length {stored}",
                found=f"an embedder of dimension {embedder.dimension}",
                next_step="rebuild the index with this embedder: `understudy run --select corpus`",
            )
        return cls(table, index_fingerprint=fingerprint, embedder=embedder, k=k)

    async def retrieve(self, question: str) -> tuple[Hit, ...]:
        """Return at most k hits, best first by reciprocal-rank fusion, scored 0-1 by cosine."""
        from lancedb.rerankers import RRFReranker

        vector = (await asyncio.to_thread(self._embedder.embed, [question]))[0]
        query = self._table.query().nearest_to(vector).distance_type("cosine")
        words = "".join(c if c.isalnum() else " " for c in question).strip()
        if words:
            # Without letters or digits there is nothing to search for by text.
            hybrid = query.nearest_to_text(words, columns="search_text")
            rows = await hybrid.rerank(RRFReranker()).limit(CANDIDATES_PER_ARM).to_list()
        else:
            rows = await query.limit(self._k).to_list()
        return tuple(_to_hit(row, vector) for row in rows[: self._k])


def _to_hit(row: dict[str, Any], question: Vectors) -> Hit:
    cosine = float(np.dot(np.asarray(row["vector"], dtype=np.float32), question))
    return Hit(
        chunk_id=row["chunk_id"],
        content_hash=row["content_hash"],
        text=row["text"],
        title=row["title"],
        url=row["url"],
        heading_path=tuple(row["heading_path"]),
        score=min(1.0, max(0.0, cosine)),
    )
