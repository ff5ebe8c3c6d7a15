"""The identity of an index: everything an answer shows of a chunk, and how it is found."""

from dataclasses import replace

import pytest

from serving.pipeline import indexing
from serving.pipeline.indexing import IndexedChunk, fingerprint_index

CHUNK = IndexedChunk(
    chunk_id="docs:a/1",
    content_hash="h1",
    title="A",
    url="https://old/a/",
    heading_path=("A",),
    text="Text.",
)


@pytest.mark.parametrize(
    "change", [{"content_hash": "h2"}, {"url": "https://new/a/"}, {"title": "B"}]
)
def test_what_an_answer_shows_is_part_of_the_identity(change):
    assert fingerprint_index([CHUNK], "e") != fingerprint_index([replace(CHUNK, **change)], "e")


def test_the_order_of_chunks_is_not():
    other = replace(CHUNK, chunk_id="docs:b/1")
    assert fingerprint_index([CHUNK, other], "e") == fingerprint_index([other, CHUNK], "e")
    assert fingerprint_index([CHUNK], "e") != fingerprint_index([CHUNK], "f")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RETRIEVAL_VERSION", "next"),
        ("CHUNKER_VERSION", "next"),
        ("ANALYSIS", {**indexing.ANALYSIS, "stem": False}),
    ],
)
def test_how_chunks_are_cut_analysed_and_fused_is_part_of_the_identity(monkeypatch, name, value):
    before = fingerprint_index([CHUNK], "e")
    monkeypatch.setattr(indexing, name, value)
    assert fingerprint_index([CHUNK], "e") != before
