"""What holds for every page: checked against a generator that knows what it wrote."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import InvalidInputError
from serving.pipeline.chunking import Chunk, Page, chunk_page, parse_page, visible_text
from tests.serving.pipeline.mdx_pages import PageWriter, Written, serials

CountTokens = Callable[[Sequence[str]], list[int]]


def count_words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def count_pieces(texts: Sequence[str]) -> list[int]:
    """Return counts that add up to less than the count of the whole: joining costs extra."""
    return [len(text) // 4 + text.count("\n") ** 2 // 8 for text in texts]


def count_lines_too(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) + text.count("\n") for text in texts]


WRITERS = st.randoms(use_true_random=False).map(PageWriter)
PAGES = WRITERS.map(PageWriter.write_page)
COUNTERS = st.sampled_from([count_words, count_pieces, count_lines_too])
SIZES = st.tuples(st.integers(8, 60), st.integers(0, 60)).map(lambda s: (s[0], s[0] + s[1]))


def read(source: str) -> Page:
    return parse_page("guides/page.mdx", source, url_template="/{slug}")


def chunk(page: Page, sizes: tuple[int, int], count_tokens: CountTokens) -> list[Chunk]:
    target, maximum = sizes
    return chunk_page(page, target_tokens=target, maximum_tokens=maximum, count_tokens=count_tokens)


def bare_lines(text: str) -> list[str]:
    """Return lines without the indentation and quote marks of what they stand in."""
    return [line.lstrip(" >").removeprefix("- ").strip() for line in text.split("\n")]


def holds_lines(text: str, lines: list[str]) -> bool:
    found, wanted = bare_lines(text), bare_lines("\n".join(lines))
    return any(found[i : i + len(wanted)] == wanted for i in range(len(found)))


@settings(deadline=None, max_examples=60)
@given(page=PAGES, sizes=SIZES, count_tokens=COUNTERS)
def test_every_word_is_seen_once_in_order_and_nothing_unseen_leaks(
    page: Written, sizes: tuple[int, int], count_tokens: CountTokens
) -> None:
    chunks = chunk(read(page.source), sizes, count_tokens)
    in_texts = [n for c in chunks for n in serials(c.text)]
    body = set(page.body)
    assert [n for n in in_texts if n in body] == page.body
    in_paths = {n for c in chunks for heading in c.heading_path for n in serials(heading)}
    assert set(page.labels) <= {*in_texts, *in_paths}
    assert not {*in_texts, *in_paths} & set(page.unseen)


@settings(deadline=None, max_examples=40)
@given(page=PAGES, sizes=SIZES, count_tokens=COUNTERS)
def test_no_fence_or_row_is_cut_and_headers_repeat(
    page: Written, sizes: tuple[int, int], count_tokens: CountTokens
) -> None:
    texts = [c.text for c in chunk(read(page.source), sizes, count_tokens)]
    for lines in page.fences:
        assert any(holds_lines(text, lines) for text in texts), lines
    for header, rows in page.tables:
        for row in rows:
            (text,) = [text for text in texts if row[0] in serials(text)]
            assert any(serials(line) == row for line in text.split("\n"))
            is_repeated = set(header) <= set(serials(text))
            is_header_too_large = count_tokens([text])[0] > sizes[1] or "|  |" in text
            assert is_repeated or is_header_too_large, text


@settings(deadline=None, max_examples=40)
@given(page=PAGES, sizes=SIZES, count_tokens=COUNTERS)
def test_sizes_hold_for_all_but_a_single_fence_or_row(
    page: Written, sizes: tuple[int, int], count_tokens: CountTokens
) -> None:
    chunks = chunk(read(page.source), sizes, count_tokens)
    for c in chunks:
        assert c.text.strip()
        assert c.token_count == count_tokens([c.text])[0]
        assert c.is_oversized == (c.token_count > sizes[1])
        if c.is_oversized:
            rows = [row for _, table in page.tables for row in table if row[0] in serials(c.text)]
            fences = [lines for lines in page.fences if holds_lines(c.text, lines)]
            is_header = "| --- |" in c.text and not rows
            assert len(rows) + len(fences) + is_header == 1, c.text


@settings(deadline=None, max_examples=30)
@given(page=PAGES, sizes=SIZES)
def test_identities_are_distinct_and_repeatable(page: Written, sizes: tuple[int, int]) -> None:
    source = read(page.source)
    chunks = chunk(source, sizes, count_words)
    assert chunks == chunk(read(page.source), sizes, count_words)
    numbers = range(1, len(chunks) + 1)
    assert [c.chunk_id for c in chunks] == [f"docs:guides/page/{n}" for n in numbers]
    runs = [anchor for anchor, _ in groupby(c.anchor for c in chunks)]
    assert max(Counter(runs).values()) == 1, runs
    assert all(c.url == ("/guides/page" + (f"#{c.anchor}" if c.anchor else "")) for c in chunks)


@settings(deadline=None, max_examples=30)
@given(page=PAGES, sizes=SIZES)
def test_a_chunk_read_again_shows_the_same_words(page: Written, sizes: tuple[int, int]) -> None:
    for c in chunk(read(page.source), sizes, count_words):
        again = read(c.text)
        assert serials(visible_text(again)) == serials(c.text)
        joined = [n for d in chunk(again, (10_000, 10_000), count_words) for n in serials(d.text)]
        assert joined == serials(c.text)


@settings(deadline=None, max_examples=25)
@given(writer=WRITERS, edited=st.integers(0, 5), sizes=SIZES)
def test_an_edited_section_moves_no_hash_of_another(
    writer: PageWriter, edited: int, sizes: tuple[int, int]
) -> None:
    sections = [writer.write_section(f"Heading {n}") for n in range(6)]
    before = chunk(read("\n\n".join(sections)), sizes, count_words)
    sections[edited] = f"## Heading {edited}\n\nNew text. {writer.write_section('Inserted')[3:]}"
    after = chunk(read("\n\n".join(sections)), sizes, count_words)
    name = f"Heading {edited}"
    kept = [c.content_hash for c in before if name not in c.heading_path]
    assert kept == [
        c.content_hash
        for c in after
        if name not in c.heading_path and "Inserted" not in c.heading_path
    ]


@settings(deadline=None, max_examples=100)
@given(source=st.text(alphabet="ab \n\r\t\0#-*_`~<>{}[]()|:!/\\\"'=.1漢é", max_size=300))
def test_any_text_at_all_is_read_or_refused_by_name(source: str) -> None:
    """Nonsense has no oracle; it must not crash, hang, lose what it sees or pass the maximum."""
    try:
        page = read(source)
    except InvalidInputError:
        with pytest.raises(InvalidInputError, match=r"guides/page\.mdx"):
            read(source)
        return
    chunks = chunk(page, (8, 12), count_words)
    seen = [c for c in visible_text(page) if c.isalpha()]
    found = [
        c for d in chunks for part in (*d.heading_path[1:], d.text) for c in part if c.isalpha()
    ]
    assert not Counter(seen) - Counter(found) - Counter(page.title)
