"""The rewording prompt and its reader."""

import json

import pytest

from assets.paraphrases.rewriting import (
    REWRITE_PROMPT_VERSION,
    read_paraphrases,
    write_rewrite_request,
)
from serving.errors import InvalidInputError


def written(*texts: str) -> str:
    return json.dumps({"paraphrases": texts})


def test_the_request_asks_for_that_many_under_a_strict_schema():
    request = write_rewrite_request("What is {x}?", count=8, temperature=0.9, seed=5)
    assert "Reword this question 8 times" in request.messages[-1]["content"]
    assert "<question>\nWhat is {x}?\n</question>" in request.messages[-1]["content"]
    assert (request.temperature, request.seed) == (0.9, 5)
    assert request.response_format is not None
    schema = request.response_format["json_schema"]
    assert (schema["name"], schema["strict"]) == ("paraphrases", True)


def test_more_and_longer_rewordings_get_more_room():
    def room(question: str, count: int) -> int:
        return write_rewrite_request(question, count=count, temperature=1, seed=1).max_tokens

    assert room("why", 2) < room("why", 8) < room("why " * 200, 8)


def test_a_count_below_one_is_refused():
    with pytest.raises(InvalidInputError, match="at least 1"):
        write_rewrite_request("why", count=0, temperature=1, seed=1)


def test_the_version_is_a_short_hash():
    assert len(REWRITE_PROMPT_VERSION) == 12


@pytest.mark.parametrize(
    "wrap", ["{}", "```json\n{}\n```", "```\n{}```", "  {}\n", "Sure! Here they are:\n{}\nDone."]
)
def test_json_is_read_with_and_without_a_fence_or_prose_around_it(wrap):
    text = wrap.replace("{}", written("One?", "Two?"))
    assert read_paraphrases(text, original="Zero?") == ("One?", "Two?")


def test_empties_repeats_and_copies_of_the_original_are_dropped():
    text = written("", "  ", "HOW do  I?", "One?", "one? ", "Straße", "STRASSE", " two  words ")
    assert read_paraphrases(text, original="how do i?") == ("One?", "Straße", "two words")


def test_invisible_characters_are_taken_out_and_the_end_of_a_name_makes_another_text():
    text = written("re\u200bset it?", "Reset it", "In C++?", "In C#?")
    assert read_paraphrases(text, original="In C?") == ("reset it?", "In C++?", "In C#?")


def test_list_numbers_bullets_and_enclosing_quotes_are_taken_off():
    text = written("1. One?", "(2) Two?", "- Three?", '"Four?"', "\u201cFive?\u201d", "3 of six?")
    assert read_paraphrases(text, original="0?") == (
        "One?", "Two?", "Three?", "Four?", "Five?", "3 of six?",
    )  # fmt: skip


def test_what_the_question_wears_itself_stays():
    text = written('"at or above", why?', "1. still first?")
    assert read_paraphrases(text, original="1. first?")[1] == "1. still first?"
    assert read_paraphrases(written('"quoted"'), original='"so"') == ('"quoted"',)


@pytest.mark.parametrize(
    "text",
    ["", "Sure! 1. One?", "[]", '{"paraphrases": "One?"}', '{"paraphrases": [1]}', "{}", "null",
     '{"paraphrases": ["cut off'],
)  # fmt: skip
def test_anything_else_is_refused_with_the_text_found(text):
    with pytest.raises(InvalidInputError, match="reading paraphrases") as refused:
        read_paraphrases(text, original="why")
    assert "does not reason before it answers" in refused.value.next_step
