"""From pages to chunks to index rows, as frames.

Belongs here: the shape of the corpus tables, and their chart. Does not belong here: chunking itself
and the index, which production shares (`serving/pipeline`).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import polars as pl

from assets import tables
from assets.charts import BLUE, ORANGE, draw_histogram, embed_png
from serving.pipeline.chunking import Page, chunk_page
from serving.pipeline.indexing import IndexedChunk


@dataclass(frozen=True, kw_only=True)
class ChunkSizes:
    """Target and hard maximum of a chunk, in tokens of the embedder."""

    target_tokens: int
    maximum_tokens: int


def tabulate_pages(pages: Sequence[Page], source_revision: str) -> pl.DataFrame:
    """Return the pages table."""
    rows = [{**asdict(page), "source_revision": source_revision} for page in pages]
    return pl.DataFrame(rows, schema_overrides=tables.PAGES).select(tables.PAGES.names())


def read_pages(pages: pl.DataFrame) -> list[Page]:
    """Return the pages of a pages table."""
    columns = ["page_id", "path", "slug", "title", "url", "source", "content_hash"]
    return [Page(**row) for row in pages.select(columns).iter_rows(named=True)]


def chunk_pages(
    pages: Sequence[Page], *, sizes: ChunkSizes, count_tokens: Callable[[Sequence[str]], list[int]]
) -> pl.DataFrame:
    """Return the chunks table: every page cut by the production chunker."""
    rows = [
        {**asdict(chunk), "title": page.title, "heading_path": list(chunk.heading_path)}
        for page in pages
        for chunk in chunk_page(
            page,
            target_tokens=sizes.target_tokens,
            maximum_tokens=sizes.maximum_tokens,
            count_tokens=count_tokens,
        )
    ]
    return pl.DataFrame(rows, schema=tables.CHUNKS)


def draw_sizes(chunks: pl.DataFrame, *, sizes: ChunkSizes) -> str:
    """Return a histogram of tokens per chunk as Markdown, the hard maximum marked.

    Chunks past twice the maximum (uncut blocks of code) are counted in the last bar.
    """
    largest = 2 * sizes.maximum_tokens
    groups = {
        name: chunks.filter(pl.col("is_oversized") == flag)["token_count"].to_list()
        for name, flag in (("within the maximum", False), ("a block that is not cut", True))
    }
    png = draw_histogram(
        groups,
        colours=[BLUE, ORANGE],
        edges=np.linspace(0, largest, 37),
        limit=sizes.maximum_tokens,
        title="Tokens per chunk",
        axis_label=f"tokens of the embedder (the last bar: {largest} and more)",
    )
    return embed_png(png, alt="Histogram of tokens per chunk")


def read_indexed_chunks(chunks: pl.DataFrame) -> list[IndexedChunk]:
    """Return what the index stores of each chunk."""
    columns = ["chunk_id", "content_hash", "title", "url", "heading_path", "text"]
    return [
        IndexedChunk(**{**row, "heading_path": tuple(row["heading_path"])})
        for row in chunks.select(columns).iter_rows(named=True)
    ]
