"""Planted good answers pass on every axis; planted bad ones fail on the axis they are bad at."""

import pytest

from serving.models.extractive.judging import judge_answer
from tests.serving.models.extractive.conftest import make_sources

pytestmark = pytest.mark.real_models

SOURCES = (("Backups", "Schedule"), ("Backups", "Restoring"), ("Sync", "Conflicts: who wins"))
QUESTION = "How often does Tern take a backup?"
OUT_OF_SCOPE = "What is the weather in Paris tomorrow?"
GOOD = "Tern takes a backup every 6 hours by default. [1]"


@pytest.fixture
def scores(minilm_vectors):
    def judge(question: str, answer: str) -> dict[str, int]:
        ratings = judge_answer(question, make_sources(*SOURCES), answer, minilm_vectors)
        assert all(rating.reason for rating in ratings.values())
        return {axis: rating.score for axis, rating in ratings.items()}

    return judge


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (QUESTION, GOOD),
        (QUESTION, "By default Tern takes a backup every 6 hours. [1]"),
        ("How do I restore the newest backup?",
         "Run `tern restore --latest` to restore the newest backup. [2]"),
        ("Which change wins if two machines change one file?",
         "When two machines change the same file, the newer change wins. [3] The older version is "
         "kept beside it with the ending `.conflict`. [3]"),
        (OUT_OF_SCOPE, "REFUSE"),
        (OUT_OF_SCOPE, "I could not find this in the documentation: the weather"),
    ],
)  # fmt: skip
def test_good_answers_get_at_least_four_everywhere(scores, question, answer):
    assert min(scores(question, answer).values()) >= 4


@pytest.mark.parametrize(
    ("question", "answer", "axis"),
    [
        (QUESTION, "Tern takes a backup every 6 hours by default. [2]", "cites_right"),
        (QUESTION, "Tern takes a backup every 6 hours by default. [9]", "cites_right"),
        (QUESTION, "Tern takes a backup every 6 hours by default.", "cites_right"),
        (QUESTION, "Backups are encrypted with a quantum key on the moon. [1]", "grounded"),
        (QUESTION, "Run `tern restore --latest` to restore the newest backup. [2]", "complete"),
        (QUESTION, "REFUSE", "refuses_right"),
        (OUT_OF_SCOPE, GOOD, "refuses_right"),
        (QUESTION, "asdf qwer zxcv", "complete"),
        (QUESTION, "", "grounded"),
        (QUESTION, "Tern takes a backup <br/> every 6 hours by [default](/x) and [1]", "clear"),
        (QUESTION, f"{GOOD} {GOOD}", "clear"),
    ],
)
def test_planted_faults_are_seen_on_their_axis(scores, question, answer, axis):
    assert scores(question, answer)[axis] <= 3


def test_one_bad_statement_costs_part_of_the_grounding(scores):
    mixed = f"{GOOD} Penguins store it on the moon. [1]"
    assert 1 < scores(QUESTION, mixed)["grounded"] < 5


def test_no_sources_make_every_answer_wrong_and_a_refusal_right(minilm_vectors):
    answered = judge_answer(QUESTION, (), GOOD, minilm_vectors)
    refused = judge_answer(QUESTION, (), "REFUSE", minilm_vectors)
    assert answered["refuses_right"].score == 1
    assert min(rating.score for rating in refused.values()) == 5
