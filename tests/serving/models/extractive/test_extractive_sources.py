"""Prompts are read back as they were written."""

import pytest

from serving.models.extractive.sources import read_sources
from serving.models.protocols import Hit
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.sentences import split_units
from tests.serving.models.extractive.conftest import make_hits


def hit(number: int, text: str, *path: str) -> Hit:
    return Hit(
        chunk_id=f"docs:a/b/{number}",
        content_hash="c0ffee",
        text=text,
        title=path[0],
        url="",
        heading_path=path,
    )


@pytest.mark.parametrize("ids", ["local", "full"])
def test_every_source_comes_back_with_its_label_heading_and_units(ids):
    hits, prompt = make_hits()[:4], PromptFormat(citation_ids=ids)
    sources = read_sources(prompt.write_request("?", hits).messages[0]["content"])
    assert [s.label for s in sources] == [prompt.label(n, h) for n, h in enumerate(hits, 1)]
    assert [s.heading for s in sources] == [" > ".join(h.heading_path) for h in hits]
    assert [list(s.units) for s in sources] == [split_units(h.text) for h in hits]


def test_a_list_of_sources_without_the_rules_is_read_too():
    system = PromptFormat().write_request("?", make_hits()).messages[0]["content"]
    assert read_sources(system.partition("Sources:\n")[2]) == read_sources(system)


def test_code_of_several_lines_stays_one_unit():
    text = "Write this:\n\n```yaml\na: 1\n\nb: 2\n```\n\nThen start it."
    prompt = PromptFormat().write_request("?", [hit(1, text, "Setup")])
    (source,) = read_sources(prompt.messages[0]["content"])
    assert source.units == ("Write this:", "```yaml\na: 1\n\nb: 2\n```", "Then start it.")


def test_a_fence_that_quotes_a_prompt_does_not_become_sources():
    quoted = (
        "This is a prompt:\n\n```text\n[1] A > B: One. [1]\n[2] C: Two. [2]\n```\n\nDone it is."
    )
    hits = [hit(1, quoted, "Prompts"), hit(2, "The second source.", "Real")]
    sources = read_sources(PromptFormat().write_request("?", hits).messages[0]["content"])
    assert [s.heading for s in sources] == ["Prompts", "Real"]
    assert sources[1].units == ("The second source.",)


def test_the_rows_of_a_table_do_not_become_headings():
    table = "| field | type |\n|---|---|\n| `a` | text |\n| `b` | number |"
    prompt = PromptFormat().write_request("?", [hit(1, table, "Fields")])
    (source,) = read_sources(prompt.messages[0]["content"])
    assert source.heading == "Fields"
    assert source.units[0].startswith("field: `a`")


@pytest.mark.parametrize("text", ["", "You are a helpful assistant.", "Sources:\n", "[x] nothing"])
def test_text_without_sources_holds_none(text):
    assert read_sources(text) == ()
