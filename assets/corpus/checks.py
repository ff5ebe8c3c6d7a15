"""What the corpus promises."""

import dagster as dg
import polars as pl

from assets import keys
from assets.corpus.chunks import ChunkSizes
from serving.aio import run_blocking
from serving.home import Home
from serving.models.protocols import Embedder
from serving.pipeline.retrieval import LanceRetriever


@dg.asset_check(asset=keys.PAGES, blocking=True)
def every_page_has_text(pages: pl.DataFrame) -> dg.AssetCheckResult:
    """No page is empty, and no two pages share a slug."""
    empty = pages.filter(pl.col("source").str.strip_chars() == "")["path"].to_list()
    twice = pages.filter(pl.col("slug").is_duplicated())["path"].to_list()
    return dg.AssetCheckResult(
        passed=not empty and not twice,
        metadata={"page_count": pages.height, "empty_pages": empty, "pages_sharing_a_slug": twice},
    )


@dg.asset_check(asset=keys.CHUNKS, blocking=True)
def chunk_ids_are_unique(chunks: pl.DataFrame) -> dg.AssetCheckResult:
    """Every citation id names one chunk."""
    twice = chunks.filter(pl.col("chunk_id").is_duplicated())["chunk_id"].unique().to_list()
    return dg.AssetCheckResult(
        passed=not twice, metadata={"chunk_count": chunks.height, "duplicated_ids": twice[:20]}
    )


@dg.asset_check(asset=keys.CHUNKS, blocking=True)
def no_chunk_exceeds_the_maximum(
    chunks: pl.DataFrame, chunk_sizes: dg.ResourceParam[ChunkSizes]
) -> dg.AssetCheckResult:
    """No chunk exceeds the maximum, save a single block that must not be cut (a code fence)."""
    too_large = chunks.filter(
        (pl.col("token_count") > chunk_sizes.maximum_tokens) & ~pl.col("is_oversized")
    )
    return dg.AssetCheckResult(
        passed=too_large.is_empty(),
        metadata={
            "maximum_tokens": chunk_sizes.maximum_tokens,
            "largest_tokens": int(chunks["token_count"].max() or 0),
            "uncut_block_count": int(chunks["is_oversized"].sum()),
            "too_large": too_large["chunk_id"].to_list()[:20],
        },
    )


@dg.asset_check(
    asset=keys.VECTOR_INDEX,
    additional_ins={"chunks": dg.AssetIn(key=keys.CHUNKS)},
    blocking=True,
)
def index_finds_every_page(
    vector_index: pl.DataFrame,
    chunks: pl.DataFrame,
    embedder: dg.ResourceParam[Embedder],
    home: dg.ResourceParam[Home],
) -> dg.AssetCheckResult:
    """The index holds every chunk, and a chunk's own headings and text retrieve it (16 samples)."""
    row = vector_index.row(0, named=True)
    sample = chunks.sample(min(16, chunks.height), seed=7)

    async def find_lost() -> list[str]:
        retriever = await LanceRetriever.open(
            home.index, fingerprint=row["index_fingerprint"], embedder=embedder, k=8
        )
        lost = []
        for chunk_id, path, text in sample.select("chunk_id", "heading_path", "text").iter_rows():
            hits = await retriever.retrieve(f"{' > '.join(path)}\n{text}")
            if chunk_id not in {hit.chunk_id for hit in hits}:
                lost.append(chunk_id)
        return lost

    lost = run_blocking(find_lost())
    return dg.AssetCheckResult(
        passed=row["chunk_count"] == chunks.height and not lost,
        metadata={
            "indexed_count": row["chunk_count"],
            "chunk_count": chunks.height,
            "sampled_count": sample.height,
            "not_found": lost,
        },
    )
