"""What the students are known to do worse than the teacher, in sentences.

Belongs here: finding and wording losses. Does not belong here: whether they matter (`gate`).
"""

from collections.abc import Sequence
from typing import Any

import polars as pl

from assets.parity.arms import BASELINE, STUDENT, label_arm
from assets.parity.comparison import find_row
from assets.parity.formatting import format_limits, format_value
from assets.parity.metrics import METRICS, SLICES, Metric


def state_losses(report: pl.DataFrame, students: Sequence[str] = (STUDENT,)) -> tuple[str, ...]:
    """Say what each student, alone, is known to do worse than the teacher: a sentence per finding.

    `students` are the arms of those asked in turn.
    Known: the whole interval of the difference lies on the worse side. The last sentence says how
    large a loss could have gone unseen, so that silence is not read as equality. Speed and cost are
    read over all cases alone: a slice has too few timed ones.
    """
    sentences = [
        _state_loss(metric, row, label_arm(student))
        for student in students
        for metric in METRICS
        for name in (SLICES if metric.unit in {"ratio", "score"} else ("all",))
        if _is_worse(metric, row := find_row(report, f"{student}-{BASELINE}", metric.name, name))
    ]
    pooled = find_row(report, f"{STUDENT}-{BASELINE}", "exact_match")
    if not pooled["n"]:
        return (*sentences, "Exact match was not compared: no case was graded in both arms.")
    unseen = max(0.0, -pooled["lower"])
    return (
        *sentences,
        f"On {pooled['n']} cases a loss of exact match of up to {100 * unseen:.1f} points is "
        "compatible with what was seen; behaviours no golden case asks for were not measured.",
    )


def _is_worse(metric: Metric, row: dict[str, Any]) -> bool:
    if row["value"] is None:
        return False
    return bool(row["upper"] < 0 if metric.is_higher_better else row["lower"] > 0)


def _state_loss(metric: Metric, row: dict[str, Any], student: str) -> str:
    slice_name = row["slice"].replace("_", " ")
    where = "Over all cases" if row["slice"] == "all" else f"On {slice_name} cases"
    label = metric.label if metric.unit == "usd" else metric.label[0].lower() + metric.label[1:]
    gap = format_value(abs(row["value"]), metric.unit, is_difference=True).lstrip("+")
    direction = "below" if metric.is_higher_better else "above"
    return (
        f"{where} the {student}'s {label} is {gap} {direction} the {BASELINE}'s "
        f"(interval {format_limits(row, metric.unit)}, n = {row['n']})."
    )
