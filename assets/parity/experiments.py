"""Experiments: what a recipe or a router variant was predicted to change, and what it changed.

A prediction is written down before the run; nulls and contradictions are published like the rest.
Belongs here: which experiments there are, prediction against measurement. Does not belong here:
how a difference is measured (`comparison`), running anything.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from assets import tables
from assets.parity.arms import BY_NAME
from assets.parity.comparison import DEFAULT_SETTINGS, compare_rows, measured_as
from assets.parity.metrics import METRICS, SUPPORTING_METRICS, Metric
from assets.students.recipe import AnyRecipe
from serving.errors import InvalidInputError

Outcome = Literal["confirmed", "undecided", "contradicted", "unmeasured"]
STUDENT = "student"
NO_CHANGE = 0.05  # of a ratio: an interval within it on both sides is as good as no change
OF_NAME = {metric.name: metric for metric in (*METRICS, *SUPPORTING_METRICS)}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One comparison: an arm of a recipe against another, and what is expected of it."""

    name: str
    description: str
    recipe: str
    arm: str
    against_recipe: str
    against_arm: str
    predicted: Mapping[str, float]

    @property
    def recipes(self) -> tuple[str, ...]:
        """The recipes whose answers it needs, the baseline first."""
        return tuple(dict.fromkeys((self.against_recipe, self.recipe)))


@dataclass(frozen=True, kw_only=True)
class RouterVariant:
    """A prediction about an operating point of the default recipe, as the config declares it."""

    against: str
    predicted_delta: Mapping[str, float]
    description: str = ""


def list_experiments(
    recipes: Mapping[str, AnyRecipe], variants: Mapping[str, RouterVariant], *, default_recipe: str
) -> dict[str, Experiment]:
    """Return the experiments by name: every recipe that predicts something, and router variants.

    Raises:
        InvalidInputError: a prediction is about a metric, a recipe or an arm that does not exist.
    """
    found = [
        Experiment(
            name=name,
            description=recipe.description,
            recipe=name,
            arm=STUDENT,
            against_recipe=recipe.compared_with or default_recipe,
            against_arm=STUDENT,
            predicted=recipe.predicted_delta,
        )
        for name, recipe in sorted(recipes.items())
        if recipe.predicted_delta
    ]
    found += [
        Experiment(
            name=arm,
            description=variant.description,
            recipe=default_recipe,
            arm=arm,
            against_recipe=default_recipe,
            against_arm=variant.against,
            predicted=variant.predicted_delta,
        )
        for arm, variant in variants.items()
    ]
    for experiment in found:
        _refuse_unknown(experiment, recipes)
    return {experiment.name: experiment for experiment in found}


def _refuse_unknown(experiment: Experiment, recipes: Mapping[str, AnyRecipe]) -> None:
    problems = [f"metric {name!r}" for name in experiment.predicted if name not in OF_NAME]
    problems += [f"recipe {name!r}" for name in experiment.recipes if name not in recipes]
    problems += [
        f"arm {name!r}" for name in (experiment.arm, experiment.against_arm) if name not in BY_NAME
    ]
    if problems:
        raise InvalidInputError(
            f"reading the experiment {experiment.name!r}",
            expected=f"metrics among {', '.join(OF_NAME)}; recipes among "
            f"{', '.join(sorted(recipes))}; arms among {', '.join(BY_NAME)}",
            found=f"unknown {', '.join(problems)}",
            next_step="mend `predicted_delta` and `compared_with` of the recipe, or `experiments` "
            "in the config",
        )


def compare_predictions(
    experiments: Iterable[Experiment], measured: Mapping[str, pl.DataFrame]
) -> pl.DataFrame:
    """Return the experiment_report: one row per experiment and metric that it predicts.

    Args:
        experiments: to report.
        measured: by recipe, the rows of `measure_cases`; an experiment that lacks those of one of
            its recipes is unmeasured.
    """
    rows = [
        {
            "experiment": experiment.name,
            "recipe": experiment.recipe,
            "arm": experiment.arm,
            "against": f"{experiment.against_recipe}:{experiment.against_arm}",
            "metric": metric,
            "predicted_delta": predicted,
            **_measure(experiment, OF_NAME[metric], predicted, measured),
        }
        for experiment in experiments
        for metric, predicted in experiment.predicted.items()
    ]
    return pl.DataFrame(rows, schema=tables.EXPERIMENT_REPORT)


def _measure(
    experiment: Experiment, metric: Metric, predicted: float, measured: Mapping[str, pl.DataFrame]
) -> dict[str, Any]:
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
    limits = {name: found[name] for name in ("value", "lower", "upper", "n", "method")}
    return {
        "measured_delta": limits.pop("value"),
        **limits,
        "inconclusive_count": found["inconclusive_count"],
        "mcnemar_p": found.get("mcnemar_p"),
        "outcome": judge_prediction(predicted, found["lower"], found["upper"]),
    }


def judge_prediction(predicted: float, lower: float | None, upper: float | None) -> Outcome:
    """Return what an interval says of a prediction.

    `confirmed`: it holds the prediction and, if a change was predicted, excludes none; if none was,
    it lies within `NO_CHANGE` of zero.
    `undecided`: it holds the prediction and too much else: too few cases to tell them apart.
    `contradicted`: it does not hold the prediction.
    """
    if lower is None or upper is None:
        return "unmeasured"
    if not lower <= predicted <= upper:
        return "contradicted"
    if predicted:
        return "undecided" if lower <= 0 <= upper else "confirmed"
    return "confirmed" if max(-lower, upper) <= NO_CHANGE else "undecided"
