"""What is known of a question that got no answer: where it went, what was asked, what it cost."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from serving.errors import BudgetExceededError, UpstreamError
from serving.models.protocols import ChatRequest
from tests.serving.fakes import (
    HITS,
    INVALID,
    STUDENT_PRICE,
    CannedChatModel,
    CannedRetriever,
    make_engine,
)
from tests.serving.running import run_app

DOWN = UpstreamError("asking", expected="200", found="503", next_step="wait")
SPENT = BudgetExceededError("asking", expected="a", found="b", next_step="c")
STUDENT_COST = STUDENT_PRICE.cost_usd(100, 20)


class _Hanging(CannedChatModel):
    async def complete(self, request: ChatRequest) -> Any:
        self.requests.append(request)
        await asyncio.sleep(3600)


@pytest.mark.parametrize(
    ("teacher", "outcome", "error"),
    [
        (_Hanging("t"), "deadline-exceeded", "CancelledError: ended before it answered"),
        (CannedChatModel("t", DOWN), "answered", "503"),
        (CannedChatModel("t", RuntimeError("secret")), "internal-error", "RuntimeError: ended"),
    ],
)
async def test_a_paid_answer_that_was_rejected_is_traced_and_counted(
    tmp_path: Path, teacher: CannedChatModel, outcome: str, error: str
) -> None:
    """The student's invalid answer was paid, whatever became of the teacher after it."""
    student = CannedChatModel("s", price=STUDENT_PRICE)
    engine = make_engine(student=student, teacher=teacher)
    async with run_app(engine, tmp_path, request_deadline_seconds=0.3) as running:
        student.answer = INVALID
        await running.ask()
        metrics = await running.metrics()
    (trace,) = running.traces()
    assert trace["outcome"] == outcome
    asked, replaced = trace["attempts"]
    assert (asked["role"], asked["verdict"], asked["error"]) == (
        "student",
        "uncited_statement",
        None,
    )
    assert (replaced["role"], replaced["cost_usd"]) == ("teacher", 0.0)
    assert error in replaced["error"]
    assert "secret" not in str(trace)
    assert trace["cost_usd"] == asked["cost_usd"] == pytest.approx(STUDENT_COST)
    assert f'cost_usd_total{{role="student"}} {STUDENT_COST}' in metrics
    assert (trace["route"], trace["route_reason"]) == ("student", "default")
    assert trace["selection_mode"] == "fallback"
    assert [hit["chunk_id"] for hit in trace["retrieved"]] == [hit.chunk_id for hit in HITS]
    assert trace["max_score"] == HITS[0].score
    assert trace["prompt_tokens_estimate"] > 0
    assert not trace["trainable"]


async def test_when_all_fail_each_failure_is_in_the_trace(tmp_path: Path) -> None:
    student, teacher = CannedChatModel("s"), CannedChatModel("t", SPENT)
    async with run_app(make_engine(student=student, teacher=teacher), tmp_path) as running:
        student.answer = DOWN
        response = await running.ask()
    assert response.status_code == 429
    (trace,) = running.traces()
    assert [(a["role"], bool(a["error"])) for a in trace["attempts"]] == [
        ("student", True),
        ("teacher", True),
    ]
    assert (trace["cost_usd"], trace["served_by"]) == (0.0, None)


async def test_what_failed_before_anything_was_found_has_no_route(tmp_path: Path) -> None:
    class Broken(CannedRetriever):
        async def retrieve(self, question: str) -> Any:
            if self.questions:
                raise OSError
            return await super().retrieve(question)

    async with run_app(make_engine(retriever=Broken()), tmp_path) as running:
        assert (await running.ask()).status_code == 500
    (trace,) = running.traces()
    assert (trace["route"], trace["attempts"], trace["retrieved"]) == (None, [], [])
