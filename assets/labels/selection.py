"""Which labels teach: validity, the judge's rubric, and the split by seed.

Belongs here: decisions on labelled rows. Does not belong here: asking anybody.
"""

from dataclasses import dataclass
from typing import Literal

import polars as pl

from assets import tables
from serving.errors import InvalidInputError
from serving.hashing import content_hash

Split = Literal["train", "validation", "calibration"]
TRAIN_RATIO, VALIDATION_RATIO = 0.70, 0.15  # the rest, 0.15, calibrates


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The examples that teach, and how many answers were left out for which reason."""

    examples: pl.DataFrame
    dropped_by_reason: dict[str, int]


def choose_split(seed_id: str) -> Split:
    """Return the split of a seed and of all its paraphrases, by a hash of the seed's id."""
    position = int(content_hash("split", seed_id), 16) / 16**16
    if position < TRAIN_RATIO:
        return "train"
    return "validation" if position < TRAIN_RATIO + VALIDATION_RATIO else "calibration"


def select_examples(
    answers: pl.DataFrame,
    judged: pl.DataFrame,
    *,
    minimum_score: int,
    teacher_license: str,
    is_trainable: bool = True,
) -> Selection:
    """Keep valid answers whose lowest axis reaches `minimum_score`.

    Args:
        answers: teacher_answers rows.
        judged: judged_answers rows (long: one per content_key and axis; a null score is
            inconclusive).
        minimum_score: on the rubric's 1-5 scale, every axis.
        teacher_license: stored with each example.
        is_trainable: whether the teacher's terms allow training on its answers.

    Raises:
        InvalidInputError: they do not.
    """
    if not is_trainable:
        raise InvalidInputError(
            "selecting training examples",
            expected="a teacher whose terms allow training on its answers",
            found=f"teacher.trainable: false ({teacher_license})",
            next_step="use another teacher, or change the key if its terms allow it",
        )
    lowest = judged.group_by("content_key").agg(
        pl.col("score").min().alias("lowest_score"), pl.col("score").null_count().alias("unjudged")
    )
    ranked = answers.join(lowest, on="content_key", how="left", maintain_order="left")
    reason = (
        pl.when(pl.col("validator_verdict") != "valid")
        .then(pl.lit("invalid"))
        .when(pl.col("lowest_score").is_null() | (pl.col("unjudged") > 0))
        .then(pl.lit("judge_inconclusive"))
        .when(pl.col("lowest_score") < minimum_score)
        .then(pl.lit("below_minimum_score"))
        .otherwise(pl.lit(""))
    )
    ranked = ranked.with_columns(reason.alias("drop_reason"))
    dropped = ranked.filter(pl.col("drop_reason") != "")["drop_reason"].value_counts()
    kept = ranked.filter(pl.col("drop_reason") == "")
    return Selection(
        examples=_tabulate(kept, teacher_license),
        dropped_by_reason={str(name): int(count) for name, count in dropped.iter_rows()},
    )


def _tabulate(kept: pl.DataFrame, teacher_license: str) -> pl.DataFrame:
    ids = [
        content_hash(question_id, key)
        for question_id, key in kept.select("question_id", "content_key").iter_rows()
    ]
    return kept.with_columns(
        pl.Series("example_id", ids, dtype=pl.String),
        pl.Series("split", [choose_split(seed) for seed in kept["seed_id"]], dtype=pl.String),
        pl.col("raw").alias("completion"),
        pl.lit(1.0).alias("weight"),
        pl.lit(teacher_license).alias("teacher_license"),
    ).select(tables.LABELLED_EXAMPLES.names())
