"""From medoids to paraphrases."""

import asyncio
import json

import numpy as np
import pytest

from assets.paraphrases.multiplying import Multiplication, paraphrase_medoids
from resources.spending import SpendMeter
from serving.errors import (
    BudgetExceededError,
    DeadlineExceededError,
    UpstreamError,
    UpstreamRejectedError,
)
from tests.serving.fakes import CannedChatModel

SEEDS = [("s1", "Why one?"), ("s2", "Why two?"), ("s3", "why three")]


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def advance(self, description: str, done: int, total: int, note: str = "") -> None:  # noqa: ARG002
        self.notes.append(note)


def embed_by_words(texts):
    """Count words: equal bags are near, texts without a common word are orthogonal."""
    rows = np.zeros((len(texts), 512), np.float32)
    for row, text in enumerate(texts):
        for word in ["every", *text.casefold().strip("?!.").split()]:
            rows[row, sum(word.encode()) * 31 % 512] += 1
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def multiply(answer, *, count: int = 2, notes: Notes | None = None):
    teacher = CannedChatModel("teacher-1", answer)
    made = asyncio.run(
        paraphrase_medoids(
            SEEDS[:2],
            seeds=SEEDS,
            teacher=teacher,
            embed=embed_by_words,
            count=count,
            temperature=0.9,
            concurrency=2,
            progress=notes or Notes(),
        )
    )
    return teacher, made


def texts_of(made: Multiplication) -> list[tuple[str, str]]:
    return [(row.seed_id, row.text) for row in made.paraphrases]


def write(*texts: str) -> str:
    return json.dumps({"paraphrases": texts})


def of_question(by_word: dict[str, list[str]]):
    """Answer with the texts whose word is in the question, whatever the draw."""

    def answer(request) -> str:
        question = request.messages[-1]["content"].split("<question>")[1]
        return next(write(*texts) for word, texts in by_word.items() if word in question)

    return answer


def test_what_repeats_a_seed_or_an_earlier_paraphrase_is_dropped_and_the_rest_keeps_its_parent():
    _, made = multiply(
        of_question({"one": ["WHY, three!", "so why one"], "two": ["So, why one?", "so why two"]})
    )
    assert texts_of(made) == [("s1", "so why one"), ("s2", "so why two")]
    assert made.dropped_by_reason == {"same_text": 2}
    assert len({row.question_id for row in made.paraphrases}) == 2


def test_a_near_duplicate_is_dropped_even_across_seeds():
    _, made = multiply(
        of_question({"one": ["why one then", "two why"], "two": ["then why one", "why two so"]})
    )
    assert texts_of(made) == [("s1", "why one then"), ("s2", "why two so")]
    assert made.dropped_by_reason == {"near_duplicate": 2}


def test_what_is_far_from_its_seed_is_dropped():
    _, made = multiply(
        of_question({"one": ["bake fresh bread today", "why one so"], "two": ["why two so"]}),
    )
    assert texts_of(made) == [("s1", "why one so"), ("s2", "why two so")]
    assert made.dropped_by_reason == {"far_from_seed": 1}


def test_faults_are_counted_by_reason():
    _, made = multiply(
        of_question(
            {
                "one": ["I'm sorry, I can't do that", "why one so"],
                "two": ["why two 7", "so why two"],
            }
        )
    )
    assert made.dropped_by_reason == {"about_the_task": 1, "added_detail": 1}


def test_a_medoid_with_too_little_that_is_usable_is_asked_for_once_more_with_another_draw():
    def answer(request) -> str:
        is_two = "two" in request.messages[-1]["content"]
        if is_two:
            return write("so why two", "why two then")
        return write("why one 7") if len(asked) < 2 else write("so why one", "why one then")

    asked: list[int] = []
    teacher = CannedChatModel("teacher-1", lambda r: (asked.append(r.seed), answer(r))[1])
    made = asyncio.run(
        paraphrase_medoids(
            SEEDS[:1], seeds=SEEDS, teacher=teacher, embed=embed_by_words, count=2,
            temperature=0.9, concurrency=1, progress=Notes(),
        )
    )  # fmt: skip
    assert len(set(asked)) == 2
    assert made.asked_again_count == 1
    assert texts_of(made) == [("s1", "so why one"), ("s1", "why one then")]


def test_two_draws_never_yield_more_than_was_asked_for():
    draws = iter([["why one a"], ["why one b", "why one c", "why one d", "why one e"]])
    teacher = CannedChatModel("teacher-1", lambda _: write(*next(draws)))
    made = asyncio.run(
        paraphrase_medoids(
            SEEDS[:1], seeds=SEEDS, teacher=teacher, embed=embed_by_words, count=4,
            temperature=0.9, concurrency=1, progress=Notes(),
        )
    )  # fmt: skip
    assert len(made.paraphrases) == 4
    assert made.dropped_by_reason == {"surplus": 1}


def test_a_medoid_without_a_readable_reply_yields_nothing_and_is_counted():
    def answer(request) -> str:
        is_first = "Why one?" in request.messages[-1]["content"]
        return "Sure! 1." if is_first else write("so why two")

    notes = Notes()
    teacher, made = multiply(answer, notes=notes)
    assert texts_of(made) == [("s2", "so why two")]
    assert made.unread_count == 1
    assert made.asked_again_count == 1
    assert len({request.seed for request in teacher.requests}) == 6
    assert notes.notes[-1] == "1 without a readable reply"


def test_a_teacher_that_only_refuses_yields_nothing_and_says_why():
    _, made = multiply(lambda _: write("I'm sorry, but I can't help with that."))
    assert made.paraphrases == ()
    assert made.dropped_by_reason == {"about_the_task": 4}


def multiply_many(count: int, answer):
    """Reword as many seeds, each of a word of its own; concurrency 4."""
    seeds = [(f"s{n}", f"Why {'a' * (n + 1)}?") for n in range(count)]
    teacher = CannedChatModel("teacher-1", answer)
    teacher.meter = SpendMeter(budget_usd=1.0)
    notes = Notes()
    made = asyncio.run(
        paraphrase_medoids(
            seeds, seeds=seeds, teacher=teacher, embed=embed_by_words, count=1,
            temperature=0.9, concurrency=4, progress=notes,
        )
    )  # fmt: skip
    return made, notes


def reword_or_fail(failures: dict[str, Exception]):
    """Put "so" before the question; fail at questions that contain a key of `failures`."""

    def answer(request) -> str:
        question = request.messages[-1]["content"].split("<question>")[1].split("</question>")[0]
        for word, failure in failures.items():
            if f" {word}?" in question:
                raise failure
        return write(f"so {question.strip().lower()}")

    return answer


def fail(kind: type[UpstreamError]) -> UpstreamError:
    return kind("asking", expected="200", found="no", next_step="wait")


def test_a_medoid_that_the_teacher_refuses_or_fails_at_costs_its_rewordings_alone():
    failures = {
        "a" * 1: fail(UpstreamRejectedError),
        "a" * 11: fail(UpstreamError),
        "a" * 21: fail(DeadlineExceededError),
    }
    made, notes = multiply_many(40, reword_or_fail(failures))
    assert made.lost_by_verdict == {"rejected_by_teacher": 1, "unanswered": 2}
    assert {row.seed_id for row in made.paraphrases} == {
        f"s{n}" for n in range(40) if n not in (0, 10, 20)
    }
    assert made.unread_count == 0
    assert "of 1.00" in notes.notes[-1]  # what was spent stands beside the count


@pytest.mark.parametrize("kind", [UpstreamRejectedError, UpstreamError])
def test_more_lost_medoids_than_chance_explains_stop_the_run(kind):
    failures = {"a" * length: fail(kind) for length in (1, 11, 21)}
    with pytest.raises(kind):
        multiply_many(39, reword_or_fail(failures))  # one in twenty of 39 is one


def test_an_empty_budget_stops_the_run():
    with pytest.raises(BudgetExceededError):
        multiply_many(39, reword_or_fail({"aa": fail(BudgetExceededError)}))
