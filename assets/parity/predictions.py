"""Predictions against measurements: what an experiment was expected to change, and what it did.

Judged is what was registered before the run; nulls and contradictions are published like the rest.
Belongs here: that comparison. Does not belong here: which experiments there are (`experiments`),
the ledger (`registering`), how a difference is measured (`comparison`).
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import polars as pl

from assets import tables
from assets.parity.comparison import DEFAULT_SETTINGS, compare_rows, measured_as, pair_cases
from assets.parity.experiments import OF_NAME, Experiment
from assets.parity.metrics import Unit
from assets.parity.registering import (
    UNREGISTERED,
    Registration,
    StandingPrediction,
    compare_with_registration,
)
from assets.statistics import clopper_pearson_interval

NONE: Mapping[str, Registration] = MappingProxyType({})
Outcome = Literal["confirmed", "undecided", "contradicted", "unmeasured", "unpredicted"]
NO_CHANGE = 0.05  # of a ratio: an interval within it on both sides is as good as no change
LARGEST_CHANGE: Mapping[Unit, float] = MappingProxyType({"ratio": 1.0, "score": 4.0})
"""How far one case can move a bounded metric."""


def compare_predictions(
    experiments: Iterable[Experiment],
    measured: Mapping[str, pl.DataFrame],
    registrations: Mapping[str, Registration] = NONE,
) -> pl.DataFrame:
    """Return the experiment_report: one row per experiment and metric predicted, then or now.

    Args:
        experiments: to report.
        measured: by recipe, the rows of `measure_cases`; an experiment that lacks those of one of
            its recipes is unmeasured.
        registrations: by experiment, what was predicted before its student was first asked.
    """
    rows = [
        {
            "experiment": experiment.name,
            "recipe": experiment.recipe,
            "arm": experiment.arm,
            "against": f"{experiment.against_recipe}:{experiment.against_arm}",
            "metric": one.metric,
            "predicted_delta": one.predicted,
            "declared_delta": one.declared,
            "registration": one.standing,
            **_date(registrations.get(experiment.name)),
            **_measure(experiment, one, measured),
        }
        for experiment in experiments
        for one in compare_with_registration(experiment, registrations.get(experiment.name))
        if one.metric in OF_NAME  # a metric of another version is gone, and cannot be measured
    ]
    return pl.DataFrame(rows, schema=tables.EXPERIMENT_REPORT)


def _date(registration: Registration | None) -> dict[str, str]:
    if registration is None:
        return {}
    return {
        "registered_at": registration.registered_at,
        "prediction_hash": registration.prediction_hash,
    }


def keep_retired(report: pl.DataFrame, last: pl.DataFrame) -> pl.DataFrame:
    """Return the report with what was measured of experiments that the config declares no more.

    Args:
        report: of the experiments of today.
        last: the report before it; one of another version is passed over.
    """
    if last.schema != report.schema:
        return report
    gone = last.filter(
        ~pl.col("experiment").is_in(report["experiment"].to_list()),
        pl.col("outcome") != "unmeasured",
    )
    retired = gone.with_columns(
        registration=pl.lit("retired"), declared_delta=pl.lit(None, pl.Float64)
    )
    return pl.concat([report, retired])


def _measure(
    experiment: Experiment, prediction: StandingPrediction, measured: Mapping[str, pl.DataFrame]
) -> dict[str, Any]:
    metric = OF_NAME[prediction.metric]
    frames = [measured.get(name) for name in (experiment.recipe, experiment.against_recipe)]
    if any(frame is None for frame in frames):
        return {"n": 0, "outcome": "unmeasured"}
    arms = (experiment.arm, experiment.against_arm)
    rows, baseline = (
        frame.filter(arm=arm, metric=measured_as(metric))
        for frame, arm in zip(frames, arms, strict=True)
        if frame is not None
    )
    found = compare_rows(metric, rows, baseline, DEFAULT_SETTINGS)
    if found["method"] != "tango":
        found = bound_no_difference(found, pair_cases(rows, baseline)[0], metric.unit)
    is_predicted = prediction.standing not in UNREGISTERED and not prediction.is_of_another
    limits = {name: found[name] for name in ("value", "lower", "upper", "n", "method")}
    return {
        "measured_delta": limits.pop("value"),
        **limits,
        "inconclusive_count": found["inconclusive_count"],
        "mcnemar_p": found.get("mcnemar_p"),
        "outcome": judge_prediction(
            prediction.predicted if is_predicted else None,
            found["lower"],
            found["upper"],
        ),
    }


def bound_no_difference(found: dict[str, Any], pairs: pl.DataFrame, unit: Unit) -> dict[str, Any]:
    """Return a difference with limits that say something where no case differs.

    Resampling cases that are all equal gives an interval without width, however few they are. Cases
    of one page stand or fall together: of n pages none differs, so of all pages at most
    1 - 0.025^(1/n) do (Clopper and Pearson, 95 %), and each by the metric's range.
    """
    parts = ("numerator", "denominator")
    is_equal = pl.all_horizontal(pl.col(part) == pl.col(f"{part}_base") for part in parts)
    if pairs.is_empty() or unit not in LARGEST_CHANGE or not pairs.select(is_equal.all()).item():
        return found
    limit = LARGEST_CHANGE[unit] * clopper_pearson_interval(0, pairs["cluster"].n_unique()).upper
    return {**found, "lower": -limit, "upper": limit, "method": "no case differs, Clopper-Pearson"}


def judge_prediction(predicted: float | None, lower: float | None, upper: float | None) -> Outcome:
    """Return what an interval says of a prediction.

    `confirmed`: it holds the prediction and, if a change was predicted, excludes none; if none was,
    it lies within `NO_CHANGE` of zero.
    `undecided`: it holds the prediction and too much else: too few cases to tell them apart.
    `contradicted`: it does not hold the prediction.
    `unpredicted`: nothing was predicted (None) before the student was asked.
    """
    if lower is None or upper is None:
        return "unmeasured"
    if predicted is None:
        return "unpredicted"
    if not lower <= predicted <= upper:
        return "contradicted"
    if predicted:
        return "undecided" if lower <= 0 <= upper else "confirmed"
    return "confirmed" if max(-lower, upper) <= NO_CHANGE else "undecided"
