"""Chunking: nothing a reader sees is lost, nothing that must stay whole is cut, sizes hold."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from serving.errors import InvalidInputError
from serving.models.protocols import Hit
from serving.pipeline.chunking import Chunk, Page, chunk_page, parse_page, visible_text
from serving.pipeline.prompt import CitationIds, PromptFormat, read_answer, read_sources_text
from serving.pipeline.validator import ValidatorPolicy, validate

ROOT = Path(__file__).parents[3]
CORPORA = Path(os.environ.get("UNDERSTUDY_TEST_CORPORA", str(ROOT / "../shared/corpora")))
URL = "https://docs.example/{slug}/"


def count_words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def read(source: str, path: str = "guides/setup.mdx") -> Page:
    return parse_page(path, source, url_template=URL)


def chunk(page: Page, target: int = 30, maximum: int = 60) -> list[Chunk]:
    return chunk_page(page, target_tokens=target, maximum_tokens=maximum, count_tokens=count_words)


def chunk_source(source: str, target: int = 30, maximum: int = 60) -> list[Chunk]:
    return chunk(read(source), target, maximum)


def only_text(source: str) -> str:
    (found,) = chunk_source(source, target=500, maximum=500)
    return found.text


def words(text: str) -> Counter[str]:
    """Count runs of letters and digits; emphasis marks within a word (`un*do*`) do not end it."""
    bare = text.translate(dict.fromkeys(map(ord, "*_~`\\")))
    kept = "".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in bare)
    return Counter(kept.split())


def words_of(chunks: Sequence[Chunk]) -> Counter[str]:
    return words("\n".join(part for c in chunks for part in (c.text, *c.heading_path)))


def assert_sound(page: Page, chunks: Sequence[Chunk], maximum: int) -> None:
    """Assert what holds for every page there is."""
    lost = words(visible_text(page)) - words_of(chunks)
    assert not lost, f"{page.path} lost {dict(lost)}"
    for c in chunks:
        assert c.text.strip(), c.chunk_id
        assert c.token_count == count_words([c.text])[0]
        assert c.is_oversized == (c.token_count > maximum), c.chunk_id
        assert c.heading_path[0] == page.title
        if c.is_oversized:
            assert any(mark in c.text for mark in ("```", "~~~", "| --- |")), c.text
    assert [c.chunk_id for c in chunks] == [
        f"docs:{page.slug}/{number}" for number in range(1, len(chunks) + 1)
    ]


# --- metadata -------------------------------------------------------------------------------------


def test_a_page_knows_its_slug_url_and_title() -> None:
    page = read("---\ntitle: Set up\n---\nText.", "guides/setup/index.mdx")
    assert (page.slug, page.title) == ("guides/setup/index", "Set up")
    assert page.url == "https://docs.example/guides/setup/"


@pytest.mark.parametrize(
    ("path", "template", "url"),
    [
        ("index.mdx", "https://docs.example/{slug}/", "https://docs.example/"),
        ("index.mdx", "https://docs.example/{slug}", "https://docs.example/"),
        ("index.mdx", "/{slug}/", "/"),
        ("guides/index.mdx", "https://docs.example/{slug}", "https://docs.example/guides"),
        ("guides/the-index.mdx", URL, "https://docs.example/guides/the-index/"),
        ("index/index.mdx", URL, "https://docs.example/index/"),
        ("guides/index.md", "https://x/{slug}.html", "https://x/guides/index.html"),
        ("Getting Started.mdx", URL, "https://docs.example/Getting%20Started/"),
        ("c#/what?.mdx", URL, "https://docs.example/c%23/what%3F/"),
        ("größe/100%.md", URL, "https://docs.example/gr%C3%B6%C3%9Fe/100%25/"),
    ],
)
def test_a_page_is_linked_where_it_is_published(path: str, template: str, url: str) -> None:
    assert parse_page(path, "Text.", url_template=template).url == url


@pytest.mark.parametrize(
    ("path", "slug"),
    [
        ("how-to/c#_(v1.2)+größe@100%.mdx", "how-to/c#_(v1.2)+größe@100%"),
        ("Getting Started.mdx", "Getting%20Started"),
        ("a\u3000b\u00a0c.mdx", "a%E3%80%80b%C2%A0c"),
        ("blog/[slug].mdx", "blog/%5Bslug%5D"),
        ("blog/%5Bslug%5D.mdx", "blog/%255Bslug%255D"),
        ("100% sure.mdx", "100%%20sure"),
        ("100%%20sure.mdx", "100%%2520sure"),
    ],
)
def test_a_slug_is_the_path_save_for_what_a_citation_cannot_hold(path: str, slug: str) -> None:
    assert read("Text.", path).slug == slug


@pytest.mark.parametrize("path", ["Getting Started.mdx", "blog/[slug].mdx", "a\u2028b/50%5D.md"])
@pytest.mark.parametrize("citation_ids", ["local", "full"])
def test_a_page_of_any_name_can_be_cited(path: str, citation_ids: CitationIds) -> None:
    page = read("## Heat\n\nThe kiln fires at 1300 degrees.", path)
    (found,) = chunk(page)
    hit = Hit(
        chunk_id=found.chunk_id,
        content_hash=found.content_hash,
        text=found.text,
        title=page.title,
        url=found.url,
        heading_path=found.heading_path,
    )
    prompt = PromptFormat(citation_ids=citation_ids)
    sources = read_sources_text(prompt.write_request("How hot?", [hit]).messages)
    quoted = sources.partition("> Heat: ")[2]
    draft = read_answer(quoted, [hit], prompt)
    assert draft.text == f"The kiln fires at 1300 degrees. [{found.chunk_id}]"
    assert (draft.cited, draft.unknown_ids) == ((hit,), ())
    assert validate(draft, [hit], ValidatorPolicy()).is_valid


@pytest.mark.parametrize(
    ("source", "path", "title"),
    [
        ("# First `one`\n\nText.", "a.md", "First one"),
        ("Text.", "guides/get-started.mdx", "Get started"),
        ("Text.", "guides/index.mdx", "Guides"),
        ("Text.", "guides/Getting Started.mdx", "Getting Started"),
    ],
)
def test_a_page_without_a_title_is_named_by_its_h1_or_its_slug(
    source: str, path: str, title: str
) -> None:
    assert read(source, path).title == title


def test_frontmatter_is_no_text_and_its_comment_no_heading() -> None:
    (found,) = chunk_source("---\n# not a heading\ntitle: T\ndescription: unseen\n---\n\nSeen.\n")
    assert (found.text, found.heading_path, found.url) == (
        "Seen.",
        ("T",),
        "https://docs.example/guides/setup/",
    )


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("---\ntitle: T\nkey: [1, 2\n---\nText.", r"broken\.mdx:4"),
        ("---\n- a\n- b\n---\nText.", r"broken\.mdx:2"),
        ("---\ntitle: T\ndate: 2024-02-30\n---\nText.", r"day is out of range.*broken\.mdx:3"),
        ("---\na: {b: [1, 2024-01-01 25:00:00]}\n---\nText.", r"hour must be.*broken\.mdx:2"),
        ("---\ntitle: T\n\nText.", r"broken\.mdx:1"),
        ("---\n\n# comment\n'title' : T\nText.", r"broken\.mdx:1"),
        ("---\nsidebar:\n  order: 1\n# Text", r"broken\.mdx:1"),
    ],
)
def test_broken_frontmatter_is_refused_with_path_and_line(source: str, place: str) -> None:
    with pytest.raises(InvalidInputError, match=place):
        read(source, "broken.mdx")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("---\nSee this: it says more.", "See this: it says more."),
        ("---\n\n# Heading\n\nnote: text", "note: text"),
        ("\ufeff---\r\n\r\nText.\r\n", "Text."),
    ],
)
def test_a_first_rule_that_nothing_closes_is_a_thematic_break(source: str, text: str) -> None:
    assert chunk_source(source)[-1].text.endswith(text)


@pytest.mark.parametrize(
    "source",
    ["", "---\ntitle: T\n---\n", "import A from 'a'\n\n<A />\n\n{/* unseen */}\n<!-- x -->\n"],
)
def test_a_page_without_visible_text_is_refused_with_its_path(source: str) -> None:
    with pytest.raises(InvalidInputError, match=r"empty\.mdx"):
        read(source, "empty.mdx")


# --- MDX ------------------------------------------------------------------------------------------


def test_imports_and_exports_go_outside_fences_and_stay_inside() -> None:
    source = """import { Steps } from '@astrojs/starlight/components'
import {
  Tabs,
  TabItem,
} from 'x';
export const meta = {
  note: "}",

  deep: [1, 2],
}

Kept text.

```js
import kept from 'kept'
export default kept
```
"""
    assert only_text(source) == (
        "Kept text.\n\n```js\nimport kept from 'kept'\nexport default kept\n```"
    )


def test_prose_that_begins_with_import_stays() -> None:
    assert only_text("import your key first.\n\nThen\nexport it.") == (
        "import your key first.\n\nThen export it."
    )


def test_components_vanish_and_their_text_stays() -> None:
    source = """<Tabs syncKey="pkg">
  <TabItem label="npm">
    Use **npm** like this:
    ```sh
    npm install
      --save
    ```
  </TabItem>
  <TabItem label={"pnpm"} icon="pnpm">Use pnpm.</TabItem>
</Tabs>

<Aside type="caution" title="Take care">
Mind the <Badge text="beta" />{" "}
gap.
</Aside>
<Card title="Next" href="/next" icon="rocket" />
<img src="/a.png" alt="A diagram" />
"""
    assert only_text(source) == (
        "**npm**\n\nUse **npm** like this:\n\n```sh\nnpm install\n  --save\n```\n\n"
        "**pnpm**\n\nUse pnpm.\n\n**Take care**\n\nMind the beta gap.\n\n**Next**\n\nA diagram"
    )


def test_a_field_leads_into_its_description() -> None:
    source = """<ParamField body="limit" type="integer" required default={10}>
  How many rows at most.
</ParamField>
<ResponseField name="id" type="string">The id.</ResponseField>
"""
    assert only_text(source) == (
        "`limit` (integer, required, default: `10`): How many rows at most.\n\n"
        "`id` (string): The id."
    )


def test_tags_may_span_lines_and_hold_braces_and_angles() -> None:
    source = """<Card
  title="Greater > less"
  style={{ color: "red" }}
  onClick={() => { go("}") }}
>
  Inside.
</Card>
"""
    assert only_text(source) == "**Greater > less**\n\nInside."


def test_directives_keep_their_title_and_text() -> None:
    source = ":::note Read this\nFirst.\n:::\n\n:::tip[Or `this`]{icon=x}\nSecond.\n:::\n\n:::\n"
    assert only_text(source) == "**Read this**\n\nFirst.\n\n**Or `this`**\n\nSecond."


def test_placeholders_and_braces_in_prose_stay() -> None:
    source = "Replace <REGION> and <a|b> in {{ name }}, {version} or {'it'}; 1 < 2.{/* gone */}"
    assert only_text(source) == "Replace <REGION> and <a|b> in {{ name }}, {version} or it; 1 < 2."


def test_comments_go_over_blank_lines() -> None:
    assert only_text("{/* a\n\nb */}\n<!-- c\n\nd -->\nSeen.") == "Seen."


def test_html_becomes_markdown() -> None:
    source = """See <a href="https://x.example">
  the <b>docs</b>
</a> and <code>a_b{"{c}"}</code>.<br />Next *line*, a [link](/y) and `code`.
"""
    assert only_text(source) == (
        "See the **docs** and `a_b{c}`.  \nNext *line*, a link and `code`."
    )


def test_a_raw_table_becomes_a_table() -> None:
    source = """<table>
  <tbody>
    <tr><td><b>Key</b></td><td>Value</td></tr>
    <tr>
      <td>
        <code>a</code>{" "}
        or b
      </td>
      <td>`x|y`</td>
    </tr>
  </tbody>
</table>
"""
    assert only_text(source) == ("| **Key** | Value |\n| --- | --- |\n| `a` or b | `x\\|y` |")


def test_words_of_neighbouring_tags_stay_apart() -> None:
    assert words(only_text("<ul><li>one</li><li>two</li></ul> three")) == words("one two three")


def test_link_definitions_are_unseen_and_footnotes_seen() -> None:
    assert only_text("See [it][1] here.[^1]\n\n[1]: https://x.example\n[^1]: Seen.") == (
        "See it here.[^1]\n\n[^1]: Seen."
    )


def test_indented_code_is_code_in_markdown_only() -> None:
    assert chunk(read("Run:\n\n    make\n", "a.md"))[0].text == "Run:\n\n```\nmake\n```"
    assert chunk(read("Run:\n\n    make\n", "a.mdx"))[0].text == "Run:\n\nmake"


# --- fences ---------------------------------------------------------------------------------------


def test_a_six_backtick_fence_holds_a_three_backtick_one() -> None:
    source = "``````md\n---\n# no heading\n```js\nimport a from 'a'\n<Tag>\n```\n---\n``````"
    (found,) = chunk_source(source)
    assert (found.text, found.heading_path) == (source, ("Setup",))


def test_a_fence_in_a_list_item_belongs_to_the_item() -> None:
    source = "1. Run:\n\n   ```sh\n   make\n\n   make all\n   ```\n\n2. Done."
    assert only_text(source) == source.replace("```\n\n2", "```\n2")


def test_an_oversized_fence_is_a_chunk_of_its_own() -> None:
    fence = "```\n" + "code line\n" * 40 + "```"
    chunks = chunk_source(f"Before it.\n\n{fence}\n\nAfter it.")
    assert [c.text for c in chunks] == ["Before it.", fence, "After it."]
    assert [c.is_oversized for c in chunks] == [False, True, False]


@pytest.mark.parametrize("lead", ["Run this:", "**The title**", "**A title**\n\nRun it:"])
def test_a_lead_in_stands_in_front_of_what_cannot_be_cut(lead: str) -> None:
    fence = "```\n" + "code line\n" * 40 + "```"
    chunks = chunk_source(f"{'word ' * 25}\n\n{lead}\n\n{fence}")
    assert [c.text.endswith("```") for c in chunks] == [False, True]
    assert words(chunks[1].text) == words(f"{lead}\n{fence}")


def test_a_list_is_cut_earlier_when_its_lead_in_needs_room() -> None:
    source = f"{'word ' * 25}\n\nDo this:\n\n" + "- item of six words at least\n" * 9
    assert [c.text.split("\n")[0][:8] for c in chunk_source(source)][1] == "Do this:"
    assert max(c.token_count for c in chunk_source(source)) <= 60


# --- headings -------------------------------------------------------------------------------------


def test_headings_give_paths_and_distinct_anchors() -> None:
    long = "word " * 20
    source = f"""# Setup

## Use `a.b()` with {{{{x}}}} and <a|b>
{long}
### Example
{long}
<h3>Example</h3>
{long}
## Example {{#own-id}}
{long}
<h2 id="raw">Raw <code>x</code></h2>
{long}
"""
    found = [(c.heading_path, c.anchor) for c in chunk_source(source)]
    first = "Use a.b() with {{x}} and <a|b>"
    assert found == [
        (("Setup", first), "use-ab-with-x-and-ab"),
        (("Setup", first, "Example"), "example"),
        (("Setup", first, "Example"), "example-1"),
        (("Setup", "Example"), "own-id"),
        (("Setup", "Raw x"), "raw"),
    ]


def test_a_url_points_at_the_heading() -> None:
    (found,) = chunk_source("## Two words\n\nText.")
    assert found.url == "https://docs.example/guides/setup/#two-words"


def test_a_heading_over_nothing_is_not_lost() -> None:
    chunks = chunk_source("## Empty\n\n## Full\n\n" + "word " * 30)
    assert [(c.heading_path[-1], c.text.split()[0]) for c in chunks] == [
        ("Empty", "**Empty**"),
        ("Full", "word"),
    ]


def test_a_heading_inside_a_list_stays_in_place() -> None:
    assert only_text("- ## Inner\n\n  Text.") == "- **Inner**\n\n  Text."


def test_an_accordion_over_headings_labels_what_it_holds() -> None:
    source = "## A\n\nText of a.\n\n<Accordion title='More'>\n\n## B\n\nText of b.\n</Accordion>"
    assert [c.text for c in chunk_source(source, target=10, maximum=20)] == [
        "Text of a.",
        "**More**\n\nText of b.",
    ]


# --- sizes ----------------------------------------------------------------------------------------


def test_a_tiny_section_shares_a_chunk_with_its_next_sibling() -> None:
    source = "## P\n\n### A\n\nShort.\n\n### B\n\n" + "word " * 10 + "\n\n## Q\n\nElsewhere."
    first, second = chunk_source(source, target=40)
    assert first.heading_path == ("Setup", "P")
    assert first.anchor == "a"
    assert first.text.startswith("**A**\n\nShort.\n\n**B**\n\nword")
    assert second.heading_path == ("Setup", "Q")


def test_a_split_table_repeats_its_header_and_cuts_no_row() -> None:
    rows = [f"| name{n} | a value of {n} |" for n in range(30)]
    header = ["| Name | Value |", "| --- | --- |"]
    chunks = chunk_source("\n".join([*header, *rows]))
    assert len(chunks) > 1
    assert [line for c in chunks for line in c.text.split("\n")[2:]] == rows
    assert all(c.text.split("\n")[:2] == header for c in chunks)


def test_a_long_paragraph_is_split_at_sentences() -> None:
    sentences = [f"Sentence {n} has a few words." for n in range(30)]
    chunks = chunk_source(" ".join(sentences))
    assert len(chunks) > 1
    assert all(c.text.endswith("words.") and c.token_count <= 30 for c in chunks)


def test_a_monster_sentence_is_split_at_words() -> None:
    chunks = chunk_source("word " * 200)
    assert words_of(chunks)["word"] == 200
    assert max(c.token_count for c in chunks) <= 60


def test_a_monster_list_item_is_split_and_keeps_its_marker() -> None:
    chunks = chunk_source("- Short.\n- " + "A sentence of words. " * 40 + "\n- Last.")
    assert max(c.token_count for c in chunks) <= 60
    assert sum(c.text.count("- ") for c in chunks) == 3


def test_a_lead_in_stays_with_its_list() -> None:
    source = "word " * 20 + "\n\nDo this:\n\n" + "- item of five words here\n" * 4
    assert [c.text.split("\n")[0][:8] for c in chunk_source(source)] == ["word wor", "Do this:"]


@pytest.mark.parametrize(("target", "maximum"), [(0, 10), (20, 10)])
def test_impossible_sizes_are_refused(target: int, maximum: int) -> None:
    with pytest.raises(InvalidInputError, match="target_tokens"):
        chunk_source("Text.", target, maximum)


# --- real pages -----------------------------------------------------------------------------------


def pages_below(folder: Path) -> Iterator[Page]:
    for file in sorted([*folder.rglob("*.mdx"), *folder.rglob("*.md")]):
        yield read(file.read_text(encoding="utf-8"), file.relative_to(folder).as_posix())


@pytest.mark.parametrize(
    "folder", [ROOT / "docs", CORPORA / "tensorzero-docs"], ids=["own-docs", "tensorzero-docs"]
)
def test_real_pages_lose_nothing_and_keep_to_the_sizes(folder: Path) -> None:
    if not folder.is_dir():
        pytest.skip(f"no pages at {folder} (UNDERSTUDY_TEST_CORPORA names the corpora folder)")
    ids: Counter[str] = Counter()
    for page in pages_below(folder):
        chunks = chunk(page, 120, 240)
        assert_sound(page, chunks, 240)
        ids.update(c.chunk_id for c in chunks)
    assert ids
    assert max(ids.values()) == 1
