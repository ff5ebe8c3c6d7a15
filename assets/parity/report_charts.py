"""The report's charts as numbers between 0 and 1, which the template draws.

Belongs here: scales, ticks, lanes, bins, what a screen reader says. Does not belong here: computing
what is not in a table already, HTML and colours (`report.html.j2`).
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import polars as pl

from assets.eval_set.guard import NEAR_MISS_COSINE
from assets.parity.arms import BASELINE, label_arm
from assets.parity.comparison import find_row
from assets.parity.formatting import MINUS, format_limits, format_value
from assets.parity.metrics import METRICS, SLICES, Unit
from assets.parity.report_sections import Line, LinePlot
from assets.parity.report_tables import list_arms, list_differences

MAXIMUM_CURVE_POINTS = 240
HISTOGRAM_BIN = 0.02

CURVES = (("loss", "loss"), ("hard_loss", "hard"), ("soft_loss", "soft"))
SPENDING = ("p50_latency_ms", "p95_latency_ms", "usd_per_1k")


def view_quality_chart(report: pl.DataFrame) -> dict[str, Any]:
    """Return the ratio metrics over all cases, a lane of dot and interval per arm."""
    ratios = [metric for metric in METRICS if metric.unit == "ratio"]
    return _view_ratios([(metric.label, metric.name, "all") for metric in ratios], report)


def view_slice_chart(report: pl.DataFrame) -> dict[str, Any]:
    """Return exact match by slice, a lane per arm."""
    return _view_ratios([(name.replace("_", " "), "exact_match", name) for name in SLICES], report)


def _view_ratios(wanted: Sequence[tuple[str, str, str]], report: pl.DataFrame) -> dict[str, Any]:
    """Place ratios on an axis that ends at 1 and starts just below the lowest limit."""
    arms = list_arms(report)
    groups = [
        (label, [find_row(report, arm, metric, slice_name) for arm in arms])
        for label, metric, slice_name in wanted
    ]
    lowest = min((row["lower"] for _, rows in groups for row in rows if row["n"]), default=0.0)
    step = 0.05 if lowest >= 0.75 else 0.1 if lowest >= 0.5 else 0.25
    first = math.floor(lowest / step + 1e-9)
    ticks = [step * i for i in range(first, round(1 / step) + 1)]
    labels = [f"{100 * tick:.0f}" for tick in ticks[:-1]]
    return _place(groups, ticks, [*labels, "100 %"])


def view_difference_chart(report: pl.DataFrame, margin_ratio: float) -> dict[str, Any]:
    """Return exact match against the teacher by slice, on an axis symmetric about zero."""
    columns = list_differences(report)
    groups = [
        (
            name.replace("_", " "),
            [find_row(report, column, "exact_match", name) for column in columns],
        )
        for name in SLICES
    ]
    limits = [
        abs(row[end])
        for _, rows in groups
        for row in rows
        if row["n"]
        for end in ("lower", "upper")
    ]
    bound = min(1.0, math.ceil(10 * max([*limits, 1.2 * margin_ratio])) / 10)
    ticks = [-bound, -bound / 2, 0.0, bound / 2, bound]
    labels = [f"{'+' if t > 0 else MINUS if t < 0 else ''}{abs(100 * t):.0f}" for t in ticks]
    chart = _place(groups, ticks, [*labels[:-1], f"{labels[-1]} pp"])
    return chart | {"zero": 0.5, "margin": (bound - margin_ratio) / (2 * bound)}


def _place(
    groups: Sequence[tuple[str, Sequence[dict[str, Any]]]],
    ticks: Sequence[float],
    labels: Sequence[str],
    unit: Unit = "ratio",
) -> dict[str, Any]:
    """Map values to 0-1 along the axis the ticks span, and write what a screen reader says."""

    def scale(value: float | None) -> float | None:
        return None if value is None else (value - ticks[0]) / (ticks[-1] - ticks[0])

    def view(row: dict[str, Any]) -> dict[str, Any]:
        is_difference = row["kind"] == "difference"
        value = format_value(row["value"], unit, is_difference=is_difference)
        return {
            "arm": row["arm"].removesuffix(f"-{BASELINE}"),
            "n": row["n"],
            "text": f"{value} ({format_limits(row, unit)})",
            **{end: scale(row[end]) for end in ("value", "lower", "upper")},
        }

    return {
        "title": None,
        "ticks": [{"at": scale(t), "label": label} for t, label in zip(ticks, labels, strict=True)],
        "groups": [
            {"label": label, "lanes": [view(row) for row in rows]} for label, rows in groups
        ],
        "zero": None,
        "margin": None,
    }


def view_spending_charts(report: pl.DataFrame) -> list[dict[str, Any]]:
    """Return latency and cost, a chart each: their units share no axis."""
    charts = []
    for metric in (metric for metric in METRICS if metric.name in SPENDING):
        rows = [find_row(report, arm, metric.name) for arm in list_arms(report)]
        title = f"{metric.label}, ms" if metric.unit == "ms" else metric.label
        highest = max((row["upper"] for row in rows if row["value"] is not None), default=0.0)
        if not highest:
            charts.append({"title": title, "groups": []})
            continue
        ticks = _choose_ticks(highest)
        labels = ["0", *(_shorten(tick, metric.unit) for tick in ticks[1:])]
        groups = [(label_arm(row["arm"]), [row]) for row in rows]
        charts.append(_place(groups, ticks, labels, metric.unit) | {"title": title})
    return charts


def _shorten(tick: float, unit: Unit) -> str:
    """Return a tick without its unit, which stands in the title: narrow axes have no room."""
    return f"{tick:,.10g}" if unit == "ms" else format_value(tick, unit)


def _choose_ticks(highest: float) -> list[float]:
    """Return round numbers from 0 to just above the highest."""
    from matplotlib.ticker import MaxNLocator

    return [float(t) for t in MaxNLocator(nbins=3, min_n_ticks=2).tick_values(0.0, highest)]


def view_routing(arm_answers: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Return who served the routed arm's questions and why, as counts and shares."""
    routed = arm_answers.filter(pl.col("error").is_null(), arm="routed", repeat=0)
    return {
        column: [
            {"name": row[column], "count": row["len"], "ratio": row["len"] / routed.height}
            for row in routed.group_by(column).len().sort("len", column, descending=[True, False])
            .iter_rows(named=True)
        ]
        for column in ("served_by", "route_reason")
    }  # fmt: skip


def view_guard(
    guarded: pl.DataFrame | None, limit: float, trained_question_ids: Collection[str] = ()
) -> dict[str, Any] | None:
    """Return the histogram of nearest cosines and the verdict counts; null without questions.

    `trained_question_ids` are of the questions that the student learned from.
    """
    if guarded is None or guarded.is_empty():
        return None
    cosines = guarded["nearest_cosine"].drop_nulls().clip(0, 1)
    edges = [round(HISTOGRAM_BIN * i, 4) for i in range(round(1 / HISTOGRAM_BIN))]
    codes = (cosines / HISTOGRAM_BIN + 1e-9).floor().cast(pl.Int32).clip(0, len(edges) - 1)
    counts = dict(codes.value_counts().iter_rows())
    verdicts = dict(guarded["verdict"].value_counts().sort("verdict").iter_rows())
    first = min(counts, default=0)
    bins = [
        {"start": edge, "count": counts.get(i, 0)} for i, edge in enumerate(edges) if i >= first
    ]
    kept = guarded.filter(pl.col("verdict") == "kept")
    taught = guarded.filter(pl.col("question_id").is_in(list(trained_question_ids)))
    return {
        "limit": limit,
        "bins": bins,
        "bin_width": HISTOGRAM_BIN,
        "maximum_count": max(counts.values(), default=0),
        "verdicts": verdicts,
        "highest_kept": _find_highest(kept),
        "trained_count": taught.height,
        "highest_trained": _find_highest(taught),
        "near_miss_count": guarded.filter(pl.col("nearest_cosine")
                                          .is_between(NEAR_MISS_COSINE, limit, "left")).height,
        "near_miss": NEAR_MISS_COSINE,
        "question_count": guarded.height,
    }  # fmt: skip


def _find_highest(guarded: pl.DataFrame) -> float | None:
    highest = guarded["nearest_cosine"].max()
    return float(highest) if isinstance(highest, int | float) else None


def plot_training(curve: pl.DataFrame | None) -> LinePlot | None:
    """Return the loss by step, thinned to what an eye can tell apart; null without a curve."""
    if curve is None or curve.is_empty():
        return None
    thinned = curve.sort("step").gather_every(math.ceil(curve.height / MAXIMUM_CURVE_POINTS))
    lines = []
    for column, label in CURVES:
        if column not in thinned.columns:
            continue
        pairs = zip(thinned["step"].to_list(), thinned[column].to_list(), strict=True)
        points = tuple((float(step), float(loss)) for step, loss in pairs if _is_number(loss))
        if points:
            lines.append(Line(label=label, points=points))
    if not lines:
        return None
    return LinePlot(title="Loss by step", x_label="step", y_label="nats", lines=tuple(lines))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
