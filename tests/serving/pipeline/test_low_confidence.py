"""A valid answer that the student is not sure enough of goes to the teacher, and only then."""

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest

from serving.errors import DeadlineExceededError, UpstreamError
from serving.models.asking import CALLER_DEADLINE
from serving.models.breaker import CircuitBreaker
from serving.models.guarded import SETTLING_SECONDS, GuardedChatModel
from serving.models.protocols import ChatRequest, Completion
from serving.pipeline.answer import AnswerPipeline
from serving.pipeline.confidence import RiskThreshold
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.router import Route, RouterPolicy, doubt_answer
from serving.pipeline.validator import ValidatorPolicy
from serving.tracing.record import build_record
from tests.serving.fakes import GOOD, INVALID, CannedChatModel, CannedRetriever, make_engine
from tests.serving.pipeline.test_confidence import SIGNS, make_calibration

LIMITS = (RiskThreshold(risk_limit_ratio=0.05, threshold=0.6, accepted_count=59),)
CALIBRATION = make_calibration(
    signals=("raw_logit",), means=(0.0,), scales=(1.0,), weights=(1.0,), intercept=0.0,
    thresholds=LIMITS,
)  # fmt: skip
DOWN = UpstreamError("asking", expected="200", found="503", next_step="wait")


@dataclass
class SayingStudent(CannedChatModel):
    """A canned model that is as sure as it was told to be."""

    mean_logprob: float | None = -0.1

    async def complete(self, request: ChatRequest) -> Completion:
        signs = None if self.mean_logprob is None else SIGNS
        return replace(await super().complete(request), mean_logprob=self.mean_logprob, signs=signs)


def path(mean_logprob: float | None, *, student=GOOD, teacher=GOOD, **changes) -> AnswerPipeline:
    settings = {
        "retriever": CannedRetriever(),
        "teacher": CannedChatModel("teacher-1", teacher),
        "student": SayingStudent("student@1", student, mean_logprob=mean_logprob),
        "prompt": PromptFormat(),
        "router": RouterPolicy(),
        "validator": ValidatorPolicy(),
        "count_tokens": len,
        "calibration": CALIBRATION,
    }
    return AnswerPipeline(**(settings | changes))


SURE, UNSURE = -0.4, -0.6  # exp: 0.67 and 0.55


async def test_a_sure_answer_is_served_and_its_confidence_is_known():
    answered = await path(SURE).answer("Where?")
    assert (answered.served_by, answered.route.reason) == ("student", "default")
    assert answered.confidence == pytest.approx(0.6703, abs=1e-4)


async def test_an_unsure_answer_is_replaced_by_the_teachers_and_says_why():
    answered = await path(UNSURE).answer("Where?")
    assert (answered.served_by, answered.route) == (
        "teacher",
        Route(to="student", reason="low_confidence"),
    )
    assert answered.used_fallback
    assert answered.confidence == pytest.approx(0.5488, abs=1e-4)
    assert [a.role for a in answered.attempts] == ["student", "teacher"]


@pytest.mark.parametrize("teacher", [DOWN, INVALID])
async def test_where_the_teacher_has_no_answer_the_valid_unsure_one_is_served(teacher):
    answered = await path(UNSURE, teacher=teacher).answer("Where?")
    assert (answered.served_by, answered.refused, answered.last.role) == (
        "student", False, "student",
    )  # fmt: skip
    assert answered.answer == GOOD.replace("[1]", "[docs:guides/environment-variables/2]")


@pytest.mark.parametrize(("student", "refused"), [(GOOD, False), (INVALID, True)])
async def test_a_teacher_that_hangs_takes_no_answer_away(student, refused):
    """It would have had a minute, and the question has less: what the student said is shown."""
    hanging = CannedChatModel("teacher-1", GOOD, delay_seconds=30)
    teacher = GuardedChatModel(hanging, breaker=CircuitBreaker(), timeout_seconds=60)
    deadline_set = CALLER_DEADLINE.set(time.monotonic() + SETTLING_SECONDS + 0.2)
    try:
        answered = await replace(path(UNSURE, student=student), teacher=teacher).answer("Where?")
    finally:
        CALLER_DEADLINE.reset(deadline_set)
    assert (answered.refused, len(answered.attempts)) == (refused, 2)
    assert isinstance(answered.attempts[1].raised, DeadlineExceededError)
    if not refused:
        assert answered.served_by == "student"


async def test_a_model_with_no_time_left_is_not_blamed_for_it():
    teacher = GuardedChatModel(
        CannedChatModel("teacher-1", GOOD), breaker=CircuitBreaker(), timeout_seconds=60
    )
    deadline_set = CALLER_DEADLINE.set(time.monotonic() + SETTLING_SECONDS / 2)
    try:
        for _ in range(10):
            answered = await replace(path(UNSURE), teacher=teacher).answer("Where?")
            assert answered.served_by == "student"
    finally:
        CALLER_DEADLINE.reset(deadline_set)
    assert teacher.inner.requests == []
    assert not teacher.is_stopped


@pytest.mark.parametrize(
    "changes",
    [
        {"calibration": None},
        {"calibration": replace(CALIBRATION, thresholds=())},
        {"router": RouterPolicy(maximum_risk_ratio=None)},
        {"router": RouterPolicy(maximum_risk_ratio=0.04)},
    ],
)
async def test_without_a_certified_threshold_nothing_changes(changes):
    answered = await path(UNSURE, **changes).answer("Where?")
    assert (answered.served_by, answered.route.reason) == ("student", "default")


async def test_an_answer_of_unknown_confidence_is_doubted():
    answered = await path(None).answer("Where?")
    assert (answered.served_by, answered.route.reason, answered.confidence) == (
        "teacher", "low_confidence", None,
    )  # fmt: skip


async def test_an_invalid_answer_is_no_matter_of_confidence():
    answered = await path(SURE, student=INVALID).answer("Where?")
    assert (answered.served_by, answered.route.reason, answered.confidence) == (
        "teacher", "default", None,
    )  # fmt: skip


async def test_the_student_arm_is_never_replaced():
    answered = await path(UNSURE).answer("Where?", mode="student")
    assert (answered.served_by, len(answered.attempts)) == ("student", 1)
    assert answered.confidence is not None


def test_the_threshold_itself_is_sure_enough():
    route = Route(to="student", reason="default")
    assert doubt_answer(route, 0.6, 0.6) == route
    assert doubt_answer(route, 0.5999, 0.6).reason == "low_confidence"
    assert doubt_answer(route, None, None) == route


async def test_the_trace_holds_the_confidence_and_the_reason():
    answered = await path(UNSURE).answer("Where?")
    record = build_record(
        answered,
        origin=make_engine().trace_origin("test"),
        trace_id="t",
        asked_at=datetime(2026, 11, 22, tzinfo=UTC),
    )
    assert record.confidence == answered.confidence
    assert (record.route, record.route_reason, record.selection_mode, record.served_by) == (
        "student", "low_confidence", "fallback", "teacher",
    )  # fmt: skip
