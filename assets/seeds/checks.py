"""What the seeds promise."""

from datetime import UTC, datetime

import dagster as dg
import polars as pl

from assets import keys
from assets.check_results import report_outcome
from assets.seeds.assets import Harvested
from assets.seeds.duplicates import CLUSTER_COSINE, MAXIMUM_CLUSTER_ROWS, mark_crowded
from assets.seeds.expectations import evaluate_seeds
from assets.seeds.harvesting import find_unadmitted
from serving.models.protocols import Embedder
from serving.pipeline.questions import fold_text

ROUNDING = 1e-4
"""A text embedded in another batch may differ by less: the harvest is not judged by that."""


@dg.asset_check(asset=keys.SEED_QUESTIONS, blocking=True)
def seed_texts_are_distinct(seed_questions: pl.DataFrame) -> dg.AssetCheckResult:
    """Every seed has its own id and its own text (case, spacing and punctuation aside)."""
    folded = pl.Series([fold_text(text) for text in seed_questions["text"]], dtype=pl.String)
    twice = seed_questions.filter(
        folded.is_duplicated() | seed_questions["question_id"].is_duplicated()
    )
    return dg.AssetCheckResult(
        passed=twice.is_empty(),
        metadata={
            "seed_count": seed_questions.height,
            "repeated_ids": twice["question_id"].to_list()[:20],
        },
    )


@dg.asset_check(asset=keys.SEED_QUESTIONS, blocking=True)
def seed_questions_meet_expectations(seed_questions: pl.DataFrame) -> dg.AssetCheckResult:
    """Every seed can be asked and traced; how many there are and of what kind only warns.

    A text that /ask would refuse, or a harvested seed without its trace, blocks: everything that
    trains would grow from it. A thin set or few out-of-scope questions make a poor student, which
    the parity report measures, so they warn.
    """
    return report_outcome(evaluate_seeds(seed_questions, now=datetime.now(UTC)))


@dg.asset_check(asset=keys.SEED_QUESTIONS, blocking=True)
def every_harvested_seed_was_admitted(
    seed_questions: pl.DataFrame, harvested: dg.ResourceParam[Harvested]
) -> dg.AssetCheckResult:
    """Every harvested seed stands on an accepted, reviewed decision about a trainable prod trace.

    The file is read anew, so a decision taken back since is found.
    """
    unadmitted = find_unadmitted(seed_questions, harvested.read())
    return dg.AssetCheckResult(
        passed=not unadmitted,
        metadata={
            "harvested_count": seed_questions.filter(pl.col("source") == "harvested").height,
            "unadmitted_count": len(unadmitted),
            "unadmitted_ids": unadmitted[:20],
        },
    )


@dg.asset_check(asset=keys.SEED_QUESTIONS, blocking=True)
def at_most_three_harvested_seeds_share_a_matter(
    seed_questions: pl.DataFrame, embedder: dg.ResourceParam[Embedder]
) -> dg.AssetCheckResult:
    """No fourth harvested seed is about one matter: whoever floods teaches no more than others.

    The stored texts are embedded again, and whatever wrote the table is judged by its rows.
    """
    harvested = seed_questions.filter(pl.col("source") == "harvested")
    crowded = harvested.clear()
    if not harvested.is_empty():
        vectors = embedder.embed(harvested["text"].to_list())
        crowded = harvested.filter(
            pl.Series(mark_crowded(vectors, limit=CLUSTER_COSINE + ROUNDING))
        )
    return dg.AssetCheckResult(
        passed=crowded.is_empty(),
        metadata={
            "harvested_count": harvested.height,
            "crowded_count": crowded.height,
            "crowded_ids": crowded["question_id"].to_list()[:20],
            "maximum_rows": MAXIMUM_CLUSTER_ROWS,
            "cosine_limit": CLUSTER_COSINE,
        },
    )
