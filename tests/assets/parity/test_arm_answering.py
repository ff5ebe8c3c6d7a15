"""The rows of an arm: answers, and errors that are no refusals."""

import asyncio

import pytest

from assets.parity.answering import answer_cases
from serving.errors import BudgetExceededError, UpstreamError
from serving.models.protocols import NoProgress, Price
from serving.pipeline.answer import AnswerPipeline
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.router import RouterPolicy
from serving.pipeline.validator import ValidatorPolicy
from tests.serving.fakes import GOOD, INVALID, CannedChatModel, CannedRetriever

DOWN = UpstreamError("asking", expected="200", found="503", next_step="wait")
BROKE = BudgetExceededError("asking", expected="budget", found="none", next_step="raise it")


def answer(arm: str, *, teacher, student) -> dict:
    pipeline = AnswerPipeline(
        retriever=CannedRetriever(),
        teacher=CannedChatModel("teacher-1", teacher, price=Price()),
        student=CannedChatModel("student@1", student),
        prompt=PromptFormat(),
        router=RouterPolicy(),
        validator=ValidatorPolicy(),
        count_tokens=len,
    )
    rows = answer_cases(
        [(arm, ("g1", "Where?"))],
        repeat=0,
        pipelines={arm: pipeline},
        concurrency=2,
        progress=NoProgress(),
        description="asking",
    )
    return asyncio.run(rows)[0]


@pytest.mark.parametrize("arm", ["teacher", "student", "routed"])
def test_an_answer_has_no_error(arm):
    row = answer(arm, teacher=GOOD, student=GOOD)
    assert (row["error"], row["refused"], row["used_fallback"]) == (None, False, False)


@pytest.mark.parametrize(
    ("arm", "teacher", "student"),
    [("teacher", DOWN, GOOD), ("student", GOOD, DOWN), ("routed", DOWN, INVALID)],
)
def test_a_model_that_fails_is_an_error_and_no_refusal(arm, teacher, student):
    row = answer(arm, teacher=teacher, student=student)
    assert "503" in row["error"]
    assert "refused" not in row


def test_a_student_that_fails_is_replaced():
    row = answer("routed", teacher=GOOD, student=DOWN)
    assert (row["error"], row["served_by"], row["used_fallback"]) == (None, "teacher", True)


@pytest.mark.parametrize(("arm", "student"), [("teacher", GOOD), ("routed", INVALID)])
def test_an_exhausted_budget_stops_the_arm(arm, student):
    with pytest.raises(BudgetExceededError):
        answer(arm, teacher=BROKE, student=student)
