"""Tiers: the students that a pipeline asks in turn, the smallest first; the last is the recipe's.

One student is a list of one. Those before it are made by runs of their own recipes, and what the
tables of these say of them by now is read here. Belongs here: who is asked, in which order, and
putting them into the request path. Does not belong here: which recipes may stand there (`cascade`),
what asking in turn means for an answer (`deriving`), for a release (`assets/releases/tiers`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from assets import tables
from assets.parity.arms import ArmPlan
from assets.parity.baselines import StudentShelf
from assets.students.calibration import read_calibrator, write_calibrator
from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.home import Home
from serving.pipeline.answer import AnswerPipeline
from serving.pipeline.assembly import PipelineParts
from serving.pipeline.confidence import ConfidenceCalibration
from serving.pipeline.router import RouterPolicy
from serving.pipeline.tiers import Tier

Row = Mapping[str, Any]
SMALLER_VERSION = "input_version/parity/smaller_students"
"""Under it an asset states which students before its own it asked."""


@dataclass(frozen=True, kw_only=True)
class TierStudent:
    """A student that is asked in turn: its student_adapter row and its calibration row."""

    adapter: Row
    fitted: Row

    @property
    def calibration(self) -> ConfidenceCalibration | None:
        """How sure it is of an answer; None: there was nothing to fit."""
        return read_calibrator(self.fitted)

    def find_threshold(self, policy: RouterPolicy) -> float | None:
        """Return the confidence from which its answer stands; None: none is certified."""
        calibration = self.calibration
        return calibration.find_threshold(policy.maximum_risk_ratio) if calibration else None

    def open(self, students: StudentShelf) -> Tier:
        """Return it ready to answer."""
        return Tier(model=students.load(dict(self.adapter)), calibration=self.calibration)


Tiers = tuple[TierStudent, ...]


def state_fitted(calibration: ConfidenceCalibration | None) -> dict[str, Any]:
    """Return what a calibration row says of a calibration that a release holds."""
    text = write_calibrator(calibration) if calibration else None
    return {"calibrator": text, "calibrator_hash": content_hash(text, digits=64)}


def list_before(recipes: Sequence[str], recipe: str) -> tuple[str, ...]:
    """Return whose students are asked before that of a recipe; of one not among them, nobody's."""
    return tuple(recipes[: recipes.index(recipe)]) if recipe in recipes else ()


def gather_tiers(home: Home, recipes: Sequence[str], *, adapter: Row, fitted: Row) -> Tiers:
    """Return the students of a recipe's pipeline in the order they are asked, its own last.

    Args:
        home: where the tables of the recipes lie.
        recipes: whose students are asked in turn; where the recipe is not among them, it is alone.
        adapter: the student_adapter row of its own.
        fitted: its calibration row.

    Raises:
        InvalidInputError: a recipe was never run, or not by this release, or made the same weights.
    """
    before = list_before(recipes, adapter["recipe"])
    smaller = (_read_student(home, name, main=adapter) for name in before)
    return (*smaller, TierStudent(adapter=adapter, fitted=fitted))


def read_made(home: Home, key: str, recipe: str) -> pl.DataFrame:
    """Return a table of another recipe; no rows where it is missing, damaged or of another version.

    What another recipe's run left behind may hold up only what needs it.
    """
    schema = tables.BY_KEY[tuple(key.split("/"))]
    try:
        found = pl.read_parquet(home.table(key, recipe))
    # Polars panics where damage contradicts what the file says of itself.
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return schema.to_frame()
    return found if found.schema == schema else schema.to_frame()


async def assemble_tiers(
    parts: PipelineParts, index_fingerprint: str, tiers: Sequence[Tier]
) -> AnswerPipeline:
    """Return the request path that asks these students in turn."""
    *smaller, last = tiers
    return await parts.assemble(
        index_fingerprint,
        student=last.model,
        calibration=last.calibration,
        smaller=tuple(smaller),
    )


def fingerprint_before(home: Home, plan: ArmPlan, recipe: str) -> str:
    """Return the identity of those asked before the student of a recipe by now, and of their use.

    Their recipes are run by themselves: by this alone it is seen that one was trained again.
    """
    before = list_before(plan.tiers, recipe)
    made = [
        [
            name,
            *(row and row[key] for row, key in zip(_read_rows(home, name), _HASHES, strict=True)),
        ]
        for name in before
    ]
    return content_hash(made, bool(before) and plan.is_released)


def _read_student(home: Home, recipe: str, *, main: Row) -> TierStudent:
    adapter, fitted = _read_rows(home, recipe)
    if not adapter or not fitted or fitted["adapter_sha256"] != adapter["adapter_sha256"]:
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
    return TierStudent(adapter=adapter, fitted=fitted)


_TABLES = ("students/student_adapter", "students/calibration")
_HASHES = ("adapter_sha256", "calibrator_hash")


def _read_rows(home: Home, recipe: str) -> list[dict[str, Any] | None]:
    return [_read_row(home, key, recipe) for key in _TABLES]


def _read_row(home: Home, key: str, recipe: str) -> dict[str, Any] | None:
    frame = read_made(home, key, recipe)
    return frame.row(0, named=True) if frame.height == 1 else None


def _refuse(recipe: str, *, expected: str, found: str, next_step: str) -> InvalidInputError:
    return InvalidInputError(
        f"asking the student of the recipe {recipe} first, as releases.tiers or "
        "parity.smaller_recipe says",
        expected=expected,
        found=found,
        next_step=next_step,
    )
