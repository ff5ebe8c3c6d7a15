"""The cascade: a smaller student asked before the one that is judged, as servers ask two students.

Its recipe is run by itself first; what its tables say of its student is read here. Belongs here:
which recipe may make it, reading those tables, and the arm of both. Does not belong here: asking
(`answering`), what a route means for an answer (`deriving`), a release of two students.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from assets import tables
from assets.parity.arms import CASCADE, SMALLER, STUDENT
from assets.parity.baselines import StudentShelf
from assets.parity.deriving import derive_arm
from assets.parity.prices import StatedPrice
from assets.parity.routes import Thresholds
from assets.students.calibration import read_calibrator
from serving.errors import InvalidInputError
from serving.home import Home
from serving.pipeline.confidence import ConfidenceCalibration
from serving.pipeline.router import RouterPolicy
from serving.pipeline.tiers import Tier

CLEAN_LANE = "clean"


@dataclass(frozen=True, kw_only=True)
class RecipeTerms:
    """What the configuration says of a recipe's student: its lane, and its price."""

    lane: str
    price: StatedPrice


@dataclass(frozen=True, kw_only=True)
class SmallerStudent:
    """The student that is asked first: its student_adapter row, and how sure it must be."""

    adapter: Mapping[str, Any]
    calibration: ConfidenceCalibration | None

    def open(self, students: StudentShelf) -> Tier:
        """Return it ready to answer."""
        return Tier(model=students.load(dict(self.adapter)), calibration=self.calibration)

    def find_threshold(self, policy: RouterPolicy) -> float | None:
        """Return the confidence from which its answer stands; None: it is asked nothing."""
        if self.calibration is None:
            return None
        return self.calibration.find_threshold(policy.maximum_risk_ratio)


def refuse_unfit_smaller(
    smaller: str, recipes: Mapping[str, RecipeTerms], *, main_recipe: str
) -> None:
    """Refuse a smaller student that no report can tell the truth about.

    Args:
        smaller: the recipe of `parity.smaller_recipe`.
        recipes: every recipe there is, by name.
        main_recipe: whose student is asked after it.

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
            expected=f"one of the recipes {', '.join(legal) or '(none is fit)'}",
            found=f"{smaller}, which is {found}",
            next_step="name such a recipe, or add a YAML file to the folder of recipes",
        )
    main = recipes.get(main_recipe)
    price, main_price = recipes[smaller].price, main.price if main else StatedPrice()
    if price.is_missing or price.is_zero != main_price.is_zero:
        raise _refuse(
            smaller,
            expected="a student whose price is stated, and is 0 only where that of the default "
            "recipe's student is",
            found=f"{price} beside {main_price}",
            next_step="state both in `students.<name>.price`",
        )


def read_smaller(home: Home, recipe: str, *, main: Mapping[str, Any]) -> SmallerStudent:
    """Return the student that a recipe has made by now; `main` is the row of that after it.

    Raises:
        InvalidInputError: it was never run, or not by this release, or made the same weights.
    """
    adapter = _read_row(home, "students/student_adapter", recipe)
    calibration = _read_row(home, "students/calibration", recipe)
    if not adapter or not calibration or calibration["adapter_sha256"] != adapter["adapter_sha256"]:
        raise _refuse(
            recipe,
            expected="a student that was made and calibrated",
            found="none" if not adapter else f"{adapter['adapter']} without its calibration",
            next_step=f"run `understudy run --recipe {recipe}` first, or take the key out",
        )
    if adapter["adapter_sha256"] == main["adapter_sha256"]:
        raise _refuse(
            recipe,
            expected="a student of its own",
            found=f"{adapter['adapter']}, the very student that is asked after it",
            next_step="change the recipe, or take the key out",
        )
    return SmallerStudent(adapter=adapter, calibration=read_calibrator(calibration))


def derive_cascade(
    rows: Sequence[Mapping[str, Any]],
    fitted: Mapping[str, Any],
    smaller: SmallerStudent,
    policy: RouterPolicy,
) -> list[dict[str, Any]]:
    """Return the rows of the arm `cascade` over those of teacher, student and smaller student.

    `fitted` is the calibration row of the student that is asked second.
    """
    return derive_arm(
        CASCADE,
        rows,
        read_configured(fitted, policy),
        smaller_threshold=smaller.find_threshold(policy),
    )


def describe_cascade(arm_answers: pl.DataFrame) -> dict[str, float]:
    """Return the shares of cases that each of the three answered in the cascade."""
    first = arm_answers.filter(pl.col("error").is_null(), repeat=0)
    cascade = first.filter(arm=CASCADE)
    names = first.filter(arm=SMALLER)["model"].unique().implode()
    is_smaller = pl.col("model").is_in(names)
    is_student = pl.col("served_by") == STUDENT
    shares = cascade.select(
        smaller=(is_student & is_smaller).mean(),
        student=(is_student & ~is_smaller).mean(),
        teacher=(~is_student).mean(),
    )
    return {f"cascade_{name}_ratio": ratio for name, ratio in shares.row(0, named=True).items()}


def read_configured(fitted: Mapping[str, Any], policy: RouterPolicy) -> Thresholds:
    """Return what the router decides by in production; `fitted` is the student's calibration."""
    calibrator = read_calibrator(fitted)
    risk = policy.maximum_risk_ratio
    return Thresholds(
        policy=policy,
        confidence_threshold=calibrator.find_threshold(risk) if calibrator else None,
    )


def _read_row(home: Home, key: str, recipe: str) -> dict[str, Any] | None:
    path = home.table(key, recipe)
    if not path.exists():
        return None
    frame = pl.read_parquet(path)
    is_ours = frame.schema == tables.BY_KEY[tuple(key.split("/"))] and frame.height == 1
    return frame.row(0, named=True) if is_ours else None


def _refuse(recipe: str, *, expected: str, found: str, next_step: str) -> InvalidInputError:
    return InvalidInputError(
        f"asking the student of the recipe {recipe} first, as parity.smaller_recipe says",
        expected=expected,
        found=found,
        next_step=next_step,
    )
