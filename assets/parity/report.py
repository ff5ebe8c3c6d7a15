"""The report: one self-contained HTML file that says whether the student may replace the teacher.

Belongs here: choosing and arranging what a reader sees; the template beside it holds wording and
look. Does not belong here: computing what is not already in the tables. Answers and questions
come from models and users, so the template escapes everything and runs no script.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jinja2
import polars as pl

from assets.eval_set.guard import NEAR_MISS_COSINE
from assets.parity.comparison import (
    ARMS,
    BASELINE,
    DASH,
    METRICS,
    MINUS,
    SLICES,
    SUPPORTING_METRICS,
    Metric,
    find_row,
    format_limits,
    format_value,
    list_columns,
)

TEMPLATE = Path(__file__).with_name("report.html.j2")
MAXIMUM_WORST_CASES = 8
MAXIMUM_CURVE_POINTS = 240
SHOWN_CHUNK_CHARS = 420
HISTOGRAM_BIN = 0.02

CURVES = (("loss", "loss"), ("hard_loss", "hard"), ("soft_loss", "soft"))


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


@dataclass(frozen=True, kw_only=True)
class ReportContents:
    """Everything a report is made of.

    `verdict` is null before the gate has run, `guarded_questions` and `training_curve` where there
    are none. `access_count` counts the reads of the golden set in its ledger.
    """

    product: str
    recipe: str
    generated_at: str
    parity_report: pl.DataFrame
    arm_answers: pl.DataFrame
    graded_answers: pl.DataFrame
    golden_cases: pl.DataFrame
    chunks: pl.DataFrame
    leakage_cosine_limit: float
    margin_ratio: float
    access_count: int
    guarded_questions: pl.DataFrame | None = None
    training_curve: pl.DataFrame | None = None
    verdict: VerdictLike | None = None
    provenance: Mapping[str, object] = field(default_factory=dict)


def render_report(contents: ReportContents) -> str:
    """Return the report as one HTML document that needs no network and runs no script."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda ratio: f"{100 * ratio:.2f}%"
    environment.filters["words"] = lambda name: str(name).replace("_", " ")
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        contents=contents,
        verdict=contents.verdict,
        gates=_view_gates(contents.verdict),
        arms=[arm for arm in list_columns(contents.parity_report) if arm in ARMS],
        columns=list_columns(contents.parity_report),
        tables={name: _view_table(contents.parity_report, name) for name in SLICES},
        supporting=_view_table(contents.parity_report, "all", SUPPORTING_METRICS),
        tiles=_view_tiles(contents),
        quality_chart=_view_quality_chart(contents.parity_report),
        slice_chart=_view_slice_chart(contents.parity_report),
        difference_chart=_view_difference_chart(contents.parity_report, contents.margin_ratio),
        routing=view_routing(contents.arm_answers),
        guard=view_guard(contents.guarded_questions, contents.leakage_cosine_limit),
        curve=_view_curve(contents.training_curve),
        worst_cases=find_worst_cases(contents),
        metrics=METRICS,
        case_count=contents.golden_cases.height,
    )


def report_json(contents: ReportContents) -> dict[str, Any]:
    """Return the report's facts as JSON values: unrounded, null where there is no evidence."""
    verdict = contents.verdict
    return {
        "product": contents.product,
        "recipe": contents.recipe,
        "generated_at": contents.generated_at,
        "case_count": contents.golden_cases.height,
        "verdict": None
        if verdict is None
        else {
            "verdict": verdict.verdict,
            "statement": verdict.statement,
            "more_cases": verdict.more_cases,
            "losses": list(verdict.losses),
            "gates": [dict(vars(gate)) for gate in verdict.gates],
        },
        "parity": contents.parity_report.to_dicts(),
        "routing": view_routing(contents.arm_answers),
        "guard": view_guard(contents.guarded_questions, contents.leakage_cosine_limit),
        "worst_case_ids": [case["case_id"] for case in find_worst_cases(contents)],
        "golden_set_reads": contents.access_count,
        "provenance": {
            name: value if isinstance(value, str | int | float | None) else str(value)
            for name, value in contents.provenance.items()
        },
    }


def _view_gates(verdict: VerdictLike | None) -> list[dict[str, Any]]:
    gates = () if verdict is None else verdict.gates
    return [
        {
            "name": gate.name,
            "outcome": gate.outcome if gate.is_gating else "NOT GATED",
            "number": _write_gate_number(gate.number, gate.unit),
            "limit": "must be yes"
            if gate.unit == "flag"
            else f"{gate.relation} {_write_gate_number(gate.limit, gate.unit)}",
            "n": gate.n,
            "detail": gate.detail,
        }
        for gate in gates
    ]


def _write_gate_number(number: float | None, unit: str) -> str:
    if number is None:
        return DASH
    if unit == "flag":
        return "yes" if number else "no"
    if unit in {"ratio", "points"}:
        return format_value(number, "ratio", is_difference=unit == "points")
    if unit == "ms":
        return format_value(number, "ms")
    return f"{number:.3f}" if unit == "times" else f"{number:.0f}"


def _view_table(
    report: pl.DataFrame, slice_name: str, metrics: Sequence[Metric] = METRICS
) -> list[dict[str, Any]]:
    return [
        {
            "metric": metric,
            "cells": [
                _view_cell(find_row(report, column, metric.name, slice_name), metric)
                for column in list_columns(report)
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
        "column": row["arm"],
        "value": format_value(row["value"], metric.unit, is_difference=is_difference),
        "limits": format_limits(row, metric.unit),
        "n": row["n"],
        "inconclusive": row["inconclusive_count"] if row["value"] is not None else 0,
        "mcnemar_p": row["mcnemar_p"],
        "tone": tone,
    }


def _view_tiles(contents: ReportContents) -> list[dict[str, str]]:
    """Return the four numbers a reader asks for first."""
    report, candidate = contents.parity_report, "routed"
    if candidate not in list_columns(report):
        return []
    ratio = find_row(report, f"{candidate}/{BASELINE}", "usd_per_1k")
    tiles = []
    for name, title in (("exact_match", "Exact match"), ("p50_latency_ms", "Median latency")):
        metric = next(metric for metric in METRICS if metric.name == name)
        values = [find_row(report, arm, name)["value"] for arm in (candidate, BASELINE)]
        shown = [format_value(value, metric.unit) for value in values]
        tiles.append({"title": title, "value": shown[0], "note": f"{BASELINE} {shown[1]}"})
    saved = DASH if ratio["value"] is None else format_value(ratio["value"], "ratio")
    costs = [find_row(report, arm, "usd_per_1k")["value"] for arm in (candidate, BASELINE)]
    note = " against ".join(format_value(cost, "usd") for cost in costs)
    tiles.append({"title": "Cost, share of teacher's", "value": saved, "note": f"{note} per 1,000"})
    share = next((r["ratio"] for r in view_routing(contents.arm_answers)["served_by"]
                  if r["name"] == "student"), 0.0)  # fmt: skip
    tiles.append({"title": "Served by the student", "value": format_value(share, "ratio"),
                  "note": f"of {contents.golden_cases.height} cases, routed"})  # fmt: skip
    return tiles


def _view_quality_chart(report: pl.DataFrame) -> dict[str, Any]:
    """Return the ratio metrics over all cases, a lane of dot and interval per arm."""
    ratios = [metric for metric in METRICS if metric.unit == "ratio"]
    return _view_ratios([(metric.label, metric.name, "all") for metric in ratios], report)


def _view_slice_chart(report: pl.DataFrame) -> dict[str, Any]:
    """Return exact match by slice, a lane per arm."""
    return _view_ratios([(name.replace("_", " "), "exact_match", name) for name in SLICES], report)


def _view_ratios(wanted: Sequence[tuple[str, str, str]], report: pl.DataFrame) -> dict[str, Any]:
    """Place ratios on an axis that ends at 1 and starts just below the lowest limit."""
    arms = [column for column in list_columns(report) if column in ARMS]
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


def _view_difference_chart(report: pl.DataFrame, margin_ratio: float) -> dict[str, Any]:
    """Return exact match against the teacher by slice, on an axis symmetric about zero."""
    columns = [column for column in list_columns(report) if column.endswith(f"-{BASELINE}")]
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
) -> dict[str, Any]:
    """Map values to 0-1 along the axis the ticks span, and write what a screen reader says."""

    def scale(value: float | None) -> float | None:
        return None if value is None else (value - ticks[0]) / (ticks[-1] - ticks[0])

    def view(row: dict[str, Any]) -> dict[str, Any]:
        is_difference = row["kind"] == "difference"
        value = format_value(row["value"], "ratio", is_difference=is_difference)
        return {
            "arm": row["arm"].removesuffix(f"-{BASELINE}"),
            "n": row["n"],
            "text": f"{value} ({format_limits(row, 'ratio')})",
            **{end: scale(row[end]) for end in ("value", "lower", "upper")},
        }

    return {
        "ticks": [{"at": scale(t), "label": label} for t, label in zip(ticks, labels, strict=True)],
        "groups": [
            {"label": label, "lanes": [view(row) for row in rows]} for label, rows in groups
        ],
        "zero": None,
        "margin": None,
    }


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


def view_guard(guarded: pl.DataFrame | None, limit: float) -> dict[str, Any] | None:
    """Return the histogram of nearest cosines and the verdict counts; null without questions."""
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
    kept = guarded.filter(pl.col("verdict") == "kept")["nearest_cosine"].max()
    return {
        "limit": limit,
        "bins": bins,
        "bin_width": HISTOGRAM_BIN,
        "maximum_count": max(counts.values(), default=0),
        "verdicts": verdicts,
        "highest_kept": float(kept) if isinstance(kept, int | float) else None,
        "near_miss_count": guarded.filter(pl.col("nearest_cosine")
                                          .is_between(NEAR_MISS_COSINE, limit, "left")).height,
        "near_miss": NEAR_MISS_COSINE,
        "question_count": guarded.height,
    }  # fmt: skip


def _view_curve(curve: pl.DataFrame | None) -> dict[str, Any] | None:
    """Return polylines in a 0-100 box, thinned to what an eye can tell apart."""
    if curve is None or curve.is_empty():
        return None
    thinned = curve.sort("step").gather_every(math.ceil(curve.height / MAXIMUM_CURVE_POINTS))
    names = [(column, label) for column, label in CURVES if column in curve.columns]
    values = [v for name, _ in names for v in thinned[name].to_list() if _is_number(v)]
    if not values:
        return None
    top, last = max(values) or 1.0, max(float(curve["step"].to_list()[-1]), 1.0)
    lines = []
    for column, label in names:
        pairs = zip(thinned["step"].to_list(), thinned[column].to_list(), strict=True)
        points = [f"{100 * s / last:.2f},{100 - 100 * v / top:.2f}" for s, v in pairs
                  if _is_number(v)]  # fmt: skip
        if points:
            lines.append({"label": label, "points": " ".join(points)})
    return {"lines": lines, "maximum": top, "last_step": int(last)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def find_worst_cases(contents: ReportContents) -> list[dict[str, Any]]:
    """Return the cases the student loses to the teacher, worst first, with answers and chunks."""
    grades: dict[str, dict[str, dict[str, tuple[float | None, str]]]] = {}
    for row in contents.graded_answers.iter_rows(named=True):
        if row["metric"].startswith("rubric"):
            continue
        by_arm = grades.setdefault(row["case_id"], {}).setdefault(row["arm"], {})
        by_arm.setdefault(row["metric"], (row["value"], row["detail"]))
    gaps = {case_id: _measure_gap(of_case) for case_id, of_case in grades.items()}
    worst = sorted((c for c, gap in gaps.items() if any(g > 0 for g in gap)),
                   key=lambda c: (tuple(-g for g in gaps[c]), c))  # fmt: skip
    answers = {
        (row["arm"], row["case_id"]): row
        for row in contents.arm_answers.sort("repeat", descending=True).iter_rows(named=True)
    }
    cases = {row["case_id"]: row for row in contents.golden_cases.iter_rows(named=True)}
    chunks = {row["chunk_id"]: row for row in contents.chunks.iter_rows(named=True)}
    return [
        {
            **{name: cases[case_id][name] for name in ("case_id", "bucket", "question")},
            "should_refuse": cases[case_id]["should_refuse"],
            "must_include": list(cases[case_id]["must_include"] or ()),
            "sides": [
                _view_side(arm, answers.get((arm, case_id)), grades[case_id].get(arm, {}), chunks)
                for arm in (BASELINE, "student")
            ],
        }
        for case_id in worst[:MAXIMUM_WORST_CASES]
    ]


def _measure_gap(
    of_case: Mapping[str, Mapping[str, tuple[float | None, str]]],
) -> tuple[float, ...]:
    """Return teacher minus student on the metrics that decide, 0 where either said nothing."""
    gaps = []
    for metric in ("exact_match", "groundedness", "cite_correctness"):
        pair = [of_case.get(arm, {}).get(metric, (None, ""))[0] for arm in (BASELINE, "student")]
        gaps.append(0.0 if pair[0] is None or pair[1] is None else pair[0] - pair[1])
    return tuple(gaps)


def _view_side(
    arm: str,
    answer: dict[str, Any] | None,
    grades: Mapping[str, tuple[float | None, str]],
    chunks: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    cited = [] if answer is None else [*dict.fromkeys(answer["citations"] or ())]
    return {
        "arm": arm,
        "answer": (answer or {}).get("answer") or "",
        "error": (answer or {}).get("error"),
        "refused": bool((answer or {}).get("refused")),
        "grades": [
            {"name": name, "value": format_value(grades[name][0], "ratio")}
            for name in ("exact_match", "groundedness", "cite_correctness")
            if name in grades
        ],
        "details": list(dict.fromkeys(g[1] for g in grades.values() if g[1] and g[0] is not None)),
        "chunks": [_view_chunk(chunk_id, chunks.get(chunk_id)) for chunk_id in cited],
    }


def _view_chunk(chunk_id: str, chunk: dict[str, Any] | None) -> dict[str, str]:
    text = "" if chunk is None else chunk["text"]
    shortened = text if len(text) <= SHOWN_CHUNK_CHARS else text[:SHOWN_CHUNK_CHARS] + "…"
    path = " > ".join(chunk["heading_path"] or ()) if chunk else "not in this corpus"
    return {"chunk_id": chunk_id, "heading": path, "text": shortened}
