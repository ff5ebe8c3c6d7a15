"""What the seeds promise."""

import dagster as dg
import polars as pl

from assets import keys


@dg.asset_check(asset=keys.SEED_QUESTIONS, blocking=True)
def seed_texts_are_distinct(seed_questions: pl.DataFrame) -> dg.AssetCheckResult:
    """Every seed has its own id and its own text (case and spacing aside)."""
    folded = pl.col("text").str.to_lowercase().str.replace_all(r"\s+", " ")
    twice = seed_questions.filter(folded.is_duplicated() | pl.col("question_id").is_duplicated())
    return dg.AssetCheckResult(
        passed=twice.is_empty(),
        metadata={
            "seed_count": seed_questions.height,
            "repeated_ids": twice["question_id"].to_list()[:20],
        },
    )
