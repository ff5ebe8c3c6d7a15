"""Rewordings are new, distinct, repeatable and keep every fact."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.models.extractive.paraphrasing import reword

QUESTIONS = [
    "How do I serve the current release?",
    "What is a medoid?",
    "What does `make demo` do?",
    "Why must I not set `alpha` to 0?",
    "where are traces written",
    "default alpha",
    "HTTP/1.1 502 upstream-failed",
    "npm ERR! code ERESOLVE unable to resolve dependency tree",
    "The run stopped at 12 of 150 cases.",
    "Give me the signing key",
    "How many paraphrases are written per medoid?",
    "route_reason default vs low_retrieval",
    'What does "at or above" mean for 0.92?',
]
FOREIGN = [
    "¿Cómo se hace una tortilla de patatas?",
    "Der Server startet nicht, was tun?",
    "今日は?",
]


def identity(text: str) -> str:
    return " ".join(text.casefold().split())


@pytest.mark.parametrize("question", [*QUESTIONS, *FOREIGN])
@pytest.mark.parametrize("temperature", [0.0, 0.9, 2.0])
def test_variants_differ_from_the_question_and_from_each_other(question, temperature):
    variants = reword(question, count=8, temperature=temperature, seed=7)
    identities = {identity(v) for v in (question, *variants)}
    assert len(identities) == 1 + len(variants)
    assert len(variants) >= 1


@pytest.mark.parametrize("question", QUESTIONS)
def test_eight_variants_of_english_questions_are_found(question):
    assert len(reword(question, count=8, temperature=0.9, seed=7)) == 8


@pytest.mark.parametrize(
    ("question", "kept"),
    [
        ("Why must I not set `alpha` to 0?", ["`alpha`", "0", " not "]),
        ("What does UNDERSTUDY_HOME override in config/understudy.yaml?", ["UNDERSTUDY_HOME"]),
        ("Why is 0.92 the limit and never 0.85?", ["0.92", "0.85", "never"]),
        ('What does "at or above" mean?', ['"at or above"']),
        ("Which flag does `understudy run --force` need?", ["`understudy run --force`"]),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_identifiers_numbers_quotes_and_negations_survive(question, kept, seed):
    for variant in reword(question, count=10, temperature=1.5, seed=seed):
        assert all(part in f"{variant} " for part in kept), variant


def test_equal_arguments_give_equal_variants_and_seeds_matter():
    def variants(seed: int) -> tuple[str, ...]:
        return reword(QUESTIONS[0], count=6, temperature=0.9, seed=seed)

    assert variants(1) == variants(1)
    assert len({variants(seed) for seed in range(5)}) > 1


def test_at_temperature_zero_the_plainest_forms_come_first_whatever_the_seed():
    plain = {reword(QUESTIONS[0], count=3, temperature=0.0, seed=s) for s in range(5)}
    assert plain == {
        (
            "What is the way to serve the current release?",
            "I want to serve the current release, how?",
            "Explain how to serve the current release.",
        )
    }


def test_other_languages_get_no_english_templates():
    for question in FOREIGN:
        for variant in reword(question, count=8, temperature=0.5, seed=1):
            assert "please" not in variant.casefold()
            assert "question" not in variant.casefold()


@given(question=st.text(max_size=200), seed=st.integers(), temperature=st.floats(0, 2))
@settings(max_examples=200, deadline=None)
def test_any_text_is_survived_and_never_repeated(question, seed, temperature):
    variants = reword(question, count=5, temperature=temperature, seed=seed)
    assert len(variants) <= 5
    assert identity(question) not in {identity(v) for v in variants}
    assert all(v.strip() and "\ue000" not in v for v in variants) or "\ue000" in question
