"""The tables of an index snapshot in LanceDB: what their columns mean, and writing them.

Belongs here: schemas, batches, search indexes, what fits in memory. Does not belong here: what is
indexed and under which fingerprint (`indexing`), reading (`retrieval`, `word_search`,
`vector_search`).
"""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.models.protocols import Vectors

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.table import Table

    from serving.pipeline.indexing import Cut, IndexedChunk, IndexPlan

CHUNKS, WINDOWS, PARTS, PAGES = "chunks", "windows", "parts", "pages"
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
VECTORS_IN_MEMORY_MIB = 256
"""Vectors up to this size are held in memory and compared one by one, which is exact: 170,000 of
MiniLM's, in the time that memory takes to be read once. More are divided by LanceDB, which reads
the partitions nearest to a question."""
FTS_BUILD_MEMORY_MIB = 512
PARTS_PER_CHUNK = 1.1
"""Below it parts are not searched by words: a few long chunks are not worth a second search in each
question. Of the chunks as cut by default, nDCG@8 is the same with it and without."""


def is_held_in_memory(window_count: int, dimension: int) -> bool:
    """Return whether so many vectors are compared one by one, rather than by partitions."""
    return window_count * dimension * np.float32().nbytes <= VECTORS_IN_MEMORY_MIB * 2**20


def write_tables(
    folder: Path, chunks: Sequence["IndexedChunk"], plan: "IndexPlan", vectors: Vectors
) -> None:
    """Write the tables of a snapshot, and build its search indexes, in an empty folder.

    Parts are searched by words where chunks have several; elsewhere they would be the chunks again.
    """
    import lancedb
    from lancedb.index import IvfFlat

    database = lancedb.connect(folder)
    windows, parts, dimension = plan.windows, plan.parts, vectors.shape[1]
    names = [chunk.page for chunk in chunks]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    pages = [numbers[name] for name in names]
    firsts = np.flatnonzero(np.diff(np.array(windows.chunks), prepend=-1)).tolist()
    batches = _batch_chunks(chunks, firsts, pages)
    _index_words(database.create_table(CHUNKS, batches, schema=_chunk_schema()))
    if len(parts) > PARTS_PER_CHUNK * len(chunks):
        batches = _batch_parts(chunks, plan)
        _index_words(database.create_table(PARTS, batches, schema=_part_schema()))
    of_pages = _find_page_vectors([pages[chunk] for chunk in parts.chunks], parts.texts, vectors)
    database.create_table(PAGES, _batch_pages(of_pages), schema=_page_schema(dimension))
    table = database.create_table(
        WINDOWS, _batch_windows(chunks, windows, vectors), schema=_window_schema(dimension)
    )
    if not is_held_in_memory(len(windows), dimension):
        table.create_index("vector", config=IvfFlat(distance_type="cosine"))
        table.wait_for_index(["vector_idx"], timeout=timedelta(hours=1))


def _index_words(table: "Table") -> None:
    from lancedb.index import FTS

    table.create_index(
        "search_text", config=FTS(**ANALYSIS, memory_limit=FTS_BUILD_MEMORY_MIB, num_workers=1)
    )
    table.wait_for_index(["search_text_idx"], timeout=timedelta(hours=1))


def _find_page_vectors(pages: Sequence[int], texts: Sequence[int], vectors: Vectors) -> Vectors:
    """Return the direction of the mean of each page's parts: [pages, dimension] unit vectors.

    Args:
        pages: the page of each part, from 0, none left out.
        texts: the row of each part among the vectors.
        vectors: [texts, dimension].
    """
    owners, rows = np.asarray(pages), np.asarray(texts)
    sums = np.zeros((owners.max() + 1, vectors.shape[1]))
    for start in range(0, len(owners), BATCH_ROWS):
        some = slice(start, start + BATCH_ROWS)
        np.add.at(sums, owners[some], vectors[rows[some]])
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    # Parts that cancel out have no direction: such a page is near to nothing.
    directions: Vectors = (sums / np.maximum(lengths, np.finfo(np.float32).tiny)).astype("float32")
    return directions


def _chunk_schema() -> "pa.Schema":
    import pyarrow as pa

    texts = ("chunk_id", "content_hash", "title", "url", "page", "text", "search_text")
    return pa.schema(
        [
            ("chunk", pa.int64()),
            *((name, pa.string()) for name in texts),
            ("heading_path", pa.list_(pa.string())),
            ("first_window", pa.int64()),  # its windows are consecutive rows from there on
            ("page_number", pa.int64()),  # the row of its page's vector
        ]
    )


def _batch_chunks(
    chunks: Sequence["IndexedChunk"], first_windows: Sequence[int], pages: Sequence[int]
) -> Iterator["pa.RecordBatch"]:
    import pyarrow as pa

    schema = _chunk_schema()
    for start in range(0, len(chunks), BATCH_ROWS):
        rows = [
            {
                "chunk": position,
                **{name: getattr(chunks[position], name) for name in schema.names[1:9]},
                "first_window": first_windows[position],
                "page_number": pages[position],
            }
            for position in range(start, min(start + BATCH_ROWS, len(chunks)))
        ]
        yield pa.RecordBatch.from_pylist(rows, schema=schema)


def _window_schema(dimension: int) -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        [
            ("row", pa.int64()),
            *_owner_fields(),
            ("vector", pa.list_(pa.float32(), dimension)),
        ]
    )


def _batch_windows(
    chunks: Sequence["IndexedChunk"], windows: "Cut", vectors: Vectors
) -> Iterator["pa.RecordBatch"]:
    import pyarrow as pa

    schema = _window_schema(vectors.shape[1])
    for start in range(0, len(windows), BATCH_ROWS):
        some = windows.chunks[start : start + BATCH_ROWS]
        columns = [
            pa.array(range(start, start + len(some)), type=pa.int64()),
            *_describe_owners([chunks[position] for position in some], some),
            _pack(vectors[list(windows.texts[start : start + BATCH_ROWS])]),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _part_schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema([*_owner_fields(), ("search_text", pa.string())])


def _batch_parts(chunks: Sequence["IndexedChunk"], plan: "IndexPlan") -> Iterator["pa.RecordBatch"]:
    import pyarrow as pa

    for start in range(0, len(plan.parts), BATCH_ROWS):
        some = plan.parts.chunks[start : start + BATCH_ROWS]
        texts = plan.parts.texts[start : start + BATCH_ROWS]
        columns = [
            *_describe_owners([chunks[position] for position in some], some),
            pa.array([plan.texts[text] for text in texts], type=pa.string()),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=_part_schema())


def _owner_fields() -> list[tuple[str, "pa.DataType"]]:
    """Return what is said of the chunk of a text: filters apply before a search."""
    import pyarrow as pa

    return [("chunk", pa.int64()), ("page", pa.string()), ("heading_path", pa.list_(pa.string()))]


def _describe_owners(
    owners: Sequence["IndexedChunk"], positions: Sequence[int]
) -> list["pa.Array"]:
    import pyarrow as pa

    values = (positions, [chunk.page for chunk in owners], [chunk.heading_path for chunk in owners])
    return [pa.array(v, type=kind) for v, (_, kind) in zip(values, _owner_fields(), strict=True)]


def _page_schema(dimension: int) -> "pa.Schema":
    import pyarrow as pa

    return pa.schema([("row", pa.int64()), ("vector", pa.list_(pa.float32(), dimension))])


def _batch_pages(vectors: Vectors) -> Iterator["pa.RecordBatch"]:
    import pyarrow as pa

    schema = _page_schema(vectors.shape[1])
    for start in range(0, len(vectors), BATCH_ROWS):
        some = vectors[start : start + BATCH_ROWS]
        rows = pa.array(range(start, start + len(some)), type=pa.int64())
        yield pa.RecordBatch.from_arrays([rows, _pack(some)], schema=schema)


def _pack(vectors: Vectors) -> "pa.FixedSizeListArray":
    import pyarrow as pa

    flat = np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), vectors.shape[1])
