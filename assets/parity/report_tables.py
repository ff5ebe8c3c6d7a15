"""The report's tables: gates, arms by metric, distances to the teacher, the numbers read first.

Belongs here: which numbers stand in which cell, written for a reader. Does not belong here: charts
(`report_charts`), HTML (`report`).
"""

from collections.abc import Sequence
from typing import Any, Protocol

import polars as pl

from assets.parity.arms import BASELINE, CANDIDATE
from assets.parity.comparison import find_row
from assets.parity.formatting import DASH, format_limits, format_value
from assets.parity.metrics import METRICS, Metric
from assets.parity.suites import NOT_MEASURED


class GateLike(Protocol):
    """A gate's result as stage `releases` states it; this stage comes before and only shows it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def outcome(self) -> str: ...  # noqa: D102
    @property
    def number(self) -> float | None: ...  # noqa: D102
    @property
    def limit(self) -> float | None: ...  # noqa: D102
    @property
    def relation(self) -> str: ...  # noqa: D102
    @property
    def unit(self) -> str: ...  # noqa: D102
    @property
    def n(self) -> int: ...  # noqa: D102
    @property
    def detail(self) -> str: ...  # noqa: D102
    @property
    def is_gating(self) -> bool: ...  # noqa: D102


class ComparedGateLike(Protocol):
    """A gate's number, now and in the release in service."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def unit(self) -> str: ...  # noqa: D102
    @property
    def number(self) -> float | None: ...  # noqa: D102
    @property
    def parent_number(self) -> float | None: ...  # noqa: D102


class ParentLike(Protocol):
    """How this verdict stands to the release in service."""

    @property
    def statement(self) -> str: ...  # noqa: D102
    @property
    def parent(self) -> str | None: ...  # noqa: D102
    @property
    def gates(self) -> Sequence[ComparedGateLike]: ...  # noqa: D102


class VerdictLike(Protocol):
    """The verdict as stage `releases` states it."""

    @property
    def verdict(self) -> str: ...  # noqa: D102
    @property
    def gates(self) -> Sequence[GateLike]: ...  # noqa: D102
    @property
    def statement(self) -> str: ...  # noqa: D102
    @property
    def more_cases(self) -> int | None: ...  # noqa: D102
    @property
    def losses(self) -> Sequence[str]: ...  # noqa: D102


def view_gates(verdict: VerdictLike | None) -> list[dict[str, Any]]:
    """Return a row per gate: its number and limit as a reader reads them."""
    gates = () if verdict is None else verdict.gates
    return [
        {
            "name": gate.name,
            "outcome": gate.outcome if gate.is_gating else "NOT GATED",
            "number": write_gate_number(gate.number, gate.unit),
            "limit": "must be yes"
            if gate.unit == "flag"
            else f"{gate.relation} {write_gate_number(gate.limit, gate.unit)}",
            "n": gate.n,
            "detail": gate.detail,
            "is_measured": NOT_MEASURED not in gate.detail,
        }
        for gate in gates
    ]


def list_reasons(verdict: VerdictLike | None) -> list[dict[str, Any]]:
    """Return the gates that explain the verdict: what failed, else what is open; of measured ones.

    Suites that nobody measured are named in the verdict's statement, and have no number to show.
    """
    rows = [row for row in view_gates(verdict) if row["is_measured"]]
    failed = [row for row in rows if row["outcome"] == "FAIL"]
    return failed or [row for row in rows if row["outcome"] == "INCONCLUSIVE"]


def write_gate_number(number: float | None, unit: str) -> str:
    """Return a gate's number in its unit."""
    if number is None:
        return DASH
    if unit == "flag":
        return "yes" if number else "no"
    if unit in {"ratio", "points"}:
        return format_value(number, "ratio", is_difference=unit == "points")
    if unit == "ms":
        return format_value(number, "ms")
    return f"{number:.3f}" if unit == "times" else f"{number:.0f}"


def view_parent(parent: ParentLike | None) -> dict[str, Any] | None:
    """Return how the gates stood in the release in service; null where nobody looked."""
    if parent is None:
        return None
    return {
        "statement": parent.statement,
        "parent": parent.parent,
        "gates": [
            {
                "name": gate.name,
                "number": write_gate_number(gate.number, gate.unit),
                "parent_number": write_gate_number(gate.parent_number, gate.unit),
            }
            for gate in parent.gates
        ],
    }


def list_arms(report: pl.DataFrame) -> list[str]:
    """Return the arms of a report, in its order."""
    arms = report.filter(pl.col("kind") == "arm")["arm"].to_list()
    return list(dict.fromkeys(arms))


def list_differences(report: pl.DataFrame) -> list[str]:
    """Return the differences of a report, in its order."""
    return [f"{arm}-{BASELINE}" for arm in list_arms(report) if arm != BASELINE]


def view_table(
    report: pl.DataFrame,
    columns: Sequence[str],
    slice_name: str,
    metrics: Sequence[Metric] = METRICS,
) -> list[dict[str, Any]]:
    """Return a row per metric, a cell per arm or difference."""
    return [
        {
            "metric": metric,
            "cells": [
                _view_cell(find_row(report, column, metric.name, slice_name), metric)
                for column in columns
            ],
        }
        for metric in metrics
    ]


def _view_cell(row: dict[str, Any], metric: Metric) -> dict[str, Any]:
    is_difference = row["kind"] == "difference"
    sides = (row["lower"], row["upper"]) if row["value"] is not None else (0.0, 0.0)
    is_up, is_down = is_difference and sides[0] > 0, is_difference and sides[1] < 0
    tone = "better" if is_up or is_down else ""
    if (is_up and not metric.is_higher_better) or (is_down and metric.is_higher_better):
        tone = "worse"
    return {
        "column": row["arm"].removesuffix(f"-{BASELINE}"),
        "value": format_value(row["value"], metric.unit, is_difference=is_difference),
        "limits": format_limits(row, metric.unit),
        "n": row["n"],
        "inconclusive": row["inconclusive_count"] if row["value"] is not None else 0,
        "mcnemar_p": row["mcnemar_p"],
        "tone": tone,
    }


def view_tiles(
    report: pl.DataFrame, routing: dict[str, list[dict[str, Any]]], case_count: int
) -> list[dict[str, str]]:
    """Return the four numbers a reader asks for first."""
    tiles = []
    for name, title in (("exact_match", "Exact match"), ("p50_latency_ms", "Median latency")):
        metric = next(metric for metric in METRICS if metric.name == name)
        values = [find_row(report, arm, name)["value"] for arm in (CANDIDATE, BASELINE)]
        shown = [format_value(value, metric.unit) for value in values]
        tiles.append({"title": title, "value": shown[0], "note": f"{BASELINE} {shown[1]}"})
    ratio = find_row(report, f"{CANDIDATE}/{BASELINE}", "usd_per_1k")
    saved = DASH if ratio["value"] is None else format_value(ratio["value"], "ratio")
    costs = [find_row(report, arm, "usd_per_1k")["value"] for arm in (CANDIDATE, BASELINE)]
    note = " against ".join(format_value(cost, "usd") for cost in costs)
    tiles.append({"title": "Cost, share of teacher's", "value": saved, "note": f"{note} per 1,000"})
    served = [row["ratio"] for row in routing["served_by"] if row["name"] == "student"]
    share = DASH if not routing["served_by"] else format_value(sum(served), "ratio")
    note = f"of {case_count} cases, routed"
    return [*tiles, {"title": "Served by the student", "value": share, "note": note}]
