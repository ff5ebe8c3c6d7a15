"""What the parity stage promises."""

import dagster as dg
import polars as pl

from assets import keys
from assets.parity.answering import ARM_MODES
from assets.parity.comparison import METRICS
from assets.partitions import RECIPES

MAY_BE_EMPTY = frozenset({"cite_coverage", "cite_correctness", "groundedness", "refusal_precision"})
"""An arm that answers nothing has no citations, one that refuses nothing no refusal precision: that
is a finding, which the report shows, not a gap."""


@dg.asset_check(
    asset=keys.ARM_ANSWERS,
    additional_ins={"golden_cases": dg.AssetIn(key=keys.GOLDEN_CASES)},
    blocking=True,
    partitions_def=RECIPES,
)
def every_arm_answered_every_case(
    arm_answers: pl.DataFrame, golden_cases: pl.DataFrame
) -> dg.AssetCheckResult:
    """Each arm has one row per golden case, and at most 2 % of its rows are errors."""
    asked = arm_answers.group_by("arm").agg(
        pl.col("case_id").n_unique().alias("cases"), pl.col("error").is_not_null().mean()
    )
    complete = asked.filter(pl.col("cases") == golden_cases.height)["arm"].to_list()
    missing = sorted(set(ARM_MODES) - set(complete))
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
def every_metric_has_rows(parity_report: pl.DataFrame) -> dg.AssetCheckResult:
    """Every arm has a number for every metric that does not depend on what it answers."""
    pooled = parity_report.filter((pl.col("kind") == "arm") & (pl.col("slice") == "all"))
    present = {(arm, metric) for arm, metric, n in pooled.select(
        "arm", "metric", "n"
    ).iter_rows() if n}  # fmt: skip
    missing = sorted(
        f"{arm}:{metric.name}"
        for arm in ARM_MODES
        for metric in METRICS
        if (arm, metric.name) not in present and metric.name not in MAY_BE_EMPTY
    )
    return dg.AssetCheckResult(
        passed=not missing, metadata={"row_count": parity_report.height, "missing": missing}
    )
