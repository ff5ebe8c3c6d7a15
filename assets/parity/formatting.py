"""How numbers of the parity table are written for a reader: rounding happens here, nowhere else.

Belongs here: values, limits, the text table of a console. Does not belong here: computing a number
(`comparison`), HTML (`report`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from assets.parity.arms import BASELINE, REQUIRED_ARMS
from assets.parity.comparison import find_row
from assets.parity.metrics import METRICS, UNPAIRED, Unit

DASH, MINUS = "\u2013", "\u2212"


def format_value(value: float | None, unit: Unit, *, is_difference: bool = False) -> str:
    """Write a number for a reader; rounding happens here and nowhere else. No value is a dash."""
    if value is None:
        return DASH
    sign = "" if not is_difference and value >= 0 else "+" if value > 0 else MINUS
    size = abs(value)
    if unit == "ratio":
        text = f"{100 * size:.1f}{' pp' if is_difference else ' %'}"
    elif unit == "score":
        text = f"{size:.2f}"
    elif unit == "ms":
        text = f"{size:,.0f} ms" if size >= 100 else f"{size:.1f} ms"
    else:
        text = f"${size:,.2f}" if size >= 0.1 or size == 0 else f"${size:.4f}"
    is_zero = not any(digit in text for digit in "123456789")
    return text if is_zero else f"{sign}{text}"


def format_limits(row: dict[str, Any], unit: Unit) -> str:
    """Write a row's interval, `88.1 to 96.4 %`, or why there is none."""
    if row["value"] is None:
        if row["kind"] == "difference" and row["metric"] == UNPAIRED:
            return "not paired"
        unknown = row["inconclusive_count"]
        return f"inconclusive ({unknown} failed)" if unknown else "no case"
    is_difference = row["kind"] == "difference"
    if is_difference and row["value"] == row["lower"] == row["upper"] == 0:
        return "no case differs"
    ends = [format_value(row[end], unit, is_difference=is_difference) for end in ("lower", "upper")]
    suffix = ends[1][ends[1].find(" ") :] if " " in ends[1] else ""
    return f"{ends[0].removesuffix(suffix)} to {ends[1]}"


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table of strings for a console."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def render_parity_table_text(report: pl.DataFrame, *, slice_name: str = "all") -> TextTable:
    """Return a slice's headline table as text: a metric per row, the arms, then the differences.

    Only the arms that a verdict needs: more do not fit a terminal. The report shows all of them.
    """
    shown = {*REQUIRED_ARMS, *(f"{arm}-{BASELINE}" for arm in REQUIRED_ARMS)}
    columns = [name for name in list_columns(report) if name in shown]
    rows = []
    for metric in METRICS:
        cells = (find_row(report, arm, metric.name, slice_name) for arm in columns)
        rows.append((metric.label, *(_write_cell(cell, metric.unit) for cell in cells)))
    return TextTable(columns=("metric", *columns), rows=tuple(rows))


def list_columns(report: pl.DataFrame) -> Sequence[str]:
    """Return the arms of a report and then its differences, each in the order they were built."""
    kinds = report.filter(pl.col("kind") != "ratio").sort(pl.col("kind") == "difference")
    return list(dict.fromkeys(kinds["arm"].to_list()))


def _write_cell(row: dict[str, Any], unit: Unit) -> str:
    if row["value"] is None:
        return DASH
    value = format_value(row["value"], unit, is_difference=row["kind"] == "difference")
    return f"{value}  [{format_limits(row, unit)}]"
