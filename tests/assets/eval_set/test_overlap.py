"""Shared words: what counts as a repeat, and what two questions may well have in common."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.eval_set.overlap import EvalTexts, normalise_text
from serving.pipeline.questions import split_words

LONG = "How many golden cases does the frozen set hold when it is complete?"
SHORT = "Who won the football cup?"  # 5 words
TINY = "What is a seed?"  # 4 words
TEXTS = EvalTexts.index(["long", "short", "tiny"], [LONG, SHORT, TINY])


def found(question: str) -> tuple[str, str, str | None] | None:
    match = TEXTS.match(question)
    return match and (match.case_id, match.reason, match.ngram)


@pytest.mark.parametrize("question", [LONG, SHORT, TINY])
def test_a_question_is_its_own_text_and_its_own_words(question):
    assert found(f" {question}\n")[1] == "same_text"
    assert found(question.upper().replace("?", " ??"))[1] == "same_words"


def test_eight_words_in_a_row_are_a_match_and_seven_are_none():
    words = LONG.split()
    for start in range(len(words) - 7):
        asked = f"tell me {' '.join(words[start : start + 8])} or not"
        assert found(asked) == ("long", "shared_ngram", normalise_text(asked)[8:-7])
        assert found(f"tell me {' '.join(words[start : start + 7])} or not") is None


def test_the_words_must_stand_in_a_row():
    assert found("How many golden cases does, the frozen hold set when it is") is None
    assert found("How many golden cases does\nthe frozen: set?")[1] == "shared_ngram"


def test_a_short_question_matches_where_it_is_held_whole():
    assert found("Just curious: who won the football cup? Thanks!") == (
        "short", "shared_ngram", "who won the football cup",
    )  # fmt: skip
    assert found("who won the football match?") is None


def test_a_question_of_under_five_words_matches_only_as_a_whole():
    assert found("what is a seed made of, and what is it for?") is None
    assert found("what is a seed") == ("tiny", "same_words", None)


def test_questions_of_one_form_about_different_things_are_no_match():
    texts = EvalTexts.index(["g1"], ["What is the difference between HOLD and INCONCLUSIVE?"])
    assert texts.match("What is the difference between PROMOTE and HOLD?") is None


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Gr\u00f6\u00dfe \ufb01x", "GR\u00d6SSE FIX"),
        ("caf\u00e9", "cafe\u0301"),
        ("\uff21\uff22\uff23", "abc"),
        ("make_demo, now", "make demo now"),
    ],
)
def test_spellings_of_the_same_words_are_equal(left, right):
    assert normalise_text(left) == normalise_text(right)


@pytest.mark.parametrize("hidden", ["\u200b", "\u00ad", "\u2060", "\ufeff", "\u202e"])
def test_invisible_characters_hide_no_word_on_either_side(hidden):
    veiled = LONG.replace("golden", f"gol{hidden}den")
    assert found(veiled) == ("long", "same_text", None)
    assert found(f"Now, {veiled}")[1] == "shared_ngram"
    assert EvalTexts.index(["g1"], [veiled]).match(LONG).reason == "same_text"


def test_a_name_typed_without_its_end_is_the_same_words():
    texts = EvalTexts.index(["g1"], ["Does it speak C++?"])
    assert texts.match("does it speak c").reason == "same_words"


def test_a_text_without_words_has_none():
    assert split_words("?! \u2026") == []
    assert EvalTexts.index(["g1"], ["?"]).match("!").reason == "same_words"


@given(st.text(st.characters(codec="ascii")))
def test_plain_text_is_split_as_any_other(text):
    assert split_words(text) == re.findall(r"[^\W_]+", text.casefold())
    assert split_words(f"{text} \u00e4") == [*split_words(text), "\u00e4"]


def test_short_questions_that_begin_alike_are_told_apart():
    questions = ["How is the limit set here", "How is the limit set now please"]
    texts = EvalTexts.index(["here", "now"], questions)
    assert texts.match("so how is the limit set now please tell").case_id == "now"
    assert texts.match("so how is the limit set in this place") is None
