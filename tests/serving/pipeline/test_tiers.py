"""Two students: the small one takes what its certified confidence allows, the other the rest."""

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from serving.errors import UpstreamError
from serving.pipeline.answer import AnswerPipeline
from serving.pipeline.tiers import Tier
from serving.tracing.record import build_record
from tests.serving.fakes import GOOD, INVALID, CannedChatModel, make_engine, make_manifest
from tests.serving.pipeline.test_low_confidence import (
    CALIBRATION,
    SURE,
    UNSURE,
    SayingStudent,
    path,
)

DOWN = UpstreamError("asking", expected="200", found="503", next_step="wait")


def tiers(small: SayingStudent, main: float | None = SURE, **changes) -> AnswerPipeline:
    return path(main, smaller=(Tier(model=small, calibration=CALIBRATION),), **changes)


def small(mean_logprob: float, answer=GOOD) -> SayingStudent:
    return SayingStudent("compact@1", answer, mean_logprob=mean_logprob)


async def test_the_small_student_keeps_what_it_is_sure_of():
    asked = tiers(small(SURE))
    answered = await asked.answer("Where?")
    assert (answered.model, answered.route.reason) == ("compact@1", "default")
    assert len(answered.attempts) == 1


@pytest.mark.parametrize("answer", [GOOD, INVALID, DOWN])
async def test_the_other_student_takes_the_rest(answer):
    answered = await tiers(small(UNSURE, answer)).answer("Where?")
    assert (answered.model, answered.served_by, answered.route.reason) == (
        "student@1", "student", "default",
    )  # fmt: skip
    assert not answered.used_fallback
    assert answered.confidence == pytest.approx(0.6703, abs=1e-4)


async def test_what_neither_is_sure_of_goes_to_the_teacher():
    answered = await tiers(small(UNSURE), UNSURE).answer("Where?")
    assert [a.model for a in answered.attempts] == ["compact@1", "student@1", "teacher-1"]
    assert (answered.served_by, answered.route.reason) == ("teacher", "low_confidence")
    assert answered.used_fallback


async def test_where_the_teacher_fails_a_doubted_valid_answer_is_served():
    answered = await tiers(small(UNSURE), UNSURE, teacher=DOWN).answer("Where?")
    assert (answered.model, answered.refused) == ("student@1", False)
    invalid = await tiers(small(UNSURE), SURE, student=INVALID, teacher=DOWN).answer("Where?")
    assert (invalid.model, invalid.refused) == ("compact@1", False)


async def test_a_small_student_nothing_is_certified_for_is_not_asked():
    idle = CannedChatModel("compact@1")
    answered = await path(SURE, smaller=(Tier(model=idle),)).answer("Where?")
    assert (answered.model, idle.requests) == ("student@1", [])


async def test_every_attempt_is_traced_with_its_own_adapter():
    students = make_manifest().model_dump()["students"]
    students["midweight"] = students["compact"] | {
        "adapter": "student@1", "adapter_sha256": "1" * 64,
    }  # fmt: skip
    students["compact"] |= {"adapter": "compact@1"}
    manifest = make_manifest(students=students, tiers=("compact", "midweight"))
    answered = await tiers(small(UNSURE)).answer("Where?")
    record = build_record(
        answered,
        origin=make_engine(manifest=manifest).trace_origin("test"),
        trace_id="t",
        asked_at=datetime(2026, 11, 22, tzinfo=UTC),
    )
    assert [a.adapter_sha for a in record.attempts] == ["0" * 64, "1" * 64]
    with pytest.raises(ValidationError, match="tiers must name every student once"):
        make_manifest(students=students)
    with pytest.raises(ValidationError, match="tiers must name every student once"):
        make_manifest(students=students, tiers=("compact", "compact"))
