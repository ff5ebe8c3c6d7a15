"""High stakes, chance, budgets and breakers: each gives its reason, and none the wrong model."""

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import BudgetExceededError, CircuitOpenError, ReleaseError, UpstreamError
from serving.models.breaker import CircuitBreaker
from serving.models.guarded import GuardedChatModel
from serving.pipeline import canary
from serving.pipeline.answer import AnswerPipeline
from serving.pipeline.canary import check_inputs_disjoint, draw_conversation
from serving.pipeline.circumstances import Circumstances
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.router import Route, RouterPolicy, draw_route, has_high_stakes
from serving.pipeline.validator import ValidatorPolicy
from serving.tracing.record import build_record, new_trace_id
from tests.serving.fakes import HITS, INVALID, CannedChatModel, CannedRetriever, make_engine

WAIT_SECONDS = 4321
DEFAULT = Route(to="student", reason="default")
DOWN = UpstreamError("asking t", expected="an answer", found="none", next_step="wait")


def pipeline(**changes) -> AnswerPipeline:
    settings = {
        "retriever": CannedRetriever(),
        "teacher": CannedChatModel("t"),
        "student": CannedChatModel("s"),
        "prompt": PromptFormat(),
        "router": RouterPolicy(),
        "validator": ValidatorPolicy(),
        "count_tokens": len,
    }
    return AnswerPipeline(**(settings | changes))


class Purse:
    """Allows so many calls of the teacher, and keeps what they were for."""

    def __init__(self, calls: int) -> None:
        self.left = calls
        self.reasons: list[str] = []

    async def __call__(self, reason: str) -> int | None:
        self.reasons.append(reason)
        self.left -= 1
        return None if self.left >= 0 else WAIT_SECONDS


def stopped(name: str) -> GuardedChatModel:
    inner = CannedChatModel(name)
    breaker = CircuitBreaker()
    for _ in range(5):
        breaker.leave(breaker.enter(), has_failed=True)
    return GuardedChatModel(inner, breaker=breaker, timeout_seconds=1)


@pytest.mark.parametrize(
    ("question", "policy", "expected"),
    [
        ("How do I delete all data?", {"high_stakes_terms": ("delete all",)}, True),
        ("How do I DELETE  all data?", {"high_stakes_terms": ("delete",)}, True),
        ("undeleted rows", {"high_stakes_terms": ("delete",)}, False),
        ("Where?", {"high_stakes_pages": ("guides",)}, True),
        ("Where?", {"high_stakes_pages": ("/guides/environment-variables/",)}, True),
        ("Where?", {"high_stakes_pages": ("guides/env",)}, False),
        ("Where?", {"high_stakes_pages": ("guides/deploy",)}, False),
        ("Where?", {}, False),
    ],
)
async def test_marked_topics_go_to_the_teacher(question, policy, expected):
    router = RouterPolicy(**policy)
    assert has_high_stakes(question, HITS, router) == expected
    answered = await pipeline(router=router).answer(question)
    assert (answered.route.reason == "high_stakes") == expected
    assert (answered.served_by == "teacher") == expected


async def test_high_stakes_are_refused_rather_than_left_to_the_student():
    router = RouterPolicy(high_stakes_pages=("guides",))
    with pytest.raises(BudgetExceededError) as spent:
        await pipeline(router=router).answer("Where?", around=Circumstances(allow_teacher=Purse(0)))
    assert spent.value.retry_after_seconds == WAIT_SECONDS
    with pytest.raises(CircuitOpenError):
        await pipeline(router=router, teacher=stopped("t")).answer("Where?")


async def test_who_insists_on_the_teacher_gets_no_answer_of_the_student_instead():
    around = Circumstances(allow_teacher=Purse(0), insists_on_teacher=True)
    with pytest.raises(BudgetExceededError):
        await pipeline().answer("Where?", prefer_quality=True, around=around)
    around = Circumstances(insists_on_teacher=True)
    with pytest.raises(CircuitOpenError):
        await pipeline(teacher=stopped("t")).answer("Where?", prefer_quality=True, around=around)
    asks_for_it = Circumstances(allow_teacher=Purse(0))  # by a prefix, which insists on nothing
    answered = await pipeline().answer("Where?", prefer_quality=True, around=asks_for_it)
    assert (answered.served_by, answered.route.reason) == ("student", "budget")


async def test_past_the_budget_the_student_answers_and_says_so():
    purse = Purse(1)
    path = pipeline(router=RouterPolicy(min_retrieval_score=0.99))
    found = [
        await path.answer("Where?", around=Circumstances(allow_teacher=purse)) for _ in range(2)
    ]
    assert [(a.served_by, a.route.reason) for a in found] == [
        ("teacher", "low_retrieval"),
        ("student", "budget"),
    ]
    assert purse.reasons == ["low_retrieval", "low_retrieval"]


async def test_past_the_budget_an_invalid_student_answer_is_a_refusal():
    for policy in (RouterPolicy(), RouterPolicy(min_retrieval_score=0.99)):
        teacher = CannedChatModel("t")
        path = pipeline(router=policy, teacher=teacher, student=CannedChatModel("s", INVALID))
        answered = await path.answer("Where?", around=Circumstances(allow_teacher=Purse(0)))
        assert answered.refused
        assert not teacher.requests
        assert (answered.served_by, answered.model) == ("student", "s")
        assert not answered.used_fallback


@pytest.mark.parametrize("was_called", [False, True])
async def test_a_teacher_without_an_answer_served_nobody(was_called):
    teacher = CannedChatModel("t", DOWN) if was_called else stopped("t")
    path = pipeline(teacher=teacher, student=CannedChatModel("s", INVALID))
    answered = await path.answer("Where?")
    assert answered.refused
    assert (answered.served_by, answered.used_fallback) == ("student", was_called)


async def test_a_refusal_the_teacher_did_not_write_is_no_teachers_trace():
    path = pipeline(student=CannedChatModel("s", INVALID))
    for purse, expected in ((Purse(0), ("student", "rule")), (Purse(1), ("teacher", "fallback"))):
        answered = await path.answer("Where?", around=Circumstances(allow_teacher=purse))
        trace = build_record(
            answered,
            origin=make_engine().trace_origin("prod"),
            trace_id=new_trace_id(),
            asked_at=datetime(2026, 1, 1, tzinfo=UTC),
        )
        assert (trace.served_by, trace.selection_mode) == expected


async def test_a_teachers_answer_is_counted_by_outcome():
    purse = Purse(9)
    around = Circumstances(allow_teacher=purse)
    await pipeline().answer("Where?", around=around)
    assert purse.reasons == []
    await pipeline(student=CannedChatModel("s", INVALID)).answer("Where?", around=around)
    assert purse.reasons == ["default"]


@pytest.mark.parametrize(("draw", "reasons"), [(0.1, ["default"]), (0.9, ["canary"])])
async def test_of_a_canary_only_the_control_is_the_operators(draw, reasons):
    """What replaces an invalid answer of the student's side is caused by the question."""
    purse = Purse(9)
    around = Circumstances(allow_teacher=purse, canary_draw=draw)
    path = pipeline(student=CannedChatModel("s", INVALID), router=RouterPolicy(canary_ratio=0.5))
    answered = await path.answer("Where?", around=around)
    assert (answered.served_by, answered.route.reason) == ("teacher", "canary")
    assert purse.reasons == reasons


async def test_a_stopped_model_is_gone_around():
    teacher = await pipeline(student=stopped("s")).answer("Where?")
    assert (teacher.served_by, teacher.route.reason) == ("teacher", "breaker")
    low = RouterPolicy(min_retrieval_score=0.99)
    student = await pipeline(teacher=stopped("t"), router=low).answer("Where?")
    assert (student.served_by, student.route.reason) == ("student", "breaker")
    assert len(student.attempts) == 1


async def test_with_both_stopped_nobody_is_called():
    path = pipeline(teacher=stopped("t"), student=stopped("s"))
    with pytest.raises(UpstreamError):
        await path.answer("Where?")
    assert not path.teacher.inner.requests
    assert not path.student.inner.requests


@given(draw=st.floats(0, 1, exclude_max=True), ratio=st.floats(0, 1))
def test_exploration_says_how_likely_it_was(draw, ratio):
    policy = RouterPolicy(explore_ratio=ratio)
    found = draw_route(DEFAULT, policy, explore_draw=draw, canary_draw=None)
    if draw < ratio:
        assert (found.to, found.reason, found.propensity) == ("teacher", "explore", ratio)
    else:
        assert (found.to, found.reason) == ("student", "default")
        assert found.propensity == pytest.approx(1 - ratio)


async def test_what_a_rule_decided_is_not_left_to_chance():
    router = RouterPolicy(min_retrieval_score=0.99, explore_ratio=1.0, canary_ratio=0.0)
    around = Circumstances(explore_draw=0.0, canary_draw=0.0)
    answered = await pipeline(router=router).answer("Where?", around=around)
    assert (answered.route.reason, answered.route.propensity) == ("low_retrieval", 1.0)


async def test_without_draws_nothing_is_left_to_chance():
    answered = await pipeline(router=RouterPolicy(explore_ratio=1.0, canary_ratio=0.0)).answer("W?")
    assert (answered.served_by, answered.route) == ("student", DEFAULT)


def test_a_conversation_stays_on_its_side_and_the_sides_are_as_large_as_asked():
    draws = [draw_conversation(salt="s", conversation_id=f"c-{i}") for i in range(4000)]
    assert draws == [draw_conversation(salt="s", conversation_id=f"c-{i}") for i in range(4000)]
    policy = RouterPolicy(canary_ratio=0.25)
    routes = [draw_route(DEFAULT, policy, explore_draw=None, canary_draw=d) for d in draws]
    share = sum(r.canary_arm == "student" for r in routes) / len(routes)
    assert abs(share - 0.25) < 0.03  # 4 standard errors
    assert {(r.to, r.canary_arm, r.reason, r.propensity) for r in routes} == {
        ("student", "student", "canary", 0.25),
        ("teacher", "teacher", "canary", 0.75),
    }
    other = [draw_conversation(salt="t", conversation_id=f"c-{i}") for i in range(4000)]
    both = sum(a < 0.25 and b < 0.25 for a, b in zip(draws, other, strict=True)) / 4000
    assert abs(both - 0.0625) < 0.02  # another salt is another, independent draw


def test_a_draw_from_what_the_prompt_is_made_of_is_refused(monkeypatch):
    check_inputs_disjoint()

    def draw(*, salt: str, question: str) -> float:
        return len(salt + question) / 100

    monkeypatch.setattr(canary, "draw_conversation", draw)
    with pytest.raises(ReleaseError, match="question"):
        check_inputs_disjoint()


def test_shares_that_are_none_are_refused():
    with pytest.raises(ValueError, match="explore_ratio is a share"):
        RouterPolicy(explore_ratio=2)


def test_concurrent_questions_do_not_share_a_route():
    async def ask_all():
        path = pipeline(router=RouterPolicy(explore_ratio=0.5))
        draws = [i / 100 for i in range(100)]
        return await asyncio.gather(
            *(path.answer("Where?", around=Circumstances(explore_draw=d)) for d in draws)
        )

    found = asyncio.run(ask_all())
    assert [a.served_by for a in found] == ["teacher"] * 50 + ["student"] * 50
