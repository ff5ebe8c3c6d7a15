import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from serving.errors import UpstreamError
from serving.models.protocols import Price
from serving.models.student_rules import RefusalRule, RuledStudent, StudentRules
from serving.tracing.record import (
    TRACE_FIELDS,
    Escalation,
    TraceOrigin,
    TraceRecord,
    build_failure_record,
    build_record,
    new_trace_id,
)
from tests.serving.fakes import (
    INVALID,
    STUDENT_PRICE,
    TEACHER_PRICE,
    CannedChatModel,
    make_engine,
)

CONTRACT = {
    "trace_id",
    "asked_at",
    "env",
    "surface",
    "client_kind",
    "key_id",
    "conversation_id",
    "question",
    "question_hash",
    "prompt_version",
    "release_id",
    "snapshot_hash",
    "index_fingerprint",
    "embedder_fingerprint",
    "retrieved",
    "max_score",
    "prompt_tokens_estimate",
    "route",
    "route_reason",
    "selection_mode",
    "propensity",
    "attempts",
    "served_by",
    "model",
    "answer",
    "citations",
    "refused",
    "confidence",
    "total_latency_ms",
    "overhead_ms",
    "cost_usd",
    "counterfactual_cost_usd",
    "escalation_requested",
    "escalation_granted",
    "trainable",
    "trainable_reason",
}
ASKED_AT = datetime(2026, 11, 21, 18, 0, tzinfo=UTC)


@pytest.fixture
def origin() -> TraceOrigin:
    return make_engine().trace_origin("prod")


async def _record(origin: TraceOrigin, question: str = "Where?", **parts: Any) -> TraceRecord:
    prefer_quality = parts.pop("prefer_quality", False)
    answered = await make_engine(**parts).pipeline.answer(question, prefer_quality=prefer_quality)
    return build_record(
        answered,
        origin=origin,
        trace_id=new_trace_id(),
        asked_at=ASKED_AT,
        escalation=Escalation(requested=prefer_quality, granted=prefer_quality),
    )


def test_every_field_of_the_contract_is_declared() -> None:
    assert set(TRACE_FIELDS) >= CONTRACT


def test_ids_are_uuid7_and_sort_by_time() -> None:
    ids = [new_trace_id() for _ in range(100)]
    assert {uuid.UUID(i).version for i in ids} == {7}
    assert ids == sorted(ids)


async def test_a_student_answer_is_cheaper_than_its_counterfactual(origin: TraceOrigin) -> None:
    record = await _record(origin)
    assert record.served_by == "student"
    assert record.selection_mode == "rule"
    assert record.prompt_tokens_estimate not in (None, 100)  # what the student says it read
    priced = TEACHER_PRICE.cost_usd(record.prompt_tokens_estimate or 0, 20)
    assert record.counterfactual_cost_usd == pytest.approx(priced)
    assert 0 < record.cost_usd < record.counterfactual_cost_usd
    assert record.attempts[0].adapter_sha == "0" * 64
    assert (record.trainable, record.trainable_reason) == (True, "eligible")
    assert record.asked_at == "2026-11-21T18:00:00.000Z"


async def test_a_teacher_answer_costs_its_counterfactual(origin: TraceOrigin) -> None:
    record = await _record(origin, phase="hitchhiker")
    assert record.served_by == "teacher"
    assert record.cost_usd == pytest.approx(record.counterfactual_cost_usd)
    assert record.attempts[0].adapter_sha is None


async def test_a_fallback_has_two_attempts_and_pays_for_both(origin: TraceOrigin) -> None:
    student = CannedChatModel("s", INVALID, price=Price(output_usd_per_mtok=1.0))
    record = await _record(origin, student=student)
    assert record.selection_mode == "fallback"
    assert [a.role for a in record.attempts] == ["student", "teacher"]
    assert record.attempts[0].verdict not in (None, "valid")
    assert record.cost_usd > record.counterfactual_cost_usd


async def test_a_refusal_by_a_rule_is_priced_as_the_prompt_that_the_teacher_was_spared(
    origin: TraceOrigin,
) -> None:
    certain = RefusalRule(intercept=9.0, weight=-1.0)
    asked = CannedChatModel("compact@3f9c0a1b2c4d", price=STUDENT_PRICE)
    ruled = RuledStudent(asked, StudentRules(refusal=certain))
    record = await _record(origin, student=ruled)
    assert (asked.requests, record.refused, record.cost_usd) == ([], True, 0.0)
    spared = TEACHER_PRICE.cost_usd(record.prompt_tokens_estimate or 0, 0)
    assert record.counterfactual_cost_usd == pytest.approx(spared)
    assert spared > 0


async def test_a_failed_attempt_keeps_its_error_scrubbed_and_its_time(origin: TraceOrigin) -> None:
    error = UpstreamError(
        "asking", expected="200", found="401 for sk-abcdefghij0123456789", next_step="wait"
    )
    record = await _record(origin, student=CannedChatModel("s", error, delay_seconds=0.02))
    assert record.attempts[0].latency_ms >= 19
    assert "[secret]" in (record.attempts[0].error or "")
    assert record.attempts[0].completion_tokens is None


async def test_personal_data_is_in_neither_question_nor_answer(origin: TraceOrigin) -> None:
    record = await _record(
        origin, "Who is jane@example.com?", student=CannedChatModel("s", "REFUSE")
    )
    assert record.refused
    assert "jane" not in record.question
    assert "jane" not in (record.answer or "")
    again = await _record(origin, "Who is joe@example.com?")
    assert again.question_hash == record.question_hash


async def test_escalated_and_test_traffic_is_never_trainable(origin: TraceOrigin) -> None:
    escalated = await _record(origin, prefer_quality=True)
    assert (escalated.selection_mode, escalated.trainable_reason) == ("forced", "escalated")
    assert (escalated.escalation_requested, escalated.escalation_granted) == (True, True)
    tested = await _record(replace(origin, env="dev"))
    assert (tested.trainable, tested.trainable_reason) == (False, "not_prod")


def test_a_failure_is_a_record_too(origin: TraceOrigin) -> None:
    record = build_failure_record(
        "Where?",
        origin=origin,
        trace_id=new_trace_id(),
        asked_at=ASKED_AT + timedelta(seconds=1),
        outcome="upstream-failed",
        total_ms=12.0,
        conversation_id="mail me@example.com",
    )
    assert record.outcome == "upstream-failed"
    assert (record.served_by, record.answer, record.trainable) == (None, None, False)
    assert record.conversation_id == "mail [email]"
