"""The report's files: HTML for people, JSON and Parquet for machines, a chart for the metadata.

Belongs here: writing them, atomically, where the home says. Does not belong here: what they say
(`assets/parity/report`).
"""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from assets.parity.arms import label_arm
from assets.parity.metrics import METRICS
from assets.parity.report import ReportContents, render_report
from assets.parity.report_facts import list_tables, report_json
from assets.parity.report_tables import list_arms
from serving.files import atomic_path, write_text_atomically

ARM_COLOURS = {
    "teacher": "#1765a8", "teacher_again": "#6f9fca", "base": "#7b756b", "few_shot": "#7d5ba6",
    "student": "#b8500c", "routed": "#0b7d67", "routed_90_10": "#2c9c86",
    "routed_80_20": "#57b09e", "routed_60_40": "#8ac7ba",
}  # fmt: skip
"""The report's."""
RETIRED_COLOUR = "#7b756b"  # an arm of an older run that exists no more


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """Where the report lies, and its chart as an inline Markdown image."""

    html: Path
    json: Path
    parquet: Path
    tables: Path
    chart_markdown: str


def write_report(folder: Path, contents: ReportContents) -> ReportFiles:
    """Write `parity.html`, `parity.json`, `parity.parquet` and `tables/` into `folder`.

    `tables/` holds those of every section; what an earlier report had and this one has not is gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = ReportFiles(
        html=folder / "parity.html",
        json=folder / "parity.json",
        parquet=folder / "parity.parquet",
        tables=folder / "tables",
        chart_markdown=draw_parity_chart(contents.parity_report),
    )
    write_text_atomically(files.html, render_report(contents))
    write_text_atomically(
        files.json, json.dumps(report_json(contents), ensure_ascii=False, indent=1)
    )
    write_table_atomically(contents.parity_report, files.parquet)
    files.tables.mkdir(exist_ok=True)
    tables = list_tables(contents)
    for name, frame in tables.items():
        write_table_atomically(frame, files.tables / f"{name}.parquet")
    for path in files.tables.glob("*.parquet"):
        if path.stem not in tables:
            path.unlink()
    return files


def write_table_atomically(frame: pl.DataFrame, path: Path) -> None:
    """Write a table that a reader sees whole or not at all."""
    with atomic_path(path) as temporary:
        frame.write_parquet(temporary, compression="zstd")


def draw_parity_chart(report: pl.DataFrame) -> str:
    """Return the ratio metrics of every arm with their intervals, as a Markdown data-URI image."""
    from matplotlib.figure import Figure

    metrics = [metric for metric in METRICS if metric.unit == "ratio"]
    arms = list_arms(report)
    figure = Figure(figsize=(8, 0.14 * len(arms) * len(metrics) + 1.6), layout="constrained")
    axes = figure.subplots()
    pooled = report.filter((pl.col("kind") == "arm") & (pl.col("slice") == "all"))
    for place, arm in enumerate(arms):
        offset = 0.8 * ((place + 0.5) / len(arms) - 0.5)
        rows = {row["metric"]: row for row in pooled.filter(arm=arm).iter_rows(named=True)}
        for position, metric in enumerate(metrics):
            row = rows.get(metric.name)
            if row is None or row["value"] is None:
                continue
            reach = [[row["value"] - row["lower"]], [row["upper"] - row["value"]]]
            axes.errorbar(
                row["value"], position + offset, xerr=reach, fmt="o", markersize=4, capsize=2,
                color=ARM_COLOURS.get(arm, RETIRED_COLOUR),
                label=label_arm(arm) if position == 0 else None,
            )  # fmt: skip
    axes.set_yticks(range(len(metrics)), [metric.label for metric in metrics])
    axes.set_xlim(-0.02, 1.02)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=min(5, len(arms)), frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return f"![parity](data:image/png;base64,{base64.b64encode(image.getvalue()).decode()})"
