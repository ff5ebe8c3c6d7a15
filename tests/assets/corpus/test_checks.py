"""The corpus checks fail on what they promise to catch."""

from collections.abc import Sequence

import polars as pl
import pytest

from assets.corpus.checks import no_chunk_exceeds_the_maximum
from assets.corpus.chunks import ChunkSizes, chunk_pages
from serving.pipeline import chunking
from serving.pipeline.chunking import parse_page
from serving.pipeline.packing import Packed

SIZES = ChunkSizes(target_tokens=12, maximum_tokens=24)
PROSE = "\n\n".join(f"The kiln of part {part} is set to {part}0 degrees." for part in range(9))
FENCE = "```\n" + "heat up\n" * 20 + "```"


def count_words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def cut(source: str) -> pl.DataFrame:
    page = parse_page("kiln.md", source, url_template="/{slug}/")
    return chunk_pages([page], sizes=SIZES, count_tokens=count_words)


@pytest.mark.parametrize(("source", "uncut"), [(PROSE, 0), (f"{PROSE}\n\n{FENCE}", 1)])
def test_chunks_within_the_maximum_and_uncut_blocks_pass(source, uncut):
    result = no_chunk_exceeds_the_maximum(cut(source), SIZES)
    assert result.passed
    assert result.metadata["uncut_block_count"].value == uncut


def test_an_ordinary_chunk_over_the_maximum_fails(monkeypatch):
    monkeypatch.setattr(
        chunking, "fill_chunks", lambda blocks, _: [Packed(blocks=tuple(blocks), cost=0)]
    )
    result = no_chunk_exceeds_the_maximum(cut(PROSE), SIZES)
    assert not result.passed
    assert result.metadata["too_large"].value == ["docs:kiln/1"]
