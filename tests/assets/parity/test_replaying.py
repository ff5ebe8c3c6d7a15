"""Replay: the same policy changes nothing, another one says what moves and what nobody knows."""

from dataclasses import replace

import polars as pl
import pytest
import yaml

from assets import tables
from assets.parity.replaying import replay_policy, write_patch
from serving.errors import InvalidInputError
from serving.pipeline.router import RouterPolicy

POLICY = RouterPolicy(min_retrieval_score=0.5)
TEACHER_USD, STUDENT_USD = 0.010, 0.001


def write_record(number: int, *, score: float, verdict: str = "valid", **changed) -> dict:
    """Return what POLICY logs of a question with this score, and this verdict of the student."""
    is_low = score < POLICY.min_retrieval_score
    served_by = "student" if not is_low and verdict == "valid" else "teacher"
    student = {"role": "student", "verdict": verdict, "cost_usd": STUDENT_USD}
    teacher = {"role": "teacher", "verdict": "valid", "cost_usd": TEACHER_USD}
    attempts = [*([] if is_low else [student]), *([teacher] if served_by == "teacher" else [])]
    return {
        "trace_id": f"t{number}",
        "question": f"question {number}",
        "max_score": score,
        "prompt_tokens_estimate": 400,
        "retrieved": [],
        "attempts": attempts,
        "served_by": served_by,
        "route_reason": "low_retrieval" if is_low else "default",
        "confidence": 0.8,
        "cost_usd": sum(attempt["cost_usd"] for attempt in attempts),
        "counterfactual_cost_usd": TEACHER_USD,
        "outcome": "answered",
        "env": "prod",
        **changed,
    }


def write_records(*rows: dict) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=tables.TRACE_RECORDS)


RECORDS = write_records(
    write_record(1, score=0.9),
    write_record(2, score=0.7, verdict="no_citation"),
    write_record(3, score=0.6),
    write_record(4, score=0.4),
)


def test_the_logged_policy_decides_as_it_did():
    found = replay_policy(RECORDS, POLICY, confidence_threshold=None)
    assert found.question_count == 4
    assert found.teacher_ratio_before.value == found.teacher_ratio_after.value == 0.5
    assert found.to_teacher_count == found.to_student_count == found.unobserved_count == 0
    assert found.usd_per_1k_after == pytest.approx(found.usd_per_1k_before)
    assert found.reasons_before == found.reasons_after


def test_a_stricter_policy_moves_questions_to_the_teacher():
    stricter = replace(POLICY, min_retrieval_score=0.65)
    found = replay_policy(RECORDS, stricter, confidence_threshold=None)
    assert found.to_teacher_count == 1
    assert found.teacher_ratio_after.value == 0.75
    assert found.reasons_after["low_retrieval"] == 2


def test_an_answer_that_no_log_holds_is_not_invented():
    looser = replace(POLICY, min_retrieval_score=0.3)
    found = replay_policy(RECORDS, looser, confidence_threshold=None)
    assert found.to_student_count == found.unobserved_count == 1
    gap = found.usd_per_1k_after_worst - found.usd_per_1k_after
    assert gap == pytest.approx(1000 * TEACHER_USD / 4)


def test_a_threshold_doubts_answers_and_both_calls_are_paid():
    found = replay_policy(RECORDS, POLICY, confidence_threshold=0.9)
    assert found.to_teacher_count == 2
    assert found.reasons_after["low_confidence"] == 2
    assert found.usd_per_1k_after == pytest.approx(1000 * (3 * STUDENT_USD + 4 * TEACHER_USD) / 4)


def test_shadows_and_failures_are_no_decisions_of_a_router():
    others = write_records(
        write_record(5, score=0.9, parent_trace_id="t1"),
        write_record(6, score=0.9, outcome="failed"),
    )
    found = replay_policy(pl.concat([RECORDS, others]), POLICY, confidence_threshold=None)
    assert found.question_count == 4


@pytest.mark.parametrize("reason", ["phase", "explore", "canary", "budget", "breaker"])
def test_what_no_rule_decided_is_passed_over(reason):
    by_chance = write_records(write_record(5, score=0.9, route_reason=reason))
    found = replay_policy(pl.concat([RECORDS, by_chance]), POLICY, confidence_threshold=None)
    assert found.question_count == 4
    assert found.left_out == {reason: 1}


def test_what_the_phase_decided_says_nothing_of_a_rule_and_moves_nowhere():
    """In `hitchhiker` and `imposter` the teacher answers all, whatever the rules would say."""
    by_phase = [
        write_record(number, score=0.9, route_reason="phase", served_by="teacher",
                     attempts=[{"role": "teacher", "verdict": "valid", "cost_usd": TEACHER_USD}],
                     cost_usd=TEACHER_USD)
        for number in range(10)
    ]  # fmt: skip
    with pytest.raises(InvalidInputError, match=r"none of them decided by a rule \(10 by phase\)"):
        replay_policy(write_records(*by_phase), POLICY, confidence_threshold=None)
    both = pl.concat([RECORDS, write_records(*by_phase)])
    found = replay_policy(both, POLICY, confidence_threshold=None)
    assert (found.question_count, found.left_out) == (4, {"phase": 10})
    assert found.to_student_count == 0


def test_where_no_log_holds_a_call_of_the_student_its_cost_is_not_known():
    only_teacher = write_records(write_record(1, score=0.4), write_record(2, score=0.45))
    found = replay_policy(
        only_teacher, replace(POLICY, min_retrieval_score=0.3), confidence_threshold=None
    )
    assert found.unobserved_count == 2
    assert found.usd_per_1k_before == pytest.approx(1000 * TEACHER_USD)
    assert found.usd_per_1k_after is found.usd_per_1k_after_worst is None
    same = replay_policy(only_teacher, POLICY, confidence_threshold=None)
    assert same.usd_per_1k_after == pytest.approx(1000 * TEACHER_USD)  # it asks no student


def test_the_logged_policy_is_a_fixed_point_with_tiers_doubts_and_a_failed_teacher():
    student = {"role": "student", "cost_usd": STUDENT_USD}
    tiers = write_record(
        1,
        score=0.9,
        attempts=[{**student, "verdict": "no_citation"}, {**student, "verdict": "valid"}],
        cost_usd=2 * STUDENT_USD,
    )
    doubted = write_record(
        2,
        score=0.9,
        confidence=0.3,
        route_reason="low_confidence",
        attempts=[
            {**student, "verdict": "valid"},
            {"role": "teacher", "verdict": "no_citation", "cost_usd": TEACHER_USD},
        ],
        served_by="student",
        cost_usd=STUDENT_USD + TEACHER_USD,
    )
    found = replay_policy(write_records(tiers, doubted), POLICY, confidence_threshold=0.5)
    assert found.to_teacher_count == found.to_student_count == found.unobserved_count == 0
    assert found.usd_per_1k_after == pytest.approx(found.usd_per_1k_before)


def test_no_traffic_is_an_error_that_says_what_to_do():
    with pytest.raises(InvalidInputError, match="serve some traffic"):
        replay_policy(tables.TRACE_RECORDS.to_frame(), POLICY, confidence_threshold=None)


def test_the_patch_holds_what_differs_and_nothing_else():
    patch = write_patch(POLICY, replace(POLICY, min_retrieval_score=0.62))
    assert yaml.safe_load(patch) == {"router": {"min_retrieval_score": 0.62}}
    assert yaml.safe_load(write_patch(POLICY, POLICY)) == {"router": {}}
