"""The report's section on soft targets: how far they cover the answers, and what they leave out.

Belongs here: showing the numbers of each data set. Does not belong here: measuring
(`assets/labels/soft_targets_by_set`).
"""

import numpy as np
import polars as pl

from assets import tables
from assets.labels.soft_targets_by_set import list_tokens_by_set, measure_sets, name_sets
from assets.parity.formatting import DASH, TextTable, format_value
from assets.parity.report_sections import Line, LinePlot, ReportSection
from serving.home import Home

LEAD = (
    "A recipe with `alpha` below 1 learns these beside the labels; one with `alpha` 1 learns the "
    "labels alone. What lies outside the stored tokens is one bucket, the tail: the more of it, "
    "the less a soft target says."
)
PLOTTED_POINTS = 41
NEEDED = ("labels/teacher_logprobs", "labels/labelled_examples", "seeds/seed_questions")


def read_targets_section(home: Home) -> ReportSection | None:
    """Return the section, or None where a table is missing, of another version, or empty."""
    frames = []
    for name in NEEDED:
        path, schema = home.table(name), tables.BY_KEY[tuple(name.split("/"))]
        found = pl.read_parquet(path) if path.exists() else schema.to_frame()
        if found.schema != schema or found.is_empty():
            return None
        frames.append(found)
    logprobs, examples, seeds = frames
    return describe_targets(logprobs, name_sets(examples, seeds))


def describe_targets(teacher_logprobs: pl.DataFrame, sets: pl.DataFrame) -> ReportSection:
    """Return the section of a table of soft targets; `sets` has the data set of each example."""
    measured = measure_sets(teacher_logprobs, sets)
    has_any = measured["soft_token_ratio"].sum() > 0
    suppliers = sorted(set(teacher_logprobs.filter(pl.col("source") != "none")["scorer_id"]))
    note = f"From {', '.join(suppliers)}." if has_any else "No answer token has a soft target."
    return ReportSection(
        anchor="targets",
        title="Soft targets",
        lead=LEAD,
        tables=(_tabulate(measured),),
        plots=_plot(teacher_logprobs, sets, measured["data_set"].to_list()) if has_any else (),
        notes=(note,),
        frames={"soft_targets_by_set": measured},
    )


def _tabulate(measured: pl.DataFrame) -> TextTable:
    rows = []
    for row in measured.iter_rows(named=True):
        tails = [row[f"{name}_tail_mass"] for name in ("mean", "median", "p90")]
        rows.append(
            (
                row["data_set"],
                f"{row['asked_answer_count']:,} of {row['answer_count']:,}",
                f"{row['token_count']:,}",
                format_value(row["soft_token_ratio"], "ratio"),
                format_value(row["asked_soft_token_ratio"], "ratio"),
                *(DASH if tail is None else f"{tail:.3f}" for tail in tails),
            )
        )
    columns = (
        "data set", "answers scored", "answer tokens", "soft, of all", "soft, of scored",
        "tail mass, mean", "median", "90th percentile",
    )  # fmt: skip
    return TextTable(columns=columns, rows=tuple(rows))


def _plot(frame: pl.DataFrame, sets: pl.DataFrame, names: list[str]) -> tuple[LinePlot, LinePlot]:
    """Return how many answers are covered how far, and how many soft tokens have which tail."""
    tokens = list_tokens_by_set(frame, sets)
    coverage = tokens.group_by("data_set", "example_id").agg(pl.col("soft_ok").mean())
    soft = tokens.filter("soft_ok")
    covered = {name: coverage.filter(data_set=name)["soft_ok"].to_numpy() for name in names}
    tails = {name: soft.filter(data_set=name)["tail_mass"].to_numpy() for name in names}
    places = np.linspace(0, 1, PLOTTED_POINTS)
    return (
        LinePlot(
            title="Coverage of soft targets",
            x_label="share of an answer's tokens with a soft target, at least",
            y_label="share of answers",
            lines=[
                Line(label=name, points=[(float(x), float((values >= x).mean())) for x in places])
                for name, values in covered.items()
            ],
            is_unit=True,
        ),
        LinePlot(
            title="Tail mass outside the top K",
            x_label="tail mass, at most",
            y_label="share of soft tokens",
            lines=[
                Line(label=name, points=[(float(x), float((values <= x).mean())) for x in places])
                for name, values in tails.items()
                if len(values)
            ],
            is_unit=True,
        ),
    )
