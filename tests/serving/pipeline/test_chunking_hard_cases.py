"""Pages that break splitters: broken, huge, hostile or merely odd. Each is read, losing nothing."""

from collections.abc import Sequence

import pytest

from serving.errors import InvalidInputError
from serving.pipeline.chunking import Chunk, chunk_page, parse_page

LARGE = 100_000  # characters: pages may be this large, whatever they hold


def count_words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def count_no_long_word(texts: Sequence[str]) -> list[int]:
    """Count as WordPiece does: a word of over 100 letters is one unknown token."""
    return [sum(1 + (len(w) // 4 if len(w) <= 100 else 0) for w in t.split()) for t in texts]


def chunk(source: str, target: int = 90, maximum: int = 180, path: str = "a.mdx") -> list[Chunk]:
    page = parse_page(path, source, url_template="/{slug}")
    return chunk_page(page, target_tokens=target, maximum_tokens=maximum, count_tokens=count_words)


def text_of(source: str, path: str = "a.mdx") -> str:
    return "\n\n".join(c.text for c in chunk(source, 5000, 5000, path))


def letters(text: str) -> str:
    return "".join(c for c in text if c.isalnum())


# --- spelled oddly --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("\ufeff---\ntitle: T\n---\nText.", "Text."),
        ("A.\r\n\r\n```\r\ncode\r\n```\r\n", "A.\n\n```\ncode\n```"),
        ("A.\rB.\r\rC.", "A. B.\n\nC."),
        ("Nul\0l here.", "Nul\ufffdl here."),
        ("-\tItem\n\n\t```\n\tcode\n\t```", "- Item\n\n  ```\n  code\n  ```"),
        ("0. Zero\n1. One", "0. Zero\n1. One"),
        ("First\\\n\\# no heading", "First  \n\\# no heading"),
        ("&lt;b&gt; &amp; &copy;", "<b> & ©"),
        ("漢字仮名。מה שלום 👩\u200d👩\u200d👧", "漢字仮名。מה שלום 👩\u200d👩\u200d👧"),
    ],
)
def test_odd_spellings_are_read(source: str, seen: str) -> None:
    assert text_of(source) == seen


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("<style>\na\n\nb\n</style> Seen.", "Seen."),
        ("<!-- a\n\nb --> Seen.", "Seen."),
        ("<details><summary>More</summary>\n\nText.\n</details>", "More\n\nText."),
        ("<p>One\n<li>two", "One two"),
        ('> <Card\n>   title="T"\n> />\n> Text.', "> **T**\n>\n> Text."),
        ("<table><tr><td>\n\n```js\na\nb\n```\n\n</td></tr></table>", "```js\na\nb\n```"),
        ("import 'quoted' words of prose.", "import 'quoted' words of prose."),
        ("import './style.css';\n\nText.", "Text."),
        ("export const A = () => <p>don't</p>\n\nText.", "Text."),
        ("Text {`a`} {'b'} {c} {{d}} {[\"x\", 'y']}", "Text a b {c} {{d}} x, y"),
    ],
)
def test_components_and_code_of_the_page_itself(source: str, seen: str) -> None:
    assert text_of(source) == seen


# --- broken ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("```js\nopen <Tag> {x\n\n# no heading", "```js\nopen <Tag> {x\n\n# no heading\n```"),
        ("<Open>\nText.\n\nMore.", "<Open> Text.\n\nMore."),
        ("Text.\n\n</Close>", "Text.\n\n</Close>"),
        ('<Card title="never closed>\n\nText.', '<Card title="never closed>\n\nText.'),
        ("Text {never closed.\n\nMore.", "Text {never closed.\n\nMore."),
        ("{/* never closed\n\nText.", "{/* never closed\n\nText."),
        ("<h3>open\n\nText.\n\n<h3>Next</h3>\n\nMore.", "open\n\nText.\n\nMore."),
        ("export const a = {\n  b: 1,\n\nText.", "Text."),
    ],
)
def test_broken_mdx_loses_nothing_that_may_be_text(source: str, seen: str) -> None:
    assert text_of(source) == seen


def test_broken_frontmatter_names_file_and_line() -> None:
    with pytest.raises(InvalidInputError, match=r"end of stream at guide\.mdx:4"):
        parse_page("guide.mdx", "---\ntitle: T\nkey: 'open\n---\nText.", url_template="/")


# --- headings -------------------------------------------------------------------------------------


def test_fifty_identical_headings_have_fifty_anchors() -> None:
    source = "\n\n".join(f"## Same\n\n{'word ' * 60}{n}." for n in range(50))
    chunks = chunk(source)
    assert [c.anchor for c in chunks] == ["same", *(f"same-{n}" for n in range(1, 50))]
    assert len({c.url for c in chunks}) == 50


def test_anchors_stay_distinct_when_a_heading_is_spelled_like_one() -> None:
    names = ["Same", "Same", "Same-1", "Same"]
    source = "\n\n".join(f"## {name}\n\n{'word ' * 60}" for name in names)
    anchors = [c.anchor for c in chunk(source)]
    assert len(set(anchors)) == 4


@pytest.mark.parametrize(
    ("heading", "name", "anchor"),
    [
        ("## {{ value }}", "{{ value }}", "-value-"),
        ("## `a` <a|b>", "a <a|b>", "a-ab"),
        ("## {props.name}", "{props.name}", "propsname"),
        ("<h2>Raw</h2>", "Raw", "raw"),
        ("<h2\n  id='own'\n>\n  Raw\n</h2>", "Raw", "own"),
        ("## नमस्ते दुनिया", "नमस्ते दुनिया", "नमस्ते-दुनिया"),
        ("Setext\n---", "Setext", "setext"),
    ],
)
def test_headings_keep_what_a_reader_sees(heading: str, name: str, anchor: str) -> None:
    (found,) = chunk(f"{heading}\n\n{'word ' * 60}")
    assert (found.heading_path[-1], found.anchor) == (name, anchor)


def test_a_heading_of_a_whole_page_is_text() -> None:
    chunks = chunk("# " + "word " * 20_000)
    assert sum(c.text.count("word") for c in chunks) == 20_000
    assert max(len(" ".join(c.heading_path)) for c in chunks) < 100


# --- tables and words that fit nowhere ------------------------------------------------------------


def test_a_header_larger_than_a_chunk_is_not_repeated() -> None:
    header = "| " + " | ".join(f"head{n}" for n in range(100)) + " |"
    rule = "|" + "---|" * 100
    rows = "\n".join("| " + f"cell{n} " + "| x " * 9 + "|" for n in range(30))
    chunks = chunk(f"{header}\n{rule}\n{rows}", 30, 40)
    assert sum(c.text.count("head0 ") for c in chunks) == 1
    assert [sum(f"cell{n} " in c.text for c in chunks) for n in range(30)] == [1] * 30


@pytest.mark.parametrize("word", ["x" * LARGE, "漢字仮名" * 5_000, "นี่คือ" * 5_000], ids="xct")
def test_a_line_without_spaces_is_cut_between_characters(word: str) -> None:
    page = parse_page("a.mdx", word, url_template="/")
    chunks = chunk_page(page, target_tokens=90, maximum_tokens=180, count_tokens=count_no_long_word)
    assert "".join("".join(c.text.split()) for c in chunks) == word
    assert max(len(c.text) for c in chunks) <= 180 * 33


def test_a_code_span_is_not_cut_in_a_monster_sentence() -> None:
    source = "word " * 50 + "`one code span of seven whole words` " + "word " * 50
    chunks = chunk(source, 20, 30)
    assert all(c.text.count("`") % 2 == 0 for c in chunks)
    assert len(chunks) > 3


# --- large and hostile: the time must stay linear, or these do not end ----------------------------


@pytest.mark.parametrize(
    "unit",
    [
        "<Open>\nword\n\n",
        "<Open a={\n\nword ",
        '<Open a="\n\nword ',
        "export const word = {\n\n",
        "export const word =\n\n",
        "{word ",
        "{' word\n",
        "{`${ word ",
        "{/* word\n\n",
        "<!-- word\n\n",
        "<h3>word\n\n",
        "<table>word\n\n",
        "<script>word\n\n",
        "J. R. word ",
        "[word](",
        "**word ",
        "word. ",
        "## word\n",
        "<A><B>word",
    ],
)
def test_what_never_closes_ends_in_time(unit: str) -> None:
    source = "start\n\n" + unit * (LARGE // 10 // len(unit))
    seen = "".join(part for c in chunk(source) for part in (c.text, *c.heading_path))
    is_code = unit.startswith("export")
    assert "start" in seen
    assert is_code or seen.count("word") >= source.count("word")


@pytest.mark.parametrize(
    "source",
    [
        ">" * 5000 + " deepest",
        "- " * 5000 + "deepest",
        "".join(f"{'  ' * n}- item\n" for n in range(150)) + "  " * 150 + "deepest",
        "<A>\n" * 5000 + "deepest\n" + "</A>\n" * 5000,
        "<A>" * 5000 + "deepest" + "</A>" * 5000,
        "{" * 5000 + "deepest" + "}" * 5000,
        "[" * 5000 + "deepest" + "](x)" * 5000,
        "**" * 5000 + "deepest" + "**" * 5000,
    ],
    ids=["quotes", "dashes", "lists", "tags", "tags in a line", "braces", "links", "stars"],
)
def test_deep_nesting_is_read_to_the_end(source: str) -> None:
    assert "deepest" in text_of(source)


def test_thousands_of_imports_in_code_stay_and_outside_go() -> None:
    code = "\n".join(f"import a{n} from 'a{n}'" for n in range(3000))
    (found,) = chunk(f"{code}\n\n```js\n{code}\n```\n", 90, 180)
    assert found.text == f"```js\n{code}\n```"
    assert found.is_oversized


def test_a_large_page_calls_the_tokenizer_a_few_times() -> None:
    calls: list[int] = []

    def count(texts: Sequence[str]) -> list[int]:
        calls.append(len(texts))
        return count_words(texts)

    source = "\n\n".join(f"## Heading {n}\n\n" + f"Sentence {n} of it. " * 8 for n in range(500))
    page = parse_page("a.mdx", source, url_template="/")
    chunks = chunk_page(page, target_tokens=90, maximum_tokens=180, count_tokens=count)
    assert letters("".join(c.text for c in chunks)).count("Sentence") == 4000
    assert len(calls) <= 10
