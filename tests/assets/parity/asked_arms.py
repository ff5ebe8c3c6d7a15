"""Pipelines over canned models and arms asked through them, to compare what is derived with."""

import asyncio
from collections.abc import Mapping, Sequence

import polars as pl

from assets import tables
from assets.parity.answering import Question, answer_arms
from serving.errors import UpstreamError
from serving.models.protocols import NoProgress
from serving.pipeline.answer import AnswerPipeline
from serving.pipeline.confidence import ConfidenceCalibration, RiskThreshold
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.router import RouterPolicy
from serving.pipeline.tiers import Tier
from serving.pipeline.validator import ValidatorPolicy
from tests.serving.fakes import STUDENT_PRICE, TEACHER_PRICE, CannedChatModel, CannedRetriever

DOWN = UpstreamError("asking", expected="200", found="503", next_step="wait")
REFUSAL = "REFUSE"


def make_cases(count: int) -> list[Question]:
    return [(f"g{number}", f"Where do variables of kind {number} go?") for number in range(count)]


def calibrate(threshold: float | None, sha256: str = "a") -> ConfidenceCalibration | None:
    """Return a calibration by which every answer has the confidence .5."""
    if threshold is None:
        return None
    return ConfidenceCalibration(
        adapter_sha256=sha256, engine="local", dtype="float32", method="constant", case_count=60,
        intercept=0.0, thresholds=(RiskThreshold(risk_limit_ratio=0.05, threshold=threshold),),
    )  # fmt: skip


def make_pipeline(
    teacher: object,
    student: object,
    *,
    policy: RouterPolicy,
    threshold: float | None = None,
    delay: float = 0.0,
    smaller: tuple[Tier, ...] = (),
) -> AnswerPipeline:
    return AnswerPipeline(
        retriever=CannedRetriever(),
        teacher=CannedChatModel("teacher-1", teacher, price=TEACHER_PRICE, delay_seconds=delay),
        student=CannedChatModel("student@1", student, price=STUDENT_PRICE, delay_seconds=delay),
        prompt=PromptFormat(),
        router=policy,
        validator=ValidatorPolicy(),
        count_tokens=len,
        calibration=calibrate(threshold),
        smaller=smaller,
    )


def ask_arms(cases: Sequence[Question], pipelines: Mapping[str, AnswerPipeline]) -> list[dict]:
    rows = asyncio.run(answer_arms(cases, pipelines=pipelines, progress=NoProgress()))
    return pl.DataFrame(rows, schema=tables.ARM_ANSWERS).to_dicts()
