"""What a person is shown of the answers that teach nothing.

Belongs here: the table of the worst and the chart of scores. Does not belong here: the rule by
which an answer is left out (`selection`).
"""

from collections.abc import Collection, Mapping
from typing import Any

import polars as pl

from assets.charts import BLUE, ORANGE, draw_histogram, embed_png
from assets.labels.judging import HIGHEST_SCORE, LOWEST_SCORE

SHOWN = 20
SHOWN_CHARS = 160


def describe_rejected(rejected: pl.DataFrame, *, private_seeds: Collection[str]) -> str:
    """Return the worst answers as a Markdown table: lowest score first, the unjudged last.

    One answer a seed is shown: what is wrong with one paraphrase is wrong with its siblings.
    Metadata outlives the private tables: what grew from `private_seeds` is told by its id alone.
    """
    if rejected.is_empty():
        return "Nothing was rejected."
    worst = (
        rejected.sort("lowest_score", "question_id", nulls_last=True)
        .with_columns(pl.len().over("seed_id").alias("siblings"))
        .unique("seed_id", keep="first", maintain_order=True)
        .head(SHOWN)
    )
    lines = ["| question | of its seed | answer | reason | judge |", "|---|---|---|---|---|"]
    for row in worst.iter_rows(named=True):
        reason, why = _explain(row)
        cells = (row["question"], str(row["siblings"]), row["completion"], reason, why)
        if row["seed_id"] in private_seeds:
            cells = (row["question_id"], str(row["siblings"]), "", reason, "")
        lines.append("| " + " | ".join(map(_write_cell, cells)) + " |")
    return "\n".join(lines)


def _explain(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the reason with its number, and what the judge says of that axis, if it says so."""
    rationale = row["rationale"] or ""
    if row["held_out_question_id"]:
        cosine = f"cosine {row['held_out_cosine']:.3f}"
        return f"{row['reason']}: {cosine} to {row['held_out_question_id']}", ""
    if not row["lowest_axis"]:
        detail = row["validator_verdict"] if row["reason"] == "invalid" else row["judge_status"]
        return f"{row['reason']}: {detail or 'not judged'}", rationale
    parts = rationale.split("; ")
    about = next((part for part in parts if part.startswith(row["lowest_axis"])), rationale)
    return f"{row['lowest_axis']} {row['lowest_score']}", about


def draw_scores(judged: pl.DataFrame, *, minimum_score: int) -> str:
    """Return, as Markdown with a picture in it, how many answers have which lowest score."""
    lowest = judged.group_by("content_key").agg(pl.col("score").min())["score"].drop_nulls()
    if lowest.is_empty():
        return "No answer was judged."
    picture = draw_histogram(
        {
            "kept": lowest.filter(lowest >= minimum_score).cast(pl.Float64).to_list(),
            "rejected": lowest.filter(lowest < minimum_score).cast(pl.Float64).to_list(),
        },
        colours=(BLUE, ORANGE),
        edges=[score - 0.5 for score in range(LOWEST_SCORE, HIGHEST_SCORE + 2)],
        limit=minimum_score - 0.5,
        title="Answers by the score of their lowest axis",
        axis_label="lowest score of five axes, left of the line: rejected",
    )
    return embed_png(picture, alt="answers by the score of their lowest axis")


def _write_cell(text: str | None) -> str:
    words = " ".join((text or "").split())
    cut = words if len(words) <= SHOWN_CHARS else words[: SHOWN_CHARS - 1] + "…"
    return cut.replace("|", "\\|")
