"""Units: what a model can quote stands alone, and no word of the chunk is lost."""

import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.pipeline.sentences import split_sentences, split_units


def words(text: str) -> Counter[str]:
    kept = "".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in text)
    return Counter(kept.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One is here. Two is there! Is three? Yes.", 4),
        ("Use a store, e.g. Redis or i.e. Valkey, vs. Postgres etc. in production.", 1),
        ("It needs Python 1.13 or 3.11.4 at least. Then it runs.", 2),
        ("Its lock is golden_v1.lock and stays. Never edit golden_v1.lock. Done.", 3),
        ("See https://x.example/a.b?c=d. It is open.", 2),
        ("Run `make. Then. All` now. Next.", 2),
        ("Written by J. R. Tolkien in Section 3. Chapter two follows.", 1),
        ("**Note.** It works. **All of it. Really.** `code` begins this one.", 4),
        ("He said “Stop.” Then he left. (So it is.) Good.", 4),
        ("Wait... Then go. a lower case start. is joined.", 2),
        ("First line  \nsecond line\ngoes on. Third.", 3),
        ("- not a list here", 1),
        ("この文。次の文。", 2),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text: str, expected: int) -> None:
    found = split_sentences(text)
    assert len(found) == expected, found
    assert words(" ".join(found)) == words(text)


def test_a_lead_in_and_list_items_are_units_without_markers() -> None:
    text = (
        "It does two things. They are:\n- **First.** It reads.\n- It writes\n  1. deep\n  2. deeper"
    )
    assert split_units(text) == [
        "It does two things.",
        "They are:",
        "**First.**",
        "It reads.",
        "It writes",
        "deep",
        "deeper",
    ]


def test_a_table_row_reads_as_a_sentence() -> None:
    rows = "| `k` | 3 | How many. |\n| `a\\|b` | | X |"
    text = f"| Key | Default | Meaning |\n| --- | --- | --- |\n{rows}"
    assert split_units(text) == [
        "Key: `k`; Default: 3; Meaning: How many.",
        "Key: `a|b`; Default: -; Meaning: X.",
    ]


def test_a_table_without_rows_or_headers_keeps_its_words() -> None:
    assert split_units("| A | B |\n| --- | --- |") == ["A; B."]
    assert split_units("| | |\n| --- | --- |\n| x | y |") == ["x; y."]


def test_a_fence_is_one_unit_with_its_markers() -> None:
    fence = "``````md\n# A. B. C.\n```\nx\n```\n\n---\n``````"
    assert split_units(f"Run:\n\n{fence}\n\nDone.") == ["Run:", fence, "Done."]


def test_a_fence_in_a_list_item_loses_its_indent() -> None:
    assert split_units("1. Run:\n\n   ```sh\n   make\n     all\n   ```\n2. Done.") == [
        "Run:",
        "```sh\nmake\n  all\n```",
        "Done.",
    ]


def test_quotes_and_text_that_looks_like_markup_stay() -> None:
    text = "> Quoted. Twice.\n\n<REGION> and {x} stay.\n\n[1]: not a definition"
    assert split_units(text) == [
        "Quoted.",
        "Twice.",
        "<REGION> and {x} stay.",
        "[1]: not a definition",
    ]


def test_nothing_gives_no_units() -> None:
    assert split_units(" \n") == []


@settings(deadline=None, max_examples=150)
@given(text=st.text(alphabet="abC .!?:;*_`()\"'…\n-", max_size=200))
def test_no_word_of_any_text_is_lost(text: str) -> None:
    assert words(" ".join(split_units(text))) == words(text)


@settings(deadline=None, max_examples=150)
@given(text=st.text(alphabet="abC1 .!?:;*_`()\n-", max_size=200))
def test_splitting_twice_changes_no_word(text: str) -> None:
    once = split_sentences(text)
    assert words(" ".join(once)) == words(text)
    assert all(sentence == sentence.strip() and sentence for sentence in once)
