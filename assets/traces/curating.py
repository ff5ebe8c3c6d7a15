"""What a reviewer works through: candidates for training.

Belongs here: who is a candidate and in which order. Does not belong here: decisions (`deciding`),
printing (`orchestration/curate_cli`).
"""

import polars as pl

from assets import tables
from assets.traces.admission import (
    ADMITTED,
    KEY_LIMIT,
    NOT_ACCEPTED,
    TOO_FEW_KEYS,
    admit_decisions,
)
from assets.traces.deciding import ANSWER_ALONE, is_asked


def find_candidates(records: pl.LazyFrame, decisions: pl.DataFrame) -> pl.DataFrame:
    """Return the traces worth a decision, hardest for the student first, each question once.

    A candidate is answered production traffic that may be trained on, was not escalated, carries no
    sign of injection and asks what nobody has settled yet (`find_settled`). First what fell back to
    the teacher, then refusals, then by rising retrieval score: what the student could not handle.
    `asked_count` says how often the same question came.
    """
    settled = find_settled(decisions)
    eligible = records.filter(
        is_asked()
        & (pl.col("env") == "prod")
        & pl.col("trainable")
        & ~pl.col("is_injection")
        & (pl.col("outcome") == "answered")
        & ~pl.col("trace_id").is_in(decisions["trace_id"].to_list())
        & ~pl.col("question_hash").is_in(settled.to_list())
    )
    why = (
        pl.when(pl.col("selection_mode") == "fallback").then(pl.lit("fallback"))
        .when("refused").then(pl.lit("refused"))
        .when(pl.col("route_reason") != "default").then("route_reason")
        .otherwise(pl.lit("answered"))
    )  # fmt: skip
    rank = {"fallback": 0, "low_confidence": 1, "low_retrieval": 2, "refused": 3}
    return (
        eligible.select("trace_id", "asked_at", "question", "question_hash", "key_id", "max_score",
                        why.alias("why"))
        .sort("asked_at", "trace_id")
        .group_by("question_hash", maintain_order=True)
        .agg(pl.len().alias("asked_count"), pl.all().exclude("question_hash").last())
        .sort(
            pl.col("why").replace_strict(rank, default=9, return_dtype=pl.Int64),
            pl.col("max_score"),
            "trace_id",
        )
        .select("trace_id", "why", "asked_count", "asked_at", "key_id", "max_score", "question")
        .collect()
    )  # fmt: skip


def find_settled(decisions: pl.DataFrame) -> pl.Series:
    """Return the hashes of the questions that need no further decision.

    The last decision about a trace stands for every time its question is asked, unless it rejects
    the answer alone, or accepts what no term of admission will ever let in (asked in staging, not
    trainable, escalated): then production's own asking of it is still to be decided.
    """
    judged = admit_decisions(decisions, tables.DELETIONS.to_frame(), handwritten_count=0)
    is_rejected = (pl.col("reason") == NOT_ACCEPTED) & (pl.col("reason_code") != ANSWER_ALONE)
    is_accepted = pl.col("reason").is_in([ADMITTED, KEY_LIMIT, TOO_FEW_KEYS])
    return judged.filter(is_rejected | is_accepted)["question_hash"].drop_nulls()
