"""What the suites and the judge's anchors promise, once they were measured."""

import dagster as dg
import polars as pl

from assets import keys
from assets.parity.arms import BASELINE, CANDIDATE
from assets.parity.liveness import judge_measurement
from assets.parity.rulers import Finding, find_masked_movement, judge_ruler
from assets.parity.suites import WORDINGS
from assets.partitions import RECIPES

MAXIMUM_ERROR_RATIO = 0.02


@dg.asset_check(
    asset=keys.SUITE_ANSWERS,
    additional_ins={
        "refusal_suite": dg.AssetIn(key=keys.REFUSAL_SUITE),
        "over_refusal_suite": dg.AssetIn(key=keys.OVER_REFUSAL_SUITE),
        "behaviour_registry": dg.AssetIn(key=keys.BEHAVIOUR_REGISTRY),
    },
    blocking=True,
    partitions_def=RECIPES,
)
def every_suite_case_was_answered(
    suite_answers: pl.DataFrame,
    refusal_suite: pl.DataFrame,
    over_refusal_suite: pl.DataFrame,
    behaviour_registry: pl.DataFrame,
) -> dg.AssetCheckResult:
    """Each arm has every case in every wording, and at most 2 % of its rows are errors."""
    cases = refusal_suite.height + over_refusal_suite.height + behaviour_registry.height
    by_arm = suite_answers.group_by("arm").agg(
        pl.struct("suite", "case_id", "wording").n_unique().alias("asked"),
        pl.col("error").is_not_null().mean().alias("errors"),
    )
    asked = dict(by_arm.select("arm", "asked").iter_rows())
    worst = float(by_arm["errors"].max() or 0.0)  # type: ignore[arg-type]
    is_whole = all(asked.get(arm, 0) == cases * WORDINGS for arm in {*asked, BASELINE, CANDIDATE})
    return dg.AssetCheckResult(
        passed=not cases or (is_whole and worst <= MAXIMUM_ERROR_RATIO),
        metadata={
            "case_count": cases,
            "asked_by_arm": asked,
            "worst_error_ratio": worst,
            "limit_ratio": MAXIMUM_ERROR_RATIO,
        },
    )


@dg.asset_check(asset=keys.SUITE_GATES, blocking=True, partitions_def=RECIPES)
def no_behaviour_lost(suite_gates: pl.DataFrame) -> dg.AssetCheckResult:
    """No registered behaviour was lost, and no kind of disagreement is missing in the registry.

    Too few cases do not pass: they warn, and the gate of that behaviour stays open.
    """
    return _report_gates(
        suite_gates.filter(
            pl.col("name").str.starts_with("behaviour_")
            | (pl.col("name") == "unregistered_disagreements")
        )
    )


@dg.asset_check(asset=keys.SUITE_GATES, blocking=True, partitions_def=RECIPES)
def no_refusal_lost_or_added(suite_gates: pl.DataFrame) -> dg.AssetCheckResult:
    """The candidate refuses what must be refused and no more than others do.

    Too few cases do not pass: they warn, and the gate stays open.
    """
    return _report_gates(suite_gates.filter(pl.col("name").str.contains("refusal")))


@dg.asset_check(asset=keys.JUDGE_ANCHOR_RUN, blocking=True)
def judge_is_the_same_ruler(judge_anchor_run: pl.DataFrame) -> dg.AssetCheckResult:
    """The judge agrees with the anchors' labels, and has not changed since its epoch began.

    Too few ratings do not pass: they warn.
    """
    return _report_finding(judge_ruler(judge_anchor_run))


@dg.asset_check(asset=keys.JUDGE_ANCHOR_RUN, blocking=True)
def no_masked_movement(judge_anchor_run: pl.DataFrame) -> dg.AssetCheckResult:
    """No axis of the rubric fell, and no two moved against each other, for any kind of rater.

    Without a second wave it warns: nothing could be seen to move.
    """
    return _report_finding(find_masked_movement(judge_anchor_run))


@dg.asset_check(asset=keys.JUDGE_ANCHOR_RUN, blocking=True)
def measurement_alive(judge_anchor_run: pl.DataFrame) -> dg.AssetCheckResult:
    """Raters agree, still tell good from bad, and do not agree more while they see less.

    Too few shared ratings do not pass: they warn.
    """
    return _report_finding(judge_measurement(judge_anchor_run))


def _report_gates(gates: pl.DataFrame) -> dg.AssetCheckResult:
    counted = gates.filter("is_gating")
    failed, open_gates = (counted.filter(outcome=o) for o in ("FAIL", "INCONCLUSIVE"))
    told = pl.concat([failed, open_gates])
    return dg.AssetCheckResult(
        passed=told.is_empty() and not counted.is_empty(),
        severity=_weigh(is_error=not failed.is_empty()),
        description="; ".join(
            f"{row['name']} {row['outcome']}: {row['detail']}"
            for row in told.head(5).iter_rows(named=True)
        )
        or None,
        metadata={
            "gate_count": counted.height,
            "failed": failed["name"].to_list(),
            "open": open_gates["name"].to_list(),
            "numbers": {row["name"]: row["number"] for row in gates.iter_rows(named=True)},
        },
    )


def _report_finding(finding: Finding) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=finding.holds,
        severity=_weigh(is_error=finding.is_conclusive),
        description="; ".join(finding.reasons) or None,
        metadata={"is_conclusive": finding.is_conclusive, **finding.numbers},
    )


def _weigh(*, is_error: bool) -> dg.AssetCheckSeverity:
    return dg.AssetCheckSeverity.ERROR if is_error else dg.AssetCheckSeverity.WARN
