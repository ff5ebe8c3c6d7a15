"""What the parity stage promises."""

import dagster as dg
import polars as pl

from assets import keys
from assets.parity.arms import ArmPlan
from assets.parity.cascade import read_configured
from assets.parity.deriving import find_unequal_routes
from assets.parity.metrics import METRICS
from assets.parity.tiers import gather_tiers
from assets.partitions import RECIPES
from serving.home import Home
from serving.pipeline.assembly import PipelineParts

MAY_BE_EMPTY = frozenset(
    {"cite_coverage", "cite_correctness", "groundedness", "refusal_precision", "usd_per_1k"}
)
"""An arm that answers nothing has no citations, one that refuses nothing no refusal precision, one
that nobody priced no cost: that is a finding, which the report shows, not a gap."""

TEACHER_SHARE_TOLERANCE = 0.05  # further from the wanted share: the operating point is another


@dg.asset_check(asset=keys.OPERATING_POINTS, partitions_def=RECIPES)
def teacher_share_is_near_its_target(operating_points: pl.DataFrame) -> dg.AssetCheckResult:
    """Each operating point gives the teacher about its share of the held-out questions.

    It does not block: a student with many invalid answers leaves the teacher more than was wanted,
    which is a finding about the student.
    """
    off = (pl.col("teacher_ratio") - pl.col("target_teacher_ratio")).abs()
    missed = operating_points.filter(off > TEACHER_SHARE_TOLERANCE)
    return dg.AssetCheckResult(
        passed=not operating_points.is_empty() and missed.is_empty(),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "limit_ratio": TEACHER_SHARE_TOLERANCE,
            "teacher_ratio_by_point": dict(
                operating_points.select("arm", "teacher_ratio").iter_rows()
            ),
        },
    )


@dg.asset_check(
    asset=keys.ARM_ANSWERS,
    additional_ins={
        "calibration": dg.AssetIn(key=keys.CALIBRATION),
        "student_adapter": dg.AssetIn(key=keys.STUDENT_ADAPTER),
    },
    blocking=True,
    partitions_def=RECIPES,
)
def derived_routes_equal_executed_ones(
    arm_answers: pl.DataFrame,
    calibration: pl.DataFrame,
    student_adapter: pl.DataFrame,
    arm_plan: dg.ResourceParam[ArmPlan],
    pipeline_parts: dg.ResourceParam[PipelineParts],
    home: dg.ResourceParam[Home],
) -> dg.AssetCheckResult:
    """The routed arm, decided anew over the others' answers, is the routed arm that was executed.

    So the arms that are derived alone, operating points and cascade, say what production would do.
    """
    adapter, fitted = student_adapter.row(0, named=True), calibration.row(0, named=True)
    tiers = gather_tiers(home, arm_plan.released, adapter=adapter, fitted=fitted)
    thresholds = read_configured(tiers, pipeline_parts.router)
    unequal = find_unequal_routes(arm_answers, thresholds)
    return dg.AssetCheckResult(
        passed=not unequal, metadata={"unequal_count": len(unequal), "unequal": unequal[:20]}
    )


@dg.asset_check(
    asset=keys.ARM_ANSWERS,
    additional_ins={"golden_cases": dg.AssetIn(key=keys.GOLDEN_CASES)},
    blocking=True,
    partitions_def=RECIPES,
)
def every_arm_answered_every_case(
    arm_answers: pl.DataFrame, golden_cases: pl.DataFrame, arm_plan: dg.ResourceParam[ArmPlan]
) -> dg.AssetCheckResult:
    """Each arm has one row per golden case, and at most 2 % of its rows are errors.

    Arms that come with a smaller student are advice: what they lack blocks no release.
    """
    planned = arm_answers.filter(pl.col("arm").is_in(arm_plan.arms))
    asked = planned.group_by("arm").agg(
        pl.col("case_id").n_unique().alias("cases"), pl.col("error").is_not_null().mean()
    )
    complete = asked.filter(pl.col("cases") == golden_cases.height)["arm"].to_list()
    missing = sorted(set(arm_plan.arms) - set(complete))
    worst_error_ratio = float(asked["error"].max() or 0.0)
    return dg.AssetCheckResult(
        passed=not missing and worst_error_ratio <= 0.02,
        metadata={
            "case_count": golden_cases.height,
            "incomplete_arms": missing,
            "worst_error_ratio": worst_error_ratio,
            "limit_ratio": 0.02,
        },
    )


@dg.asset_check(
    asset=keys.ARM_ANSWERS,
    blocking=True,
    partitions_def=RECIPES,
)
def every_citation_was_retrieved(arm_answers: pl.DataFrame) -> dg.AssetCheckResult:
    """No arm shows a citation of a chunk that was not retrieved for that question."""
    answered = arm_answers.filter(pl.col("error").is_null())
    retrieved = pl.col("retrieved").list.eval(pl.element().struct.field("chunk_id"))
    stray = answered.filter(pl.col("citations").list.set_difference(retrieved).list.len() > 0)
    return dg.AssetCheckResult(
        passed=not answered.is_empty() and stray.is_empty(),
        metadata={
            "answer_count": answered.height,
            "stray": stray.select(pl.format("{}:{}", "arm", "case_id")).to_series().to_list()[:20],
        },
    )


@dg.asset_check(asset=keys.GRADED_ANSWERS, blocking=True, partitions_def=RECIPES)
def grades_are_conclusive(graded_answers: pl.DataFrame) -> dg.AssetCheckResult:
    """At most 5 % of the grades are inconclusive (an arm or the judge failed)."""
    inconclusive = float((graded_answers["status"] == "inconclusive").mean() or 0.0)
    return dg.AssetCheckResult(
        passed=not graded_answers.is_empty() and inconclusive <= 0.05,
        metadata={
            "grade_count": graded_answers.height,
            "inconclusive_ratio": inconclusive,
            "limit_ratio": 0.05,
        },
    )


@dg.asset_check(asset=keys.PARITY_REPORT, blocking=True, partitions_def=RECIPES)
def every_metric_has_rows(
    parity_report: pl.DataFrame, arm_plan: dg.ResourceParam[ArmPlan]
) -> dg.AssetCheckResult:
    """Every arm has a number for every metric that does not depend on what it answers."""
    pooled = parity_report.filter((pl.col("kind") == "arm") & (pl.col("slice") == "all"))
    present = {(arm, metric) for arm, metric, n in pooled.select(
        "arm", "metric", "n"
    ).iter_rows() if n}  # fmt: skip
    missing = sorted(
        f"{arm}:{metric.name}"
        for arm in arm_plan.arms
        for metric in METRICS
        if (arm, metric.name) not in present and metric.name not in MAY_BE_EMPTY
    )
    return dg.AssetCheckResult(
        passed=not missing, metadata={"row_count": parity_report.height, "missing": missing}
    )
