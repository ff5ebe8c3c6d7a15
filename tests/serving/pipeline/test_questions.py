"""Questions as texts: what is seen of one, and which spellings are the same."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serving.pipeline.questions import drop_invisible, fold_text, normalise_question, split_words


@given(st.text())
@example("e\u00ad\u0301")  # the accent meets its letter once the hyphen between them is gone
def test_normalising_twice_changes_nothing_more(text):
    once = normalise_question(text)
    assert normalise_question(once) == once
    assert not {"Cc", "Cf"} & set(map(unicodedata.category, once))


@given(st.text(st.characters(codec="ascii")))
def test_plain_text_is_normalised_as_any_other(text):
    assert normalise_question(f"{text} \u00e4") == f"{normalise_question(text)} \u00e4".strip()


def test_dropping_the_invisible_leaves_every_spelling():
    assert (
        drop_invisible(" re\u200bset\x00the\u00a0\uff30ort\u2026 ") == "reset the \uff30ort\u2026"
    )


@pytest.mark.parametrize(
    "text", ["How so?", "how so", "HOW  SO!", " how\tso\u2026 ", "how_s\u00ado"]
)
def test_case_spacing_punctuation_and_the_invisible_do_not_make_another_text(text):
    assert fold_text(text) == "how so"


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Gr\u00f6\u00dfe \ufb01x", "GR\u00d6SSE FIX"),
        ("caf\u00e9", "cafe\u0301"),
        ("\uff21\uff22\uff23", "abc"),
        ("k = 3", "k=3"),
        ("Is it C++?", "is it c++"),
    ],
)
def test_spellings_of_one_text_are_equal(left, right):
    assert fold_text(left) == fold_text(right)


@pytest.mark.parametrize(
    "texts",
    [
        ("Use C", "Use C++", "Use C#"),
        ("k=3", "k=8"),
        ("Gr\u00f6\u00dfe", "Grosse"),
        ("\u0915\u093f", "\u0915\u093e"),  # one Hindi letter with two vowel signs
        ("\u4f55", "?"),
        ("?", "!"),
    ],
)
def test_letters_digits_signs_and_the_ends_of_names_make_another_text(texts):
    assert len(set(map(fold_text, texts))) == len(texts)


def test_words_leave_the_ends_of_names_away():
    assert split_words("C++ or content_block: 1+1?") == ["c", "or", "content", "block", "1", "1"]
    assert split_words("\u0939\u093f\u0928\u094d\u0926\u0940?") == [
        "\u0939\u093f\u0928\u094d\u0926\u0940"
    ]
    assert split_words("pass\u00adword \u0301") == ["password"]
