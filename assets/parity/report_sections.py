"""Sections of the report that other tables may add: router curve, economics, experiments.

A section says what it has; the template draws it. Belongs here: their shape, line plots as
polylines, money maps as cells. Does not belong here: what a section says (its own module).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from assets.parity.formatting import MINUS, TextTable


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line through (x, y) points in ascending x."""

    label: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A dot among the lines; `name` is the arm whose colour it has."""

    name: str
    label: str
    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class LinePlot:
    """Lines and dots on common axes. `is_unit` keeps both from 0 to 1; else they fit the points.

    `has_diagonal` draws the line from corner to corner: what a calibrated confidence looks like.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    is_unit: bool = False
    has_diagonal: bool = False


@dataclass(frozen=True, kw_only=True)
class MoneyMap:
    """US dollars as cells: `amounts` is [rows][columns], each with its name."""

    title: str
    row_label: str
    column_label: str
    rows: Sequence[str]
    columns: Sequence[str]
    amounts: Sequence[Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class ReportSection:
    """One section: `anchor` is its name in the page, a word of lower-case letters.

    `frames` are the unrounded tables that it was written from, by name, and `facts` what it says
    that no table holds: the report as JSON and Parquet is made of them.
    """

    anchor: str
    title: str
    lead: str
    tables: Sequence[TextTable] = ()
    plots: Sequence[LinePlot] = ()
    maps: Sequence[MoneyMap] = ()
    notes: Sequence[str] = ()
    frames: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)


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
        "marks": [
            {
                "name": mark.name,
                "label": mark.label,
                "at": "{:.2f} {:.2f}".format(*place(mark.x, mark.y)),
                "text": f"{mark.x:.3g}, {mark.y:.3g}",
            }
            for mark in plot.marks
        ],
    }


def view_map(money: MoneyMap) -> dict[str, Any]:
    """Return a map's cells: the amount in words, and how far from zero it is, 0-1."""
    highest = max((abs(amount) for row in money.amounts for amount in row), default=0.0) or 1.0
    return {
        "map": money,
        "rows": [
            {
                "name": name,
                "cells": [
                    {
                        "text": _write_dollars(amount),
                        "is_loss": amount < 0,
                        "strength": round((abs(amount) / highest) ** 0.5, 3),
                    }
                    for amount in row
                ],
            }
            for name, row in zip(money.rows, money.amounts, strict=True)
        ],
    }


def _write_dollars(amount: float) -> str:
    size = abs(amount)
    text = f"{size:,.0f}" if size >= 10 else f"{size:.2f}"
    return f"{MINUS}{text}" if amount < 0 and text.strip("0.") else text
