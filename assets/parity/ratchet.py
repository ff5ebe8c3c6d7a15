"""The ratchet: what a new student changes about how much of the teacher is needed.

Thresholds are chosen anew on held-out questions for every student; two router curves set side by
side say whether the same quality now takes less of the teacher. Each curve is measured on its own
held-out questions, so a small difference is within noise: `case_count` says how many there were.
Belongs here: setting curves side by side. Does not belong here: making one (`router_curve`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from assets.charts import BLUE, ORANGE, draw_lines

QUALITIES = (0.80, 0.90, 0.95)


@dataclass(frozen=True, kw_only=True)
class RatchetStep:
    """The least share of questions that the teacher must be asked for one quality.

    None: no threshold reaches the quality.
    """

    quality: float
    before_ratio: float | None
    after_ratio: float | None


def compare_curves(
    before: pl.DataFrame, after: pl.DataFrame, *, qualities: Sequence[float] = QUALITIES
) -> tuple[RatchetStep, ...]:
    """Return what each quality takes of the teacher with the old student and with the new one.

    Args:
        before: the router_curve of the old student.
        after: the router_curve of the new one.
        qualities: agreement with the teacher's label, 0 to 1.
    """
    return tuple(
        RatchetStep(
            quality=quality,
            before_ratio=find_least_share(before, quality),
            after_ratio=find_least_share(after, quality),
        )
        for quality in qualities
    )


def find_least_share(curve: pl.DataFrame, quality: float) -> float | None:
    """Return the least share of the teacher at which a curve has this quality; None: nowhere."""
    reached = curve.filter(pl.col("quality") >= quality)["teacher_ratio"]
    return None if reached.is_empty() else float(reached.to_numpy().min())


def draw_ratchet(before: pl.DataFrame, after: pl.DataFrame) -> bytes:
    """Return a PNG of both curves: agreement with the teacher against the teacher's share."""
    lines = {
        name: (curve["teacher_ratio"].to_list(), curve["quality"].to_list())
        for name, curve in (("student before", before), ("student now", after))
    }
    return draw_lines(
        lines,
        colours=(ORANGE, BLUE),
        title="Agreement with the teacher on held-out questions",
        axis_label="share of questions that the teacher is asked",
    )
