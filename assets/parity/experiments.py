"""Experiments: what a recipe or a router variant is predicted to change.

Belongs here: which experiments there are. Does not belong here: what was predicted before a run
(`registering`), prediction against measurement (`predictions`), running anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from assets.parity.arms import BY_NAME, STUDENT
from assets.parity.metrics import METRICS, SUPPORTING_METRICS
from assets.students.recipe import AnyRecipe
from serving.errors import InvalidInputError

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
