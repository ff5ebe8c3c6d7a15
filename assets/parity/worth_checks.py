"""What economics and experiments promise."""

import dagster as dg
import polars as pl

from assets import keys
from assets.partitions import RECIPES

TOLERANCE = 1e-9
LOTS = 0.5  # APGR of a router that draws lots


@dg.asset_check(asset=keys.ECONOMICS, partitions_def=RECIPES)
def every_saving_is_a_range(economics: pl.DataFrame) -> dg.AssetCheckResult:
    """Each arm has its worst, expected and best month, in that order, and a price for each model.

    It does not block: whether to deploy is a person's decision.
    """
    wide = economics.pivot("scenario", index="arm", values="saving_usd_per_month")
    names = {"pessimistic", "expected", "optimistic"}
    is_whole = names <= set(wide.columns)
    disordered = (
        wide.filter(
            ~(
                (pl.col("pessimistic") <= pl.col("expected"))
                & (pl.col("expected") <= pl.col("optimistic"))
            )
        )["arm"].to_list()
        if is_whole
        else wide["arm"].to_list()
    )
    unpriced = economics["inconclusive_reason"].drop_nulls().unique().to_list()
    return dg.AssetCheckResult(
        passed=not economics.is_empty() and not disordered and not unpriced,
        severity=dg.AssetCheckSeverity.WARN,
        description=next(iter(unpriced), None),
        metadata={"arm_count": wide.height, "disordered": disordered, "inconclusive": unpriced},
    )


@dg.asset_check(asset=keys.EXPERIMENT_REPORT)
def every_prediction_was_made_before(experiment_report: pl.DataFrame) -> dg.AssetCheckResult:
    """What was measured was predicted before, has not been edited since, and has an interval.

    It does not block: a contradicted prediction is a result, and an edited one is named.
    """
    measured = experiment_report.filter(pl.col("outcome") != "unmeasured")
    broken = measured.filter(
        pl.col("predicted_delta").is_null()
        | ~(
            (pl.col("lower") <= pl.col("measured_delta"))
            & (pl.col("measured_delta") <= pl.col("upper"))
        )
    )
    edited = measured.filter(~pl.col("registration").is_in(["unchanged", "retired"]))
    return dg.AssetCheckResult(
        passed=broken.is_empty() and edited.is_empty(),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "edited_or_unregistered": edited.select(
                pl.format("{}:{} {}", "experiment", "metric", "registration")
            )
            .to_series()
            .to_list()[:20],
            "measured_count": measured.height,
            "unmeasured_count": experiment_report.height - measured.height,
            "broken": broken["experiment"].to_list()[:20],
        },
    )


@dg.asset_check(asset=keys.SUITABILITY)
def every_question_is_of_one_kind(suitability: pl.DataFrame) -> dg.AssetCheckResult:
    """Shares of cost add up to one, and of traffic those of volume; each kind has a reason.

    Without a price there are no shares, and that is told. It does not block: it is advice to a
    person.
    """
    totals = {
        name: float(shares.sum()) if (shares := suitability[name]).count() else None
        for name in ("volume_ratio", "cost_ratio")
    }
    off = [
        name for name, total in totals.items() if total is not None and abs(total - 1) >= TOLERANCE
    ]
    unreasoned = suitability.filter(pl.col("advice").is_null() | (pl.col("reason") == ""))
    return dg.AssetCheckResult(
        passed=unreasoned.is_empty() and not off and totals["cost_ratio"] is not None,
        severity=dg.AssetCheckSeverity.WARN,
        description="no price above 0 is stated for the teacher: nobody knows what a kind costs"
        if totals["cost_ratio"] is None
        else None,
        metadata={**totals, "unreasoned": unreasoned["kind"].to_list()[:20]},
    )


@dg.asset_check(asset=keys.ROUTER_CURVE, blocking=True, partitions_def=RECIPES)
def curve_ends_at_the_teacher(router_curve: pl.DataFrame) -> dg.AssetCheckResult:
    """The share of the teacher only rises along the sweep; at its end it is asked everything."""
    last = router_curve.row(-1, named=True)
    above = router_curve.filter(pl.col("quality") > pl.col("oracle_quality") + TOLERANCE)
    return dg.AssetCheckResult(
        passed=router_curve["teacher_ratio"].is_sorted()
        and last["teacher_ratio"] == 1.0
        and above.is_empty(),
        metadata={
            "first_teacher_ratio": float(router_curve["teacher_ratio"][0]),
            "last_teacher_ratio": last["teacher_ratio"],
            "above_the_oracle": above["step"].to_list()[:20],
        },
    )


@dg.asset_check(asset=keys.ROUTER_FIGURES, partitions_def=RECIPES)
def router_beats_drawing_lots(router_figures: pl.DataFrame) -> dg.AssetCheckResult:
    """The lower limit of APGR is above 1/2, which is what a router that draws lots recovers.

    It does not block: a router that is no better than lots still obeys its rules. Without a figure
    (the student agrees everywhere) it passes.
    """
    row = router_figures.row(by_predicate=pl.col("figure") == "apgr", named=True)
    return dg.AssetCheckResult(
        passed=row["value"] is None or (row["lower"] is not None and row["lower"] > LOTS),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"apgr": row["value"], "lower": row["lower"], "limit": LOTS, "n": row["n"]},
    )
