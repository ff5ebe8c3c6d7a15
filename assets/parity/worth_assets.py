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
from assets.eval_set.ledger import record_read
from assets.parity.arms import BASELINE, CANDIDATE, STUDENT
from assets.parity.costs import measure_costs
from assets.parity.economics import (
    EconomicsTerms,
    OneOffCosts,
    explain_costs,
    find_range,
    find_untimed_call,
    tabulate_economics,
    tabulate_unpriced,
)
from assets.parity.economics_chart import draw_sensitivity
from assets.parity.experiments import Experiment
from assets.parity.experiments_chart import draw_predictions
from assets.parity.flips import measure_flips
from assets.parity.measuring import find_outdated, measure_cases
from assets.parity.predictions import compare_predictions, keep_retired
from assets.parity.prices import (
    TEACHER,
    StatedPrice,
    explain_outdated,
    find_free,
    find_missing_price,
    find_unpriced,
    state_zeros,
)
from assets.parity.registering import Registration, find_predictions, read_registrations
from assets.parity.router_chart import draw_curve
from assets.parity.router_curve import summarise_curve, tabulate_curve
from assets.parity.rubric import read_rubric
from assets.parity.suitability import MINIMUM_TRAFFIC, gather_asked, measure_suitability
from assets.partitions import RECIPES
from assets.students.calibration import read_calibrator
from serving.home import Home
from serving.models.protocols import Embedder
from serving.pipeline.assembly import PipelineParts
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
        "student_adapter": dg.AssetIn(key=keys.STUDENT_ADAPTER),
    },
    partitions_def=RECIPES,
    kinds={"polars"},
    code_version="4",
)
def router_curve(
    held_out_answers: pl.DataFrame,
    calibration: pl.DataFrame,
    arm_answers: pl.DataFrame,
    student_adapter: pl.DataFrame,
    router_policy: dg.ResourceParam[RouterPolicy],
    economics_terms: dg.ResourceParam[EconomicsTerms],
) -> dg.MaterializeResult[pl.DataFrame]:
    """Quality on validation questions against the teacher's share, from none to all.

    Only the prices of a call are read from the golden arms, and no choice is made by them.
    """
    prices, student = economics_terms.prices, student_adapter["student"].item()
    outdated = find_outdated(arm_answers, find_free(prices, student))
    unpriced = {*find_unpriced(prices, student), *outdated}
    # The sweep begins at the student alone, so a call costs what that arm's calls cost.
    costs = measure_costs(arm_answers, STUDENT)
    frame = tabulate_curve(
        held_out_answers,
        read_calibrator(calibration.row(0, named=True)),
        policy=router_policy,
        teacher_usd=None if BASELINE in unpriced else costs.teacher_usd,
        student_usd=None if STUDENT in unpriced else costs.student_usd,
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
    code_version="2",
)
def router_figures(
    held_out_answers: pl.DataFrame,
    calibration: pl.DataFrame,
    teacher_answers: pl.DataFrame,
    pipeline_parts: dg.ResourceParam[PipelineParts],
) -> dg.MaterializeResult[pl.DataFrame]:
    """What the router is worth: APGR, CPT(50/80/95), and how often paraphrases change the route."""
    fitted = read_calibrator(calibration.row(0, named=True))
    policy = pipeline_parts.router
    rows = summarise_curve(held_out_answers, fitted, policy=policy)
    rows.append(measure_flips(teacher_answers, policy, count_tokens=pipeline_parts.count_tokens))
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
    code_version="4",
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
    student = student_adapter["student"].item()
    missing = find_missing_price(terms.prices, student, is_paid_by_hour=terms.gpu_usd_per_hour > 0)
    missing = missing or explain_outdated(
        find_outdated(arm_answers, find_free(terms.prices, student)),
        is_paid_by_hour=terms.gpu_usd_per_hour > 0,
    )
    missing = missing or find_untimed_call(costs.values(), terms)
    if missing:
        frame = tabulate_unpriced(costs.values(), missing)
        return dg.MaterializeResult(value=frame, metadata={"inconclusive": missing})
    ranges = {arm: find_range(measured, one_off, terms) for arm, measured in costs.items()}
    savings = {name: found.saving_usd_per_month for name, found in ranges[CANDIDATE].items()}
    return dg.MaterializeResult(
        value=tabulate_economics((costs[arm], ranges[arm]) for arm in arms),
        metadata={
            "teacher_usd_per_1k": 1000 * costs[CANDIDATE].teacher_usd,
            "saving_usd_per_month": savings["expected"],
            "saving_usd_per_month_range": [savings["pessimistic"], savings["optimistic"]],
            "payback_weeks": ranges[CANDIDATE]["expected"].payback_weeks,
            "one_off_usd": one_off.total_usd,
            "remarks": [*state_zeros(terms.prices, student), *explain_costs(terms)],
            "sensitivity": dg.MetadataValue.md(draw_sensitivity(costs[CANDIDATE], one_off, terms)),
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
    code_version="4",
)
def suitability(
    trace_records: pl.DataFrame,
    teacher_answers: pl.DataFrame,
    labelled_examples: pl.DataFrame,
    router_policy: dg.ResourceParam[RouterPolicy],
    economics_terms: dg.ResourceParam[EconomicsTerms],
    embedder: dg.ResourceParam[Embedder],
) -> dg.MaterializeResult[pl.DataFrame]:
    """Which kinds of question are worth distilling: of the traffic, else of the seeds."""
    served = trace_records.filter(
        pl.col("env") == "prod",
        pl.col("outcome") == "answered",
        pl.col("counterfactual_cost_usd").is_not_null(),
    )
    is_traffic = served.height >= MINIMUM_TRAFFIC
    # Paraphrases are our own: what they repeat, no user has asked twice.
    seeds = teacher_answers.filter(pl.col("question_id") == pl.col("seed_id"))
    rows, cost = (served, "counterfactual_cost_usd") if is_traffic else (seeds, "cost_usd")
    price = economics_terms.prices.get(TEACHER, StatedPrice())
    asked = gather_asked(rows, router_policy, cost=cost, price=price)
    passed = set(labelled_examples["question_id"])
    labelled = teacher_answers.select("question", is_checkable=pl.col("question_id").is_in(passed))
    frame = measure_suitability(
        asked, labelled, source="traffic" if is_traffic else "seeds", embedder=embedder
    )
    shares = pl.col("cost_ratio")
    known = pl.when(shares.count() > 0).then(shares.sum())
    advised = frame.group_by("advice").agg(known.alias("cost_ratio")).sort("advice")
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
    deps=[keys.ARM_ANSWERS, keys.GRADED_ANSWERS, keys.STUDENT_ADAPTER],
    ins={"golden_cases": dg.AssetIn(key=keys.GOLDEN_CASES)},
    kinds={"scipy", "polars"},
    code_version="7",
)
def experiment_report(
    context: dg.AssetExecutionContext,
    golden_cases: pl.DataFrame,
    experiments: dg.ResourceParam[Mapping[str, Experiment]],
    economics_terms: dg.ResourceParam[EconomicsTerms],
    home: dg.ResourceParam[Home],
) -> dg.MaterializeResult[pl.DataFrame]:
    """Predicted beside measured, recipe by recipe, with intervals; nulls and contradictions too.

    Predicted is what was registered when the student was first asked; edits since are named.
    Recipes that were not measured yet are `unmeasured`. What was measured of an experiment that is
    declared no more is kept as it was last reported, and marked `retired`.
    """
    record_read(home.ledger, reader="experiment_report", run_id=context.run.run_id)
    needed = {recipe for experiment in experiments.values() for recipe in experiment.recipes}
    measured = {
        recipe: measure_cases(
            answers,
            graded,
            golden_cases,
            read_rubric(graded),
            unpriced=find_unpriced(economics_terms.prices, adapter["student"].item()),
            free=find_free(economics_terms.prices, adapter["student"].item()),
        )
        for recipe in sorted(needed)
        for answers, graded, adapter in _read_tables(home, recipe)
    }
    report = compare_predictions(
        experiments.values(), measured, _find_registrations(home, experiments)
    )
    last = home.table(keys.EXPERIMENT_REPORT.to_user_string())
    frame = keep_retired(report, pl.read_parquet(last)) if last.exists() else report
    counts = frame["outcome"].value_counts().sort("outcome")
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "predictions_by_outcome": dict(counts.iter_rows()),
            "predictions": dg.MetadataValue.md(draw_predictions(frame)),
        },
    )


def _read_tables(home: Home, recipe: str) -> list[tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]]:
    """Return a recipe's answers, grades and student; nothing where they were not made."""
    tables_of = (keys.ARM_ANSWERS, keys.GRADED_ANSWERS, keys.STUDENT_ADAPTER)
    paths = [home.table(key.to_user_string(), recipe) for key in tables_of]
    if not all(path.exists() for path in paths):
        return []
    answers, graded, adapter = (pl.read_parquet(path) for path in paths)
    return [(answers, graded, adapter)]


def _find_registrations(
    home: Home, experiments: Mapping[str, Experiment]
) -> dict[str, Registration]:
    """Return what was predicted of each experiment's student of today before it was asked."""
    ledger = read_registrations(find_predictions(home))
    found = {}
    for name, experiment in experiments.items():
        path = home.table(keys.STUDENT_ADAPTER.to_user_string(), experiment.recipe)
        adapter = pl.read_parquet(path)["adapter_sha256"].item() if path.exists() else ""
        if (name, adapter) in ledger:
            found[name] = ledger[name, adapter]
    return found
