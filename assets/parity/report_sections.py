"""Sections of the report that other tables may add: router curve, economics, experiments.

A section says what it has; the template draws it. Belongs here: their shape, and line plots as
polylines. Does not belong here: what a section says (its own module).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from assets.parity.formatting import TextTable


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line through (x, y) points in ascending x."""

    label: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class LinePlot:
    """Lines on common axes. `is_unit` keeps both axes from 0 to 1; else they fit the points.

    `has_diagonal` draws the line from corner to corner: what a calibrated confidence looks like.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    is_unit: bool = False
    has_diagonal: bool = False


@dataclass(frozen=True, kw_only=True)
class ReportSection:
    """One section: `anchor` is its name in the page, a word of lower-case letters."""

    anchor: str
    title: str
    lead: str
    tables: Sequence[TextTable] = ()
    plots: Sequence[LinePlot] = ()
    notes: Sequence[str] = ()


def view_plot(plot: LinePlot) -> dict[str, Any]:
    """Return a plot as polylines in a 0-100 box, with the ends of its axes."""
    xs = [x for line in plot.lines for x, _ in line.points]
    ys = [y for line in plot.lines for _, y in line.points]
    left, right = (0.0, 1.0) if plot.is_unit else (min(xs, default=0.0), max(xs, default=1.0))
    top = 1.0 if plot.is_unit else max(max(ys, default=1.0), 0.0) or 1.0
    bottom = 0.0 if plot.is_unit else min(min(ys, default=0.0), 0.0)
    width, height = (right - left) or 1.0, (top - bottom) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return 100 * (x - left) / width, 100 - 100 * (y - bottom) / height

    def draw(line: Line) -> str:
        placed = [place(x, y) for x, y in line.points]
        if len(set(placed)) == 1:  # a line of one point would not be seen: a short stroke is
            ((x, y),) = set(placed)
            placed = [(x - 1.5, y), (x + 1.5, y)]
        return " ".join(f"{x:.2f},{y:.2f}" for x, y in placed)

    return {
        "title": plot.title,
        "x_label": plot.x_label,
        "y_label": plot.y_label,
        "ends": [f"{value:.3g}" for value in (left, right, bottom, top)],
        "has_diagonal": plot.has_diagonal,
        "lines": [{"label": line.label, "points": draw(line)} for line in plot.lines],
    }
