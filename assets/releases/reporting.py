"""The report's files: HTML for people, JSON for machines, a chart for the asset's metadata.

Belongs here: writing them, atomically, where the home says. Does not belong here: what they say
(`assets/parity/report`).
"""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from assets.parity.comparison import METRICS
from assets.parity.report import ReportContents, render_report, report_json
from serving.files import write_text_atomically

ARM_COLOURS = {"teacher": "#1765a8", "student": "#b8500c", "routed": "#0b7d67"}  # the report's


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """Where the report lies, and its chart as an inline Markdown image."""

    html: Path
    json: Path
    chart_markdown: str


def write_report(folder: Path, contents: ReportContents) -> ReportFiles:
    """Write `parity.html` and `parity.json` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = ReportFiles(
        html=folder / "parity.html",
        json=folder / "parity.json",
        chart_markdown=draw_parity_chart(contents.parity_report),
    )
    write_text_atomically(files.html, render_report(contents))
    write_text_atomically(
        files.json, json.dumps(report_json(contents), ensure_ascii=False, indent=1)
    )
    return files


def draw_parity_chart(report: pl.DataFrame) -> str:
    """Return the ratio metrics of every arm with their intervals, as a Markdown data-URI image."""
    from matplotlib.figure import Figure

    metrics = [metric for metric in METRICS if metric.unit == "ratio"]
    figure = Figure(figsize=(8, 0.55 * len(metrics) + 1), layout="constrained")
    axes = figure.subplots()
    pooled = report.filter((pl.col("kind") == "arm") & (pl.col("slice") == "all"))
    for offset, (arm, colour) in zip((-0.2, 0.0, 0.2), ARM_COLOURS.items(), strict=True):
        rows = {row["metric"]: row for row in pooled.filter(arm=arm).iter_rows(named=True)}
        for position, metric in enumerate(metrics):
            row = rows.get(metric.name)
            if row is None or row["value"] is None:
                continue
            reach = [[row["value"] - row["lower"]], [row["upper"] - row["value"]]]
            axes.errorbar(
                row["value"], position + offset, xerr=reach, fmt="o", color=colour, markersize=5,
                capsize=2, label=arm if position == 0 else None,
            )  # fmt: skip
    axes.set_yticks(range(len(metrics)), [metric.label for metric in metrics])
    axes.set_xlim(-0.02, 1.02)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.15), ncols=3, frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return f"![parity](data:image/png;base64,{base64.b64encode(image.getvalue()).decode()})"
