"""What the questions written by night promise."""

from datetime import UTC, datetime

import dagster as dg
import polars as pl

from assets import keys
from assets.paraphrases.dreaming import DreamPlan, count_tonight
from assets.paraphrases.vetting import count_repeats


@dg.asset_check(
    asset=keys.DREAMED_QUESTIONS,
    additional_ins={"seed_questions": dg.AssetIn(key=keys.SEED_QUESTIONS)},
    blocking=True,
)
def dreams_are_new_and_within_the_limit(
    dreamed_questions: pl.DataFrame,
    seed_questions: pl.DataFrame,
    dream_plan: dg.ResourceParam[DreamPlan],
) -> dg.AssetCheckResult:
    """Every dream has its own text, none grows from what users typed, and tonight kept its limit.

    Texts that have become seeds since are counted: they go to the guard once.
    """
    copies, repeats = count_repeats(dreamed_questions["text"], seed_questions["text"])
    harvested = seed_questions.filter(pl.col("source") == "harvested")["question_id"].to_list()
    grown = dreamed_questions.filter(pl.col("seed_id").is_in(harvested))
    tonight = count_tonight(dreamed_questions, datetime.now(UTC))
    return dg.AssetCheckResult(
        passed=not repeats and grown.is_empty() and tonight <= dream_plan.maximum_questions,
        metadata={
            "dreamed_count": dreamed_questions.height,
            "seeds_by_now": copies,
            "repeated_texts": repeats,
            "grown_from_harvested": grown["question_id"].to_list()[:20],
            "tonight_count": tonight,
            "limit": dream_plan.maximum_questions,
        },
    )
