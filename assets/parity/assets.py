"""Parity assets: arm_answers -> graded_answers -> parity_report, one partition per recipe.

Belongs here: declarations. Does not belong here: graders, statistics, what the report looks like.
"""

from typing import Any, Protocol

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.labels.assets import LabellingPlan
from assets.labels.rating import rate_answers, read_rateables
from assets.parity.answering import ARM_MODES, answer_arm
from assets.parity.comparison import build_parity_table
from assets.parity.exposure import find_seen_chunks, slice_by_exposure
from assets.parity.graders import grade_answers
from assets.parity.ledger import record_read
from assets.parity.rubric import read_rubric, tabulate_rubric
from assets.partitions import RECIPES
from assets.spending import describe_spending, read_spending
from assets.students.calibration import read_calibrator
from serving.aio import run_blocking
from serving.home import Home
from serving.models.protocols import ChatModel, Progress
from serving.pipeline.assembly import PipelineParts
from serving.pipeline.prompt import PROMPT_WORDING
from serving.pipeline.validator import VALIDATOR_VERSION


class StudentLoader(Protocol):
    """Loads an adapted student from what student_adapter says of it."""

    def load(self, adapter: dict[str, Any]) -> ChatModel:
        """Return the student, its answers cached by content key."""
        ...


@dg.asset(
    key=keys.ARM_ANSWERS,
    ins={
        "golden_cases": dg.AssetIn(key=keys.GOLDEN_CASES),
        "vector_index": dg.AssetIn(key=keys.VECTOR_INDEX),
        "student_adapter": dg.AssetIn(key=keys.STUDENT_ADAPTER),
        "calibration": dg.AssetIn(key=keys.CALIBRATION),
    },
    partitions_def=RECIPES,
    kinds={"pytorch", "lancedb", "polars"},
    code_version=f"1+prompt.{PROMPT_WORDING}+validator.{VALIDATOR_VERSION}",
    pool="student",
)
def arm_answers(
    context: dg.AssetExecutionContext,
    golden_cases: pl.DataFrame,
    vector_index: pl.DataFrame,
    student_adapter: pl.DataFrame,
    calibration: pl.DataFrame,
    pipeline_parts: dg.ResourceParam[PipelineParts],
    students: dg.ResourceParam[StudentLoader],
    home: dg.ResourceParam[Home],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[pl.DataFrame]:
    """The golden cases answered by teacher, student and router, through the production pipeline."""
    record_read(
        home.ledger, reader=f"arm_answers:{context.partition_key}", run_id=context.run.run_id
    )
    student = students.load(student_adapter.row(0, named=True))
    before = read_spending(pipeline_parts.teacher)
    cases = list(golden_cases.select("case_id", "question").iter_rows())

    async def answer_all() -> list[dict[str, Any]]:
        pipeline = await pipeline_parts.assemble(
            vector_index["index_fingerprint"].item(),
            student=student,
            calibration=read_calibrator(calibration.row(0, named=True)),
        )
        rows = []
        for arm in ARM_MODES:
            rows += await answer_arm(cases, arm=arm, pipeline=pipeline, progress=progress)
        return rows

    frame = pl.DataFrame(run_blocking(answer_all()), schema=tables.ARM_ANSWERS)
    routed = frame.filter((pl.col("arm") == "routed") & (pl.col("repeat") == 0))
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "case_count": golden_cases.height,
            "teacher_share_ratio": float((routed["served_by"] == "teacher").mean() or 0.0),
            "fallback_ratio": float(routed["used_fallback"].mean() or 0.0),
            "error_count": frame["error"].len() - frame["error"].null_count(),
            **describe_spending(pipeline_parts.teacher, since=before),
        },
    )


@dg.asset(
    key=keys.GRADED_ANSWERS,
    ins={
        "arm_answers": dg.AssetIn(key=keys.ARM_ANSWERS),
        "golden_cases": dg.AssetIn(key=keys.GOLDEN_CASES),
        "chunks": dg.AssetIn(key=keys.CHUNKS),
    },
    partitions_def=RECIPES,
    kinds={"openai", "polars"},
    code_version="1",
    pool="judge",
)
def graded_answers(
    arm_answers: pl.DataFrame,
    golden_cases: pl.DataFrame,
    chunks: pl.DataFrame,
    judge: dg.ResourceParam[ChatModel],
    labelling_plan: dg.ResourceParam[LabellingPlan],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[pl.DataFrame]:
    """Every answer under every metric, and the judge's rubric by axis."""
    first = arm_answers.filter(pl.col("repeat") == 0)  # later repeats are there to be timed
    graded = grade_answers(first, golden_cases, chunks)
    answered = first.filter(pl.col("error").is_null())
    items = read_rateables(answered)
    before = read_spending(judge)
    ratings = run_blocking(
        rate_answers(
            items, judge=judge, concurrency=labelling_plan.judge_concurrency, progress=progress
        )
    )
    rubric = tabulate_rubric(answered, ratings)
    frame = pl.concat([graded, rubric]).select(tables.GRADED_ANSWERS.names())
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "grade_count": frame.height,
            "inconclusive_count": int((frame["status"] == "inconclusive").sum()),
            **describe_spending(judge, since=before),
        },
    )


@dg.asset(
    key=keys.PARITY_REPORT,
    ins={
        "arm_answers": dg.AssetIn(key=keys.ARM_ANSWERS),
        "graded_answers": dg.AssetIn(key=keys.GRADED_ANSWERS),
        "golden_cases": dg.AssetIn(key=keys.GOLDEN_CASES),
        "chunks": dg.AssetIn(key=keys.CHUNKS),
        "labelled_examples": dg.AssetIn(key=keys.LABELLED_EXAMPLES),
        "teacher_answers": dg.AssetIn(key=keys.TEACHER_ANSWERS),
    },
    partitions_def=RECIPES,
    kinds={"scipy", "polars"},
    code_version="2",
)
def parity_report(
    arm_answers: pl.DataFrame,
    graded_answers: pl.DataFrame,
    golden_cases: pl.DataFrame,
    chunks: pl.DataFrame,
    labelled_examples: pl.DataFrame,
    teacher_answers: pl.DataFrame,
) -> dg.MaterializeResult[pl.DataFrame]:
    """Teacher, student and routed side by side: metrics and slices, intervals and deltas.

    Slices: the buckets, and the cases whose gold chunks the student did or did not train on.
    """
    seen = find_seen_chunks(labelled_examples, teacher_answers)
    exposure = slice_by_exposure(golden_cases, chunks, seen)
    frame = build_parity_table(
        arm_answers=arm_answers,
        graded_answers=graded_answers,
        golden_cases=golden_cases,
        rubric_scores=read_rubric(graded_answers),
        exposure=exposure,
    )
    headline = frame.filter(
        (pl.col("kind") == "arm") & (pl.col("slice") == "all") & (pl.col("metric") == "exact_match")
    )
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "seen_chunk_count": len(seen),
            "cases_by_exposure": dict(exposure.group_by("slice").len().sort("slice").iter_rows()),
            **{
                f"{arm}_exact_match_ratio": value
                for arm, value in headline.select("arm", "value").iter_rows()
            },
        },
    )
