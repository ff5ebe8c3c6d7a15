"""Vetting: what is no rewording of its question."""

import pytest

from assets.paraphrases.vetting import find_fault, list_details

LONG = "I set `alpha` to 0.3 and citation_boost to 5, what does the run do with 1,300 examples?"


@pytest.mark.parametrize(
    ("text", "original"),
    [
        ("How large are chunks?", "how big are chunks"),
        ("chunk size", "how big are chunks"),
        ("can you tell me about phases", "phases: hitchhiker vs switch"),
        ("I'm sorry to ask again, but where are the traces?", "where are traces written"),
        ("Sure would like to know where traces go", "where are traces written"),
        ("i cannot start the server, why", "I can't start the server, why?"),
        ("What happens to 1300 examples if ALPHA is 0.3 and citation_boost is 5?", LONG),
        ("alpha .3 or citation_boost 5", "citation_boost 5 and alpha .3?"),
        ("citation_boost 5 limit", LONG),  # terse: one of the details is enough
        ("input and output of the judge, e.g. its axes", "inputs/outputs of the judge, e.g. axes"),
        ("Wo liegen die Traces?", "wo sind die Traces"),
        ("今日の天気は?", "今日の天気を教えて"),
    ],
)
def test_a_rewording_has_no_fault(text, original):
    assert find_fault(text, original=original) == ""


@pytest.mark.parametrize(
    ("text", "original", "fault"),
    [
        ("I'm sorry, but I can't help with that.", "how big are chunks", "about_the_task"),
        ("As an AI language model I do not know.", "how big are chunks", "about_the_task"),
        ("Here are 8 rewordings of it:", "how big are chunks", "about_the_task"),
        ("Sure! A paraphrase of your question", "how big are chunks", "about_the_task"),
        ("Paraphrase 2: how large are chunks", "how big are chunks", "about_the_task"),
        ("Chunks aim for 90 tokens.", "how big are chunks", "added_detail"),
        ("What does `minimum_score` do?", "what does the judge's limit do", "added_detail"),
        ("set UNDERSTUDY_SERVE_PHASE first", "can I force a phase", "added_detail"),
        ("What happens when alpha is 0.3 and the boost is 5 with 1300 examples in the run?", LONG,
         "lost_detail"),
        ("what does make do", "What does `make demo` do?", "lost_detail"),
        ("which limit", "Why is the limit of the guard 0.92 and not lower?", "lost_detail"),
        ("where is /v1/release", "what does GET /v1/ready return", "added_detail"),
        ("チャンクの大きさは?", "how big are chunks", "other_script"),
        ("Насколько велики фрагменты?", "how big are chunks", "other_script"),
        ("how big " + "really " * 40, "how big are chunks", "overlong"),
    ],
)  # fmt: skip
def test_what_is_no_rewording_is_named(text, original, fault):
    assert find_fault(text, original=original) == fault


def test_numbers_and_identifiers_are_found_and_ordinary_punctuation_is_not():
    text = "In config/understudy.yaml k=3, i.e. and/or `make demo --fast`; see judge.epoch, 0.92."
    assert list_details(text) == ["understudy.yaml", "make demo --fast", "judge.epoch", "3", "0.92"]


def test_details_are_compared_as_whole_words():
    assert find_fault("why 8 of them", original="why 80 of them") == "added_detail"
