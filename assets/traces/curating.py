"""What a reviewer works through: candidates for training.

Belongs here: who is a candidate and in which order. Does not belong here: decisions (`deciding`),
printing (`orchestration/curate_cli`).
"""

import polars as pl

from assets.traces.deciding import is_asked


def find_candidates(records: pl.LazyFrame, decisions: pl.DataFrame) -> pl.DataFrame:
    """Return the traces worth a decision, hardest for the student first, each question once.

    A candidate is answered production traffic that may be trained on, was not escalated, carries no
    sign of injection and has no decision yet. First what fell back to the teacher, then refusals,
    then by rising retrieval score: what the student could not handle. `asked_count` says how often
    the same question came.
    """
    eligible = records.filter(
        is_asked()
        & (pl.col("env") == "prod")
        & pl.col("trainable")
        & ~pl.col("is_injection")
        & (pl.col("outcome") == "answered")
        & ~pl.col("trace_id").is_in(decisions["trace_id"].to_list())
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
