"""Corpus assets: pages -> chunks -> vector_index.

Belongs here: declarations. Does not belong here: parsing, chunking, indexing (`serving/pipeline`).
"""

from typing import Protocol

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.corpus.chunks import (
    ChunkSizes,
    chunk_pages,
    draw_sizes,
    read_indexed_chunks,
    read_pages,
    tabulate_pages,
)
from assets.corpus.snapshots import mark_as_current
from assets.reuse import count_reuse
from serving.home import Home
from serving.models.protocols import Embedder
from serving.pipeline.chunking import CHUNKER_VERSION, Page
from serving.pipeline.indexing import (
    RETRIEVAL_VERSION,
    build_index,
    fingerprint_index,
    plan_index,
)


class Corpus(Protocol):
    """The folder of documentation files."""

    def fingerprint(self) -> str:
        """Return the identity of all files."""
        ...

    def read_pages(self) -> list[Page]:
        """Parse every page."""
        ...


@dg.observable_source_asset(key=keys.SOURCE_FILES)
def source_files(corpus: dg.ResourceParam[Corpus]) -> dg.DataVersion:
    """The documentation files as they lie on disk; their version is a hash of names and bytes."""
    return dg.DataVersion(corpus.fingerprint())


@dg.asset(key=keys.PAGES, deps=[keys.SOURCE_FILES], kinds={"markdown", "polars"}, code_version="2")
def pages(corpus: dg.ResourceParam[Corpus]) -> dg.MaterializeResult[pl.DataFrame]:
    """One row per documentation page, with its raw source and content hash."""
    revision = corpus.fingerprint()
    frame = tabulate_pages(corpus.read_pages(), revision)
    return dg.MaterializeResult(
        value=frame, metadata={"page_count": frame.height, "source_revision": revision}
    )


@dg.asset(
    key=keys.CHUNKS,
    ins={"pages": dg.AssetIn(key=keys.PAGES)},
    kinds={"polars"},
    code_version=f"1+chunker.{CHUNKER_VERSION}",
)
def chunks(
    pages: pl.DataFrame,
    embedder: dg.ResourceParam[Embedder],
    chunk_sizes: dg.ResourceParam[ChunkSizes],
) -> dg.MaterializeResult[pl.DataFrame]:
    """The pages cut along their headings into pieces an answer can cite."""
    frame = chunk_pages(read_pages(pages), sizes=chunk_sizes, count_tokens=embedder.count_tokens)
    tokens = frame["token_count"]
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "chunk_count": frame.height,
            "median_tokens": float(tokens.median() or 0),
            "largest_tokens": int(tokens.max() or 0),
            "oversized_count": int(frame["is_oversized"].sum()),
            "token_histogram": dg.MetadataValue.md(draw_sizes(frame, sizes=chunk_sizes)),
        },
    )


@dg.asset(
    key=keys.VECTOR_INDEX,
    ins={"chunks": dg.AssetIn(key=keys.CHUNKS)},
    kinds={"lancedb"},
    code_version=f"2+chunker.{CHUNKER_VERSION}+retrieval.{RETRIEVAL_VERSION}",
)
def vector_index(
    chunks: pl.DataFrame, embedder: dg.ResourceParam[Embedder], home: dg.ResourceParam[Home]
) -> dg.MaterializeResult[pl.DataFrame]:
    """The LanceDB snapshot (vectors and full text) that answers questions, by its fingerprint."""
    indexed = read_indexed_chunks(chunks)
    plan = plan_index(
        indexed, maximum_tokens=embedder.maximum_tokens, count_tokens=embedder.count_tokens
    )
    reuse = count_reuse(embedder, plan.texts)
    vectors = embedder.embed(plan.texts)
    mark_as_current(home.index / fingerprint_index(indexed, embedder.fingerprint))
    fingerprint = build_index(home.index, indexed, plan, vectors, embedder.fingerprint)
    row = {
        "index_fingerprint": fingerprint,
        "embedder_fingerprint": embedder.fingerprint,
        "chunk_count": len(indexed),
        "dimension": int(vectors.shape[1]),
        "uri": f"index/{fingerprint}",
    }
    return dg.MaterializeResult(
        value=pl.DataFrame([row], schema=tables.VECTOR_INDEX),
        metadata={**dict(row), "window_count": len(plan.windows), **reuse},
    )
