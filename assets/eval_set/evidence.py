"""The guard's evidence as a reader sees it: pictures and Markdown for asset metadata.

Belongs here: choosing and arranging what is shown. Does not belong here: judging (`guard`),
counting (`recall`), drawing (`assets/charts`).
"""

from collections.abc import Collection

import numpy as np
import polars as pl

from assets.charts import BLUE, ORANGE, RED, draw_heat_map, draw_histogram, write_percent
from assets.eval_set.guard import LEAKAGE_COSINE_LIMIT, NEAR_MISS_COSINE
from assets.eval_set.recall import RECALL_THRESHOLDS

SHOWN_PAIRS = 20
SHOWN_CHARS = 160
HISTOGRAM_BIN = 0.02


def find_near_misses(guarded: pl.DataFrame) -> pl.DataFrame:
    """Return the kept questions at `NEAR_MISS_COSINE` or above, nearest first."""
    return guarded.filter(
        pl.col("verdict") == "kept", pl.col("nearest_cosine") >= NEAR_MISS_COSINE
    ).sort("nearest_cosine", descending=True)


def draw_nearest_cosines(guarded: pl.DataFrame) -> bytes:
    """Return a PNG: the nearest cosine of every question, by what the guard made of it."""
    is_kept, cosine = pl.col("verdict") == "kept", pl.col("nearest_cosine")
    groups = {
        "kept": guarded.filter(is_kept, cosine < NEAR_MISS_COSINE),
        "near miss": guarded.filter(is_kept, cosine >= NEAR_MISS_COSINE),
        "rejected": guarded.filter(~is_kept),
    }
    lowest = min(float(guarded["nearest_cosine"].min() or 0.0), NEAR_MISS_COSINE)  # type: ignore[arg-type]
    first = max(0, int(lowest / HISTOGRAM_BIN + 1e-9))
    return draw_histogram(
        {name: rows["nearest_cosine"].to_list() for name, rows in groups.items()},
        colours=(BLUE, ORANGE, RED),
        edges=np.linspace(first * HISTOGRAM_BIN, 1, round(1 / HISTOGRAM_BIN) - first + 1),
        limit=LEAKAGE_COSINE_LIMIT,
        title=f"{guarded.height:,} training questions and their nearest eval question",
        axis_label="cosine to the nearest eval question",
    )


def render_pairs(
    guarded: pl.DataFrame, eval_embeddings: pl.DataFrame, *, private_seeds: Collection[str]
) -> str:
    """Return the `SHOWN_PAIRS` nearest of these questions as Markdown, each beside its eval case.

    Metadata outlives the private tables: what grew from `private_seeds` is told by its id alone.
    """
    cases = dict(eval_embeddings.select("case_id", "question").iter_rows())
    nearest = guarded.sort("nearest_cosine", descending=True).head(SHOWN_PAIRS)
    lines = [
        "| cosine | verdict | reason | training question | nearest eval question |",
        "|---|---|---|---|---|",
    ]
    for row in nearest.iter_rows(named=True):
        case_id = row["nearest_case_id"]
        shown = "a user's" if row["seed_id"] in private_seeds else row["text"]
        cells = (
            f"{row['nearest_cosine']:.3f}",
            row["verdict"],
            row["reason"],
            f"{row['question_id']}: {shown}",
            f"{case_id}: {cases[case_id]}",
        )
        lines.append(f"| {' | '.join(map(_write_cell, cells))} |")
    return "\n".join(lines)


def draw_recall(recall: pl.DataFrame, rule: str) -> bytes:
    """Return a PNG: the share rejected by kind (rows) and threshold (columns) under one rule."""
    table = recall.filter(rule=rule)
    kinds = table["kind"].unique(maintain_order=True).to_list()
    wide = table.pivot("threshold", index="kind", values="ratio", maintain_order=True)
    what = "the cosine alone" if rule == "cosine" else "the guard (cosine or repeated words)"
    return draw_heat_map(
        wide.drop("kind").to_numpy(),
        rows=[
            f"{kind.replace('_', ' ')} (n = {table.filter(kind=kind)['n'][0]})" for kind in kinds
        ],
        columns=[f"{threshold:.2f}" for threshold in RECALL_THRESHOLDS],
        title=f"Rejected by {what}",
        axis_label=f"cosine at or above which a question is rejected (the limit is "
        f"{LEAKAGE_COSINE_LIMIT})",
    )


def render_recall(recall: pl.DataFrame) -> str:
    """Return the table as Markdown: per cent rejected and its interval, a column per threshold."""
    head = " | ".join(f"≥ {threshold:.2f}" for threshold in RECALL_THRESHOLDS)
    lines = [f"| kind | rule | n | {head} |", "|---" * (3 + len(RECALL_THRESHOLDS)) + "|"]
    for (kind, rule), rows in recall.group_by("kind", "rule", maintain_order=True):
        cells = [
            f"{write_percent(row['ratio'])} ({100 * row['lower']:.0f} to {100 * row['upper']:.0f})"
            for row in rows.sort("threshold").iter_rows(named=True)
        ]
        lines.append(f"| {kind} | {rule} | {rows['n'][0]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _write_cell(text: str) -> str:
    """Write a cell that no line break, bar or markup in a question can leave."""
    shown = " ".join(text.split())
    shown = shown if len(shown) <= SHOWN_CHARS else f"{shown[:SHOWN_CHARS]}…"
    for mark in "\\`*_[]<>|":
        shown = shown.replace(mark, f"\\{mark}")
    return shown
