"""The cascade: a smaller student asked before the one that is judged, as servers ask two students.

Belongs here: which recipe may make it, what the router decides by then, and the arm of both. Does
not belong here: who they are by now (`tiers`), asking (`answering`), what a route means for an
answer (`deriving`), a release of two students (`assets/releases`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from assets.parity.arms import CANDIDATE, CASCADE, SMALLER, STUDENT, list_students
from assets.parity.deriving import derive_arm
from assets.parity.prices import StatedPrice
from assets.parity.routes import Thresholds
from assets.parity.tiers import TierStudent
from serving.errors import InvalidInputError
from serving.pipeline.router import RouterPolicy

CLEAN_LANE = "clean"


@dataclass(frozen=True, kw_only=True)
class RecipeTerms:
    """What the configuration says of a recipe: its lane, whose student it is, and the price."""

    lane: str
    price: StatedPrice
    student: str = ""


def refuse_unfit_smaller(
    smaller: str,
    recipes: Mapping[str, RecipeTerms],
    *,
    main_recipe: str,
    key: str = "parity.smaller_recipe",
) -> None:
    """Refuse a smaller student that no report can tell the truth about.

    Args:
        smaller: the recipe that is to be asked first.
        recipes: every recipe there is, by name.
        main_recipe: whose student is asked after it.
        key: of the configuration, which names the recipe.

    Raises:
        InvalidInputError: the recipe does not exist, is the other one, trains on its own exam, or
            the price of its student would make the numbers of the other one unknown.
    """
    clean = [name for name, terms in recipes.items() if terms.lane == CLEAN_LANE]
    legal = sorted(name for name in clean if name != main_recipe)
    if smaller not in legal:
        found = "no recipe" if smaller not in recipes else f"of the {recipes[smaller].lane} lane"
        if smaller == main_recipe:
            found = "the default recipe, whose student is asked after it"
        raise _refuse(
            smaller,
            key,
            expected=f"one of the recipes {', '.join(legal) or '(none is fit)'}",
            found=f"{smaller}, which is {found}",
            next_step="name such a recipe, or add a YAML file to the folder of recipes",
        )
    main = recipes.get(main_recipe)
    price, main_price = recipes[smaller].price, main.price if main else StatedPrice()
    if price.is_missing or price.is_zero != main_price.is_zero:
        raise _refuse(
            smaller,
            key,
            expected="a student whose price is stated, and is 0 only where that of the default "
            "recipe's student is",
            found=f"{price} beside {main_price}",
            next_step="state both in `students.<name>.price`",
        )


def refuse_unfit_tiers(tiers: Sequence[str], recipes: Mapping[str, RecipeTerms]) -> None:
    """Refuse students that no release can ask in turn; `tiers` are recipes, the last the default.

    Raises:
        InvalidInputError: as `refuse_unfit_smaller` says, or two of them are of one `students`
            entry: the same model at the same price, asked twice, saves nothing.
    """
    *before, main = tiers
    for recipe in before:
        refuse_unfit_smaller(recipe, recipes, main_recipe=main, key="releases.tiers")
        student = recipes[recipe].student
        if main in recipes and student == recipes[main].student:
            raise _refuse(
                recipe,
                "releases.tiers",
                expected=f"a student of another `students` entry than that of the recipe {main}",
                found=f"{student}, which both are of",
                next_step="add an entry for the smaller model, and name it in the recipe",
            )


def derive_cascade(
    rows: Sequence[Mapping[str, Any]], tiers: Sequence[TierStudent], policy: RouterPolicy
) -> list[dict[str, Any]]:
    """Return the rows of the arm `cascade` over those of teacher, student and smaller student."""
    return derive_arm(CASCADE, rows, read_configured(tiers, policy))


def describe_cascade(arm_answers: pl.DataFrame) -> dict[str, float]:
    """Return the shares of cases that each of the three answered in the arm that asks them all."""
    present = arm_answers["arm"].unique()
    asking = (arm for arm in (CASCADE, CANDIDATE) if SMALLER in list_students(arm, present))
    arm = next(asking, None)
    if arm is None:
        return {}
    first = arm_answers.filter(pl.col("error").is_null(), repeat=0)
    names = first.filter(arm=SMALLER)["model"].unique().implode()
    is_smaller = pl.col("model").is_in(names)
    is_student = pl.col("served_by") == STUDENT
    shares = first.filter(arm=arm).select(
        smaller=(is_student & is_smaller).mean(),
        student=(is_student & ~is_smaller).mean(),
        teacher=(~is_student).mean(),
    )
    return {f"cascade_{name}_ratio": ratio for name, ratio in shares.row(0, named=True).items()}


def read_configured(tiers: Sequence[TierStudent], policy: RouterPolicy) -> Thresholds:
    """Return what the router decides by where it asks these students in turn."""
    *smaller, own = (tier.find_threshold(policy) for tier in tiers)
    return Thresholds(
        policy=policy,
        confidence_threshold=own,
        smaller_threshold=smaller[0] if smaller else None,
    )


def _refuse(
    recipe: str, key: str, *, expected: str, found: str, next_step: str
) -> InvalidInputError:
    return InvalidInputError(
        f"asking the student of the recipe {recipe} first, as {key} says",
        expected=expected,
        found=found,
        next_step=next_step,
    )
