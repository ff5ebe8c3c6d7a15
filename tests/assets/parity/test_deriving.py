"""Derived routes: what is decided anew over kept answers is what the request path would have done.

The routed arm is really executed here, over canned models, and compared row by row.
"""

from dataclasses import replace

import polars as pl
import pytest

from assets import tables
from assets.parity.answering import interleave
from assets.parity.arms import ARM_NAMES
from assets.parity.deriving import derive_arm, describe_routing, find_unequal_routes
from assets.parity.routes import Thresholds
from resources.chat_models import CachedChatModel
from serving.errors import BudgetExceededError
from serving.models.protocols import ChatRequest, Completion
from serving.pipeline.answer import AnswerPipeline
from serving.pipeline.router import RouterPolicy
from tests.assets.parity.asked_arms import DOWN, REFUSAL, ask_arms, make_cases, make_pipeline
from tests.serving.fakes import GOOD, INVALID, TEACHER_PRICE, CannedChatModel

ARMS = ("teacher", "student", "routed")
CASES = make_cases(4)


def ask(pipeline: AnswerPipeline, arms=ARMS) -> list[dict]:
    return ask_arms(CASES, dict.fromkeys(arms, pipeline))


POLICIES = {
    "default": RouterPolicy(long_context_tokens=100_000),
    "low_retrieval": RouterPolicy(long_context_tokens=100_000, min_retrieval_score=0.9),
    "long_context": RouterPolicy(long_context_tokens=10),
    "high_stakes": RouterPolicy(long_context_tokens=100_000, high_stakes_terms=("kind 3",)),
    "high_stakes_page": RouterPolicy(long_context_tokens=100_000, high_stakes_pages=("guides",)),
}


@pytest.mark.parametrize("threshold", [None, 0.4, 0.6])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("student", [GOOD, INVALID, REFUSAL, DOWN], ids=str)
@pytest.mark.parametrize("teacher", [GOOD, INVALID, REFUSAL, DOWN], ids=str)
def test_derived_routes_are_the_executed_ones(teacher, student, policy, threshold):
    pipeline = make_pipeline(teacher, student, policy=POLICIES[policy], threshold=threshold)
    rows = ask(pipeline)
    executed = {(r["case_id"], r["repeat"]): r for r in rows if r["arm"] == "routed"}
    derived = derive_arm("routed", rows, Thresholds(policy=pipeline.router,
                                                    confidence_threshold=threshold))  # fmt: skip
    assert len(derived) == len(executed)
    for row in derived:
        expected = executed[row["case_id"], row["repeat"]]
        if expected["error"] is not None:
            assert row["error"] is not None
            continue
        for name in set(row) - {"latency_ms", "retrieval_ms", "cost_usd"}:
            assert row[name] == expected[name], name
        assert row["cost_usd"] == pytest.approx(expected["cost_usd"])
    thresholds = Thresholds(policy=pipeline.router, confidence_threshold=threshold)
    assert find_unequal_routes(pl.DataFrame(rows, schema=tables.ARM_ANSWERS), thresholds) == []


def test_a_route_that_was_executed_otherwise_is_found():
    rows = ask(make_pipeline(GOOD, GOOD, policy=POLICIES["default"]))
    frame = pl.DataFrame(rows, schema=tables.ARM_ANSWERS)
    other = Thresholds(policy=POLICIES["low_retrieval"], confidence_threshold=None)
    assert find_unequal_routes(frame, other) == [case_id for case_id, _ in CASES]


def test_a_fallback_pays_and_waits_for_both():
    rows = ask(make_pipeline(GOOD, INVALID, policy=POLICIES["default"], delay=0.001))
    thresholds = Thresholds(policy=POLICIES["default"], confidence_threshold=None)
    (timed,) = [
        row
        for row in derive_arm("routed_90_10", rows, thresholds)
        if (row["repeat"], row["case_id"]) == (1, "g0")
    ]
    of = {row["arm"]: row for row in rows if (row["repeat"], row["case_id"]) == (1, "g0")}
    assert timed["arm"] == "routed_90_10"
    assert timed["cost_usd"] == pytest.approx(of["teacher"]["cost_usd"] + of["student"]["cost_usd"])
    models_ms = sum(of[a]["latency_ms"] - of[a]["retrieval_ms"] for a in ("teacher", "student"))
    assert timed["latency_ms"] == pytest.approx(of["teacher"]["retrieval_ms"] + models_ms)
    assert timed["used_fallback"]


def test_shares_count_fallbacks_as_asking_the_teacher():
    rows = ask(make_pipeline(DOWN, GOOD, policy=POLICIES["default"], threshold=0.6))
    shares = describe_routing(pl.DataFrame(rows, schema=tables.ARM_ANSWERS))
    # The teacher was asked every time and had nothing to say: the student's answer is shown.
    assert shares == {"routed_teacher_ratio": 1.0, "routed_fallback_ratio": 1.0}


def test_arms_take_turns_at_being_first():
    turns = interleave(CASES[:4], ("a", "b", "c"))
    assert [arm for arm, _ in turns] == ["a", "b", "c", "b", "c", "a", "c", "a", "b", "a", "b", "c"]
    assert [case for _, case in turns][::3] == CASES[:4]


def test_quality_rows_carry_no_latency_and_timed_rows_do():
    rows = ask(make_pipeline(GOOD, GOOD, policy=POLICIES["default"]))
    assert {row["latency_ms"] is None for row in rows if row["repeat"] == 0} == {True}
    assert all(row["latency_ms"] > 0 for row in rows if row["repeat"] == 1)


def test_the_teacher_is_asked_again_as_another_draw():
    pipeline = make_pipeline(GOOD, GOOD, policy=POLICIES["default"])
    ask(pipeline, arms=("teacher", "teacher_again"))
    keys = {request.content_key("teacher-1") for request in pipeline.teacher.requests}
    assert len(keys) == len(pipeline.teacher.requests) == 4 * len(CASES)
    assert set(ARM_NAMES) >= {"teacher", "teacher_again"}


def test_a_crash_midway_resumes_from_the_kept_answers(tmp_path):
    """What was answered before the crash is not asked again, by any arm."""
    whole = make_pipeline(GOOD, GOOD, policy=POLICIES["default"])
    asked = 0

    def crash_late(_):
        nonlocal asked
        asked += 1
        if asked > 3:
            raise BudgetExceededError("asking", expected="money", found="none", next_step="more")
        return GOOD

    def keep(model):
        return CachedChatModel(model, tmp_path, budget_usd=float("inf"))

    dying = CannedChatModel("teacher-1", crash_late, price=TEACHER_PRICE)
    with pytest.raises(BudgetExceededError):
        ask(replace(whole, teacher=keep(dying), student=keep(whole.student)))
    healed = CannedChatModel("teacher-1", GOOD, price=TEACHER_PRICE)
    rows = ask(replace(whole, teacher=keep(healed), student=keep(whole.student)))
    assert all(row["error"] is None for row in rows)
    assert len(healed.requests) == 2 * len(CASES) - 3
    again = CannedChatModel("teacher-1", GOOD, price=TEACHER_PRICE)
    ask(replace(whole, teacher=keep(again), student=keep(whole.student)))
    assert again.requests == []


class Streaming:
    """A canned model whose engine reports its first token: 4 of 10 milliseconds."""

    def __init__(self, model: CannedChatModel) -> None:
        self.model, self.name, self.price = model, model.name, model.price

    async def complete(self, request: ChatRequest) -> Completion:
        return replace(await self.model.complete(request), latency_ms=10.0, first_token_ms=4.0)


@pytest.mark.parametrize(("student", "first_ms"), [(GOOD, 4.0), (INVALID, 14.0)])
def test_the_first_token_of_a_fallback_comes_after_all_that_the_student_said(student, first_ms):
    silent = make_pipeline(GOOD, student, policy=POLICIES["default"])
    pipeline = replace(silent, teacher=Streaming(silent.teacher), student=Streaming(silent.student))
    rows = ask(pipeline)
    thresholds = Thresholds(policy=POLICIES["default"], confidence_threshold=None)
    timed = [row for row in rows if row["arm"] == "routed" and row["repeat"]]
    derived = [row for row in derive_arm("routed", rows, thresholds) if row["repeat"]]
    for row in (*timed, *derived):
        assert row["first_token_ms"] - row["retrieval_ms"] == pytest.approx(first_ms)
    untimed = [row["first_token_ms"] for row in rows if not row["repeat"]]
    assert set(untimed) == {None}


def test_an_engine_that_reports_no_first_token_has_none():
    rows = ask(make_pipeline(GOOD, GOOD, policy=POLICIES["default"]))
    assert {row["first_token_ms"] for row in rows} == {None}
