"""Index snapshots: chunks and their vectors, written once in LanceDB under a fingerprint.

Belongs here: what is stored of a chunk, which texts are embedded for it, how words are analysed,
the identity of a snapshot. Does not belong here: asking a snapshot (`retrieval`), ordering what it
finds (`fusion`), chunking, which snapshot is current (a release says so).
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.errors import InvalidInputError
from serving.files import atomic_folder
from serving.hashing import content_hash
from serving.models.protocols import Vectors
from serving.pipeline.chunking import CHUNKER_VERSION

if TYPE_CHECKING:
    import pyarrow as pa

RETRIEVAL_VERSION = "3"
"""Raise it with every change to the layout, the windows or the fusion: answers go stale with it."""

CHUNKS, WINDOWS = "chunks", "windows"
ANALYSIS: dict[str, Any] = {
    "base_tokenizer": "simple",
    "language": "English",
    "lower_case": True,
    "stem": True,
    "remove_stop_words": True,
    "ascii_folding": True,
}
"""How words are made of text, by LanceDB's analyser, for the index and for a question alike. The
simple tokenizer splits at everything but letters and digits, so `max_tokens` is two words."""

BATCH_ROWS = 4096
SCANNED_VECTORS = 1_000  # up to here they are read from the file for every question
EXACT_SEARCH_LIMIT = 20_000
"""Up to this many vectors are one partition, which is held in memory and compared one by one: three
times as fast as reading them, and exact. More are divided, and the nearest partitions are read."""
FTS_BUILD_MEMORY_MIB = 512


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
    def page(self) -> str:
        """The slug of its page: `how-to/install` of `docs:how-to/install/3`."""
        return self.chunk_id.removeprefix("docs:").rpartition("/")[0]

    @property
    def headings(self) -> str:
        """The heading path as one line."""
        return " > ".join(self.heading_path)

    @property
    def search_text(self) -> str:
        """What is searched by words: a chunk is found by its headings too."""
        return f"{self.headings}\n{self.text}"


@dataclass(frozen=True, kw_only=True)
class Window:
    """A text that is embedded for a chunk: all of it, or a part that the embedder reads whole."""

    chunk: int
    """Position of the chunk among the chunks of the index, from 0."""
    text: str


def plan_windows(
    chunks: Sequence[IndexedChunk],
    *,
    maximum_tokens: int,
    count_tokens: Callable[[Sequence[str]], list[int]],
) -> tuple[Window, ...]:
    """Return what must be embedded for these chunks, in their order, at least one text each.

    An embedder ignores what lies past its maximum, so a longer chunk is cut at white space into
    equal windows that fit, each under the chunk's headings. A single word past the maximum is left
    whole.

    Args:
        chunks: the chunks of the index.
        maximum_tokens: longest text that the embedder reads whole.
        count_tokens: the embedder's tokenizer, special tokens excluded.
    """
    counts = count_tokens([chunk.search_text for chunk in chunks])
    windows: list[Window] = []
    for position, (chunk, count) in enumerate(zip(chunks, counts, strict=True)):
        texts = (
            [chunk.search_text]
            if count <= maximum_tokens
            else _cut(chunk, maximum_tokens, count_tokens)
        )
        windows += [Window(chunk=position, text=text) for text in texts]
    return tuple(windows)


def _cut(
    chunk: IndexedChunk, limit: int, count_tokens: Callable[[Sequence[str]], list[int]]
) -> list[str]:
    words = re.findall(r"\s*\S+", chunk.text)
    heading, *counts = count_tokens([chunk.headings, *words])
    # Headings that would fill half a window say too little about what stands in it.
    prefix, room = (f"{chunk.headings}\n", limit - heading) if heading * 2 < limit else ("", limit)
    share = sum(counts) / max(1, math.ceil(sum(counts) / room))
    cut: list[list[str]] = []
    filled = room + 1
    for word, count in zip(words, counts, strict=True):
        if filled + count > room or filled >= share:
            cut.append([])
            filled = 0
        cut[-1].append(word)
        filled += count
    return [prefix + "".join(part).strip() for part in cut] or [chunk.search_text]


def fingerprint_index(chunks: Sequence[IndexedChunk], embedder_fingerprint: str) -> str:
    """Return the identity of the index over these chunks, and of how it is searched.

    It covers chunks, embedder, chunker, word analysis, windows and fusion. Title and url are in it,
    since an answer shows them and no chunk's own hash covers them.
    """
    hashes = sorted((c.chunk_id, c.content_hash, c.title, c.url) for c in chunks)
    versions = (CHUNKER_VERSION, RETRIEVAL_VERSION, ANALYSIS)
    return content_hash(hashes, embedder_fingerprint, *versions)


def build_index(
    folder: Path,
    chunks: Sequence[IndexedChunk],
    windows: Sequence[Window],
    vectors: Vectors,
    embedder_fingerprint: str,
) -> str:
    """Write an index snapshot to `folder/<fingerprint>` and return the fingerprint.

    Beside its arguments it holds one batch of rows and LanceDB's bounded build buffers. The vectors
    may be a memory map. A snapshot appears whole or not at all, and is never changed: one that is
    being asked stays as it is while the next is built.

    Args:
        folder: the parent of all snapshots; an existing equal snapshot is kept.
        chunks: n chunks.
        windows: what `plan_windows` planned for them.
        vectors: [len(windows), dimension] unit vectors of the windows' texts.
        embedder_fingerprint: identity of the embedder that made them.

    Raises:
        InvalidInputError: there is nothing to index, or windows and vectors do not fit the chunks.
    """
    first_windows = _find_first_windows(chunks, windows, vectors)
    fingerprint = fingerprint_index(chunks, embedder_fingerprint)
    target = folder / fingerprint
    if not target.exists():
        with atomic_folder(target) as staging:
            _write_tables(staging, chunks, windows, vectors, first_windows)
    return fingerprint


def _find_first_windows(
    chunks: Sequence[IndexedChunk], windows: Sequence[Window], vectors: Vectors
) -> list[int]:
    """Return at which position the windows of each chunk begin."""
    if not chunks:
        raise InvalidInputError(
            "building the index",
            expected="at least one chunk",
            found="0 chunks",
            next_step="check `product.corpus.path` and `include` in the config",
        )
    positions = np.fromiter((window.chunk for window in windows), dtype=np.int64)
    steps = np.diff(positions, prepend=-1)
    is_complete = len(positions) and positions[-1] == len(chunks) - 1
    if not is_complete or not np.isin(steps, (0, 1)).all() or len(vectors) != len(windows):
        raise InvalidInputError(
            "building the index",
            expected=f"windows of all {len(chunks)} chunks in their order, and a vector for each",
            found=f"{len(windows)} windows, {len(vectors)} vectors",
            next_step="embed the texts that `plan_windows` returns for these very chunks",
        )
    starts: list[int] = np.flatnonzero(steps).tolist()
    return starts


def _write_tables(
    folder: Path,
    chunks: Sequence[IndexedChunk],
    windows: Sequence[Window],
    vectors: Vectors,
    first_windows: Sequence[int],
) -> None:
    import lancedb
    from lancedb.index import FTS, IvfFlat

    database = lancedb.connect(folder)
    batches = _batch_chunks(chunks, first_windows)
    table = database.create_table(CHUNKS, batches, schema=_chunk_schema())
    table.create_index(
        "search_text", config=FTS(**ANALYSIS, memory_limit=FTS_BUILD_MEMORY_MIB, num_workers=1)
    )
    table.wait_for_index(["search_text_idx"], timeout=timedelta(hours=1))
    schema = _window_schema(vectors.shape[1])
    table = database.create_table(WINDOWS, _batch_windows(chunks, windows, vectors), schema=schema)
    if len(windows) > SCANNED_VECTORS:
        partitions = 1 if len(windows) <= EXACT_SEARCH_LIMIT else None  # None: the square root
        config = IvfFlat(distance_type="cosine", num_partitions=partitions)
        table.create_index("vector", config=config)
        table.wait_for_index(["vector_idx"], timeout=timedelta(hours=1))


def _chunk_schema() -> "pa.Schema":
    import pyarrow as pa

    texts = ("chunk_id", "content_hash", "title", "url", "page", "text", "search_text")
    return pa.schema(
        [
            ("chunk", pa.int64()),
            *((name, pa.string()) for name in texts),
            ("heading_path", pa.list_(pa.string())),
            ("first_window", pa.int64()),  # its windows are consecutive rows from there on
        ]
    )


def _batch_chunks(
    chunks: Sequence[IndexedChunk], first_windows: Sequence[int]
) -> Iterator["pa.RecordBatch"]:
    import pyarrow as pa

    schema = _chunk_schema()
    for start in range(0, len(chunks), BATCH_ROWS):
        rows = [
            {
                "chunk": position,
                **{name: getattr(chunks[position], name) for name in schema.names[1:9]},
                "first_window": first_windows[position],
            }
            for position in range(start, min(start + BATCH_ROWS, len(chunks)))
        ]
        yield pa.RecordBatch.from_pylist(rows, schema=schema)


def _window_schema(dimension: int) -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        [
            ("chunk", pa.int64()),
            ("page", pa.string()),  # page and headings are here too: filters apply before a search
            ("heading_path", pa.list_(pa.string())),
            ("vector", pa.list_(pa.float32(), dimension)),
        ]
    )


def _batch_windows(
    chunks: Sequence[IndexedChunk], windows: Sequence[Window], vectors: Vectors
) -> Iterator["pa.RecordBatch"]:
    import pyarrow as pa

    schema = _window_schema(vectors.shape[1])
    for start in range(0, len(windows), BATCH_ROWS):
        some = [window.chunk for window in windows[start : start + BATCH_ROWS]]
        flat = np.ascontiguousarray(vectors[start : start + BATCH_ROWS], dtype=np.float32)
        columns = [
            pa.array(some, type=pa.int64()),
            pa.array([chunks[position].page for position in some], type=pa.string()),
            pa.array([chunks[position].heading_path for position in some], type=schema.types[2]),
            pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), vectors.shape[1]),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)
