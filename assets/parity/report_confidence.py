"""The report's section on reliability: how far the student's confidence can be believed.

Belongs here: reading the calibration row and drawing its diagram. Does not belong here: fitting and
measuring (`assets/students/calibration`, `reliability`).
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from assets import tables
from assets.parity.formatting import DASH, TextTable, format_value
from assets.parity.report_sections import Line, LinePlot, ReportSection
from assets.students.calibration import (
    apply_calibration,
    find_raw,
    read_calibrator,
    read_valid_cases,
)
from assets.students.reliability import bin_answers

SHOWN_BINS = 8
MEASURES = (
    ("brier", "Brier score"),
    ("ece", "Expected calibration error"),
    ("aurc", "Area under the risk-coverage curve"),
    ("risk_at_80", "Risk at 80 % coverage"),
)


def describe_reliability(
    calibration: Mapping[str, Any] | None, held_out_answers: pl.DataFrame | None
) -> ReportSection:
    """Return the section; it says so where there is nothing to show."""
    lead = (
        "A confidence of 0.8 should be right four times in five. It is fitted on calibration "
        "questions and measured here on validation questions: right means that the student agrees "
        "with the teacher's label."
    )
    frames = (
        {}
        if calibration is None
        else {"calibration": pl.DataFrame([calibration], schema=tables.CALIBRATION)}
    )
    if calibration is None or calibration["calibrator"] is None:
        note = "No confidence was fitted: the student gave no valid answer to calibrate on."
        return ReportSection(
            anchor="reliability", title="Reliability", lead=lead, notes=(note,), frames=frames
        )
    if not calibration["validation_count"]:
        note = "No valid validation answer to measure on."
        return ReportSection(
            anchor="reliability", title="Reliability", lead=lead, notes=(note,), frames=frames
        )
    plots = () if held_out_answers is None else (_plot_bins(calibration, held_out_answers),)
    return ReportSection(
        anchor="reliability",
        title="Reliability",
        lead=lead,
        tables=(_tabulate_measures(calibration), _tabulate_thresholds(calibration)),
        plots=plots,
        frames=frames,
        notes=(
            f"{calibration['validation_count']} valid validation answers; method "
            f"{calibration['method']}, fitted on {calibration['fit_count']} answers. Thresholds "
            f"were put to the test on {calibration['certify_count']} others.",
        ),
    )


def _tabulate_measures(row: Mapping[str, Any]) -> TextTable:
    def write(name: str) -> str:
        return DASH if row[name] is None else f"{row[name]:.3f}"

    return TextTable(
        columns=("lower is better", "raw", "calibrated"),
        rows=tuple(
            (label, write(f"{name}_before"), write(f"{name}_after")) for name, label in MEASURES
        ),
    )


def _tabulate_thresholds(row: Mapping[str, Any]) -> TextTable:
    rows = []
    for one in row["thresholds"] or ():
        is_certified = one["threshold"] is not None
        rows.append(
            (
                format_value(one["risk_limit_ratio"], "ratio"),
                f"{one['threshold']:.3f}" if is_certified else "none certified",
                format_value(one["coverage_ratio"], "ratio") if is_certified else DASH,
                f"{one['wrong_count']} of {one['accepted_count']}" if is_certified else DASH,
                format_value(one["risk_upper_ratio"], "ratio") if is_certified else DASH,
            )
        )
    columns = ("risk promised", "from confidence", "answers kept", "wrong", "risk at most")
    return TextTable(columns=columns, rows=tuple(rows))


def _plot_bins(row: Mapping[str, Any], held_out_answers: pl.DataFrame) -> LinePlot:
    calibrator = read_calibrator(row)
    cases = read_valid_cases(held_out_answers, "validation")
    confidences = {"raw": find_raw(cases)}
    if calibrator is not None:
        confidences["calibrated"] = apply_calibration(calibrator, cases)
    lines = []
    for label, found in confidences.items():
        bins = bin_answers(found, cases.agrees, bins=min(SHOWN_BINS, max(1, len(cases) // 5)))
        lines.append(Line(label=label, points=[(one.confidence, one.accuracy) for one in bins]))
    return LinePlot(
        title="Confidence against accuracy",
        x_label="confidence",
        y_label="share that agrees",
        lines=lines,
        is_unit=True,
        has_diagonal=True,
    )
