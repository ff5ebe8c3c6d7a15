"""The layouts that the window size is chosen on."""

from bench.question_sets import QuestionSet
from bench.window_size import LAYOUTS, join_chunks
from serving.pipeline.indexing import IndexedChunk


def make_chunk(page: str, number: int, *headings: str) -> IndexedChunk:
    return IndexedChunk(
        chunk_id=f"docs:{page}/{number}", content_hash="h", title=page, url=f"/{page}/",
        heading_path=(page, *headings), text=f"{page} {number}",
    )  # fmt: skip


def test_chunks_are_joined_by_page_and_heading_and_keep_every_text():
    chunks = [
        make_chunk("a", 1),
        make_chunk("a", 2, "Set up"),
        make_chunk("a", 3, "Set up", "On Linux"),
        make_chunk("a", 4, "Use"),
        make_chunk("b", 1, "Use"),
    ]
    own = QuestionSet(
        name="s", chunks=chunks, documents=[c.page for c in chunks], questions={}, judgements={}
    )
    texts = {
        name: [chunk.text for chunk in join_chunks(own, headings).chunks]
        for name, headings in LAYOUTS.items()
    }
    assert texts["as cut"] == [chunk.text for chunk in chunks]
    assert texts["sections"] == ["a 1", "a 2\n\na 3", "a 4", "b 1"]
    assert texts["whole pages"] == ["a 1\n\na 2\n\na 3\n\na 4", "b 1"]
    sections = join_chunks(own, LAYOUTS["sections"])
    assert sections.documents == ["a", "a", "a", "b"]
    assert [chunk.heading_path for chunk in sections.chunks[:2]] == [("a",), ("a", "Set up")]
