"""Is it worth it? router_curve, router_figures and economics of a recipe; then over all of them.

The latter are suitability and experiment_report.

Belongs here: declarations. Does not belong here: arithmetic (`economics`), predictions
(`experiments`), charts (`economics_chart`).
"""

from collections.abc import Mapping
from typing import Protocol

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.parity.economics import (
    EconomicsTerms,
    OneOffCosts,
    find_range,
    measure_costs,
    tabulate_economics,
)
from assets.parity.economics_chart import draw_sensitivity
from assets.parity.experiments import Experiment, compare_predictions
from assets.parity.experiments_chart import draw_predictions
from assets.parity.measuring import measure_cases
from assets.parity.router_chart import draw_curve
from assets.parity.router_curve import measure_flips, summarise_curve, tabulate_curve
from assets.parity.rubric import read_rubric
from assets.parity.suitability import MINIMUM_TRAFFIC, gather_asked, measure_suitability
from assets.partitions import RECIPES
from assets.students.calibration import read_calibrator
from serving.home import Home
from serving.models.protocols import Embedder
from serving.pipeline.router import RouterPolicy


class Purchases(Protocol):
    """What was ever bought through this home: the role `purchases`."""

    def total_usd(self) -> float:
        """Return the price of every answer kept, whoever asked for it."""
        ...


@dg.asset(
    key=keys.ROUTER_CURVE,
    ins={
        "held_out_answers": dg.AssetIn(key=keys.HELD_OUT_ANSWERS),
        "calibration": dg.AssetIn(key=keys.CALIBRATION),
        "arm_answers": dg.AssetIn(key=keys.ARM_ANSWERS),
    },
    partitions_def=RECIPES,
    kinds={"polars"},
    code_version="1",
)
def router_curve(
    held_out_answers: pl.DataFrame,
    calibration: pl.DataFrame,
    arm_answers: pl.DataFrame,
    router_policy: dg.ResourceParam[RouterPolicy],
) -> dg.MaterializeResult[pl.DataFrame]:
    """Quality on held-out questions against the teacher's share, from none to all.

    Only the prices of a call are read from the golden arms, and no choice is made by them.
    """
    costs = measure_costs(arm_answers, "routed")
    frame = tabulate_curve(
        held_out_answers,
        read_calibrator(calibration.row(0, named=True)),
        policy=router_policy,
        teacher_usd=costs.teacher_usd,
        student_usd=costs.student_usd,
    )
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "case_count": int(frame["case_count"][0]),
            "least_teacher_ratio": float(frame["teacher_ratio"][0]),
            "curve": dg.MetadataValue.md(draw_curve(frame)),
        },
    )


@dg.asset(
    key=keys.ROUTER_FIGURES,
    ins={
        "held_out_answers": dg.AssetIn(key=keys.HELD_OUT_ANSWERS),
        "calibration": dg.AssetIn(key=keys.CALIBRATION),
        "teacher_answers": dg.AssetIn(key=keys.TEACHER_ANSWERS),
    },
    partitions_def=RECIPES,
    kinds={"polars"},
    code_version="1",
)
def router_figures(
    held_out_answers: pl.DataFrame,
    calibration: pl.DataFrame,
    teacher_answers: pl.DataFrame,
    router_policy: dg.ResourceParam[RouterPolicy],
) -> dg.MaterializeResult[pl.DataFrame]:
    """What the router is worth: APGR, CPT(50/80/95), and how often paraphrases change the route."""
    fitted = read_calibrator(calibration.row(0, named=True))
    rows = summarise_curve(held_out_answers, fitted, policy=router_policy)
    rows.append(measure_flips(teacher_answers, router_policy))
    frame = pl.DataFrame(rows, schema=tables.ROUTER_FIGURES)
    return dg.MaterializeResult(
        value=frame, metadata=dict(frame.select("figure", "value").iter_rows())
    )


@dg.asset(
    key=keys.ECONOMICS,
    ins={
        "arm_answers": dg.AssetIn(key=keys.ARM_ANSWERS),
        "student_adapter": dg.AssetIn(key=keys.STUDENT_ADAPTER),
    },
    partitions_def=RECIPES,
    kinds={"polars"},
    code_version="1",
)
def economics(
    arm_answers: pl.DataFrame,
    student_adapter: pl.DataFrame,
    economics_terms: dg.ResourceParam[EconomicsTerms],
    purchases: dg.ResourceParam[Purchases],
) -> dg.MaterializeResult[pl.DataFrame]:
    """What a month costs with and without the student: a range, and when it has paid for itself."""
    terms = economics_terms
    hours = float(student_adapter["training_seconds"].item() or 0.0) / 3600
    one_off = OneOffCosts(
        bought_usd=purchases.total_usd(),
        training_usd=hours * terms.training_usd_per_hour,
        setup_usd=terms.setup_usd,
    )
    arms = [arm for arm in arm_answers["arm"].unique().sort() if arm.startswith("routed")]
    costs = {arm: measure_costs(arm_answers, arm) for arm in arms}
    ranges = {arm: find_range(measured, one_off, terms) for arm, measured in costs.items()}
    routed = ranges["routed"]
    return dg.MaterializeResult(
        value=tabulate_economics((costs[arm], ranges[arm]) for arm in arms),
        metadata={
            "teacher_usd_per_1k": 1000 * costs["routed"].teacher_usd,
            "saving_usd_per_month": routed["expected"].saving_usd_per_month,
            "saving_usd_per_month_range": [
                routed["pessimistic"].saving_usd_per_month,
                routed["optimistic"].saving_usd_per_month,
            ],
            "payback_weeks": routed["expected"].payback_weeks,
            "one_off_usd": one_off.total_usd,
            "sensitivity": dg.MetadataValue.md(draw_sensitivity(costs["routed"], one_off, terms)),
        },
    )


@dg.asset(
    key=keys.SUITABILITY,
    ins={
        "trace_records": dg.AssetIn(key=keys.TRACE_RECORDS),
        "teacher_answers": dg.AssetIn(key=keys.TEACHER_ANSWERS),
        "labelled_examples": dg.AssetIn(key=keys.LABELLED_EXAMPLES),
    },
    kinds={"scikitlearn", "polars"},
    code_version="1",
)
def suitability(
    trace_records: pl.DataFrame,
    teacher_answers: pl.DataFrame,
    labelled_examples: pl.DataFrame,
    router_policy: dg.ResourceParam[RouterPolicy],
    embedder: dg.ResourceParam[Embedder],
) -> dg.MaterializeResult[pl.DataFrame]:
    """Which kinds of question are worth distilling: of the traffic, else of the seeds."""
    served = trace_records.filter(
        pl.col("outcome") == "answered", pl.col("counterfactual_cost_usd").is_not_null()
    )
    is_traffic = served.height >= MINIMUM_TRAFFIC
    # Paraphrases are our own: what they repeat, no user has asked twice.
    seeds = teacher_answers.filter(pl.col("question_id") == pl.col("seed_id"))
    asked = (
        gather_asked(served, router_policy, cost="counterfactual_cost_usd")
        if is_traffic
        else gather_asked(seeds, router_policy, cost="cost_usd")
    )
    passed = set(labelled_examples["question_id"])
    labelled = teacher_answers.select("question", is_checkable=pl.col("question_id").is_in(passed))
    frame = measure_suitability(
        asked, labelled, source="traffic" if is_traffic else "seeds", embedder=embedder
    )
    advised = frame.group_by("advice").agg(pl.col("cost_ratio").sum()).sort("advice")
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "source": frame["source"][0],
            "question_count": asked.height,
            "cost_ratio_by_advice": dict(advised.iter_rows()),
        },
    )


@dg.asset(
    key=keys.EXPERIMENT_REPORT,
    deps=[keys.ARM_ANSWERS, keys.GRADED_ANSWERS],
    ins={"golden_cases": dg.AssetIn(key=keys.GOLDEN_CASES)},
    kinds={"scipy", "polars"},
    code_version="1",
)
def experiment_report(
    golden_cases: pl.DataFrame,
    experiments: dg.ResourceParam[Mapping[str, Experiment]],
    home: dg.ResourceParam[Home],
) -> dg.MaterializeResult[pl.DataFrame]:
    """Predicted beside measured, recipe by recipe, with intervals; nulls and contradictions too.

    Recipes that were not measured yet are `unmeasured`.
    """
    needed = {recipe for experiment in experiments.values() for recipe in experiment.recipes}
    measured = {}
    for recipe in sorted(needed):
        paths = [home.table(f"parity/{name}", recipe) for name in ("arm_answers", "graded_answers")]
        if all(path.exists() for path in paths):
            answers, graded = (pl.read_parquet(path) for path in paths)
            measured[recipe] = measure_cases(answers, graded, golden_cases, read_rubric(graded))
    frame = compare_predictions(experiments.values(), measured)
    counts = frame["outcome"].value_counts().sort("outcome")
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "predictions_by_outcome": dict(counts.iter_rows()),
            "predictions": dg.MetadataValue.md(draw_predictions(frame)),
        },
    )
