"""Harvested seeds: curated production questions, and which of them may become seeds.

The traces stage writes the file (`tables.HARVESTED_QUESTIONS`); a person or a rubric decided about
each row. Belongs here: the terms of admission and the merging with hand-written seeds. Does not
belong here: curation itself, reading the file (`resources/input_files`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from assets import tables
from assets.seeds.duplicates import mark_crowded, mark_near_duplicates
from serving.hashing import content_hash
from serving.models.protocols import Vectors
from serving.pipeline.questions import drop_invisible, fold_text, normalise_question
from serving.schemas import MAXIMUM_QUESTION_CHARS

PRODUCTION = "prod"
ACCEPTED = "accepted"

Embed = Callable[[Sequence[str]], Vectors]


@dataclass(frozen=True, kw_only=True)
class Harvest:
    """The seeds that came of a harvest, and why the other rows did not become any."""

    seeds: pl.DataFrame
    dropped_by_reason: dict[str, int]


def decide_admission(harvested: pl.DataFrame) -> pl.DataFrame:
    """Return the latest decision about each trace, with a column `reason`; empty means admitted.

    `text` comes back as production asks it, which is what training will see; `written` as the user
    wrote it, invisible characters and spacing aside.

    Decisions are appended and never edited, so a later one takes an earlier one back. A row without
    a trace stands for itself. In this order: `not_accepted`, `undated`, `no_reviewer`,
    `not_production`, `not_trainable`, `no_trace`, `not_askable` (blank, or longer than /ask takes).
    """
    harvested = _normalise_texts(harvested)
    is_blank = {
        name: pl.col(name).fill_null("").str.strip_chars() == ""
        for name in ("reviewer", "source_trace_id", "text")
    }
    length = pl.max_horizontal(pl.col("text", "written").str.len_chars())
    reason = (
        pl.when(pl.col("decision").ne_missing(ACCEPTED))
        .then(pl.lit("not_accepted"))
        .when(pl.col("decided_at").is_null())
        .then(pl.lit("undated"))
        .when(is_blank["reviewer"])
        .then(pl.lit("no_reviewer"))
        .when(pl.col("env").ne_missing(PRODUCTION))
        .then(pl.lit("not_production"))
        .when(~pl.col("trainable").fill_null(value=False))
        .then(pl.lit("not_trainable"))
        .when(is_blank["source_trace_id"])
        .then(pl.lit("no_trace"))
        .when(is_blank["text"] | (length > MAXIMUM_QUESTION_CHARS))
        .then(pl.lit("not_askable"))
        .otherwise(pl.lit(""))
    )
    dated = harvested.with_columns(reason.alias("reason")).sort(
        "decided_at", nulls_last=False, maintain_order=True
    )
    traced = dated.filter(~is_blank["source_trace_id"]).unique(
        "source_trace_id", keep="last", maintain_order=True
    )
    return pl.concat([traced, dated.filter(is_blank["source_trace_id"])])


def harvest_seeds(harvested: pl.DataFrame, *, known_texts: Sequence[str], embed: Embed) -> Harvest:
    """Return the admitted questions that no hand-written seed and no earlier one asks already.

    Args:
        harvested: rows of `tables.HARVESTED_QUESTIONS`.
        known_texts: the hand-written seeds, which always stay.
        embed: gives unit vectors; called only when something is admitted.

    Returns:
        Rows of `tables.SEED_QUESTIONS` in order of decision, and the number of rows dropped by
        reason: those of `decide_admission`, `superseded`, `same_text`, `near_duplicate` and
        `crowded` (a fourth one about the same matter).
    """
    decided = decide_admission(harvested)
    admitted = decided.filter(pl.col("reason") == "")
    dropped = dict(
        decided.filter(pl.col("reason") != "")["reason"].value_counts().sort("reason").iter_rows()
    )
    dropped["superseded"] = harvested.height - decided.height
    fresh = keep_new_texts(admitted, known_texts)
    dropped["same_text"] = admitted.height - fresh.height
    if not fresh.is_empty():
        vectors = embed([*known_texts, *fresh["text"]])
        near = mark_near_duplicates(vectors, known_count=len(known_texts))[len(known_texts) :]
        dropped["near_duplicate"] = int(np.count_nonzero(near))
        crowded = mark_crowded(vectors[len(known_texts) :][~near])
        dropped["crowded"] = int(np.count_nonzero(crowded))
        fresh = fresh.filter(~pl.Series(near)).filter(~pl.Series(crowded))
    return Harvest(
        seeds=_tabulate(fresh),
        dropped_by_reason={reason: count for reason, count in dropped.items() if count},
    )


def keep_new_texts(admitted: pl.DataFrame, known_texts: Sequence[str]) -> pl.DataFrame:
    """Return the rows whose `text` is none of the known ones and no earlier row's.

    Case, spacing and punctuation make no other text.
    """
    known = {fold_text(text) for text in known_texts}
    folded = admitted.with_columns(
        pl.Series("folded", [fold_text(text) for text in admitted["text"]], dtype=pl.String)
    )
    return folded.filter(~pl.col("folded").is_in(known)).unique(
        "folded", keep="first", maintain_order=True
    )


def find_unadmitted(seeds: pl.DataFrame, harvested: pl.DataFrame) -> list[str]:
    """Return the ids of harvested seeds that no standing decision in the file admits."""
    decided = decide_admission(harvested)
    admitted = decided.filter(pl.col("reason") == "")
    planted = seeds.filter(pl.col("source") == "harvested")
    return planted.join(admitted, on=["source_trace_id", "text"], how="anti")[
        "question_id"
    ].to_list()


def list_private_seeds(seeds: pl.DataFrame) -> frozenset[str]:
    """Return the ids of the seeds that are users' words.

    What a run notes of its rows outlives the tables, and so a deletion: of what grew from these
    seeds it notes ids alone.
    """
    return frozenset(seeds.filter(pl.col("source") == "harvested")["question_id"])


def _normalise_texts(rows: pl.DataFrame) -> pl.DataFrame:
    texts = rows["text"].fill_null("").to_list()
    return rows.with_columns(
        pl.Series("text", map(normalise_question, texts), dtype=pl.String),
        pl.Series("written", map(drop_invisible, texts), dtype=pl.String),
    )


def _tabulate(fresh: pl.DataFrame) -> pl.DataFrame:
    """The id is over what was written alone: asked again in another trace, it keeps its split."""
    rows = [
        {
            "question_id": content_hash("harvested", row["written"]),
            "text": row["text"],
            "source": "harvested",
            "source_trace_id": row["source_trace_id"],
            "tags": [],
            "added_at": row["decided_at"],
        }
        for row in fresh.iter_rows(named=True)
    ]
    return pl.DataFrame(rows, schema=tables.SEED_QUESTIONS)
