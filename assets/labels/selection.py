"""Which labels teach: the teacher's terms, validity, the judge's rubric, and the split by seed.

Belongs here: decisions on labelled rows. Does not belong here: asking anybody, which training
question comes too near a held-out one (`separation`).
"""

from dataclasses import dataclass
from typing import Literal

import polars as pl

from assets import tables
from assets.labels.judging import Ruler
from assets.labels.rating import require_ruler
from assets.labels.separation import NEAR_HELD_OUT, find_near_held_out
from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.models.protocols import Embedder

Split = Literal["train", "validation", "calibration"]
TRAIN_RATIO, VALIDATION_RATIO = 0.70, 0.15  # the rest, 0.15, calibrates


@dataclass(frozen=True, kw_only=True)
class TeacherTerms:
    """Who answered, under which licence, and whether a student may be trained on the answers."""

    teacher_id: str
    license: str
    is_trainable: bool


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The examples that teach and the answers that do not; every answer is one of the two."""

    examples: pl.DataFrame
    rejected: pl.DataFrame

    @property
    def rejected_by_reason(self) -> dict[str, int]:
        """How many answers were left out for which reason, the most frequent first."""
        counts = self.rejected["reason"].value_counts().sort("count", "reason", descending=True)
        return {str(name): int(count) for name, count in counts.iter_rows()}


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
    terms: TeacherTerms,
    ruler: Ruler,
    embedder: Embedder,
) -> Selection:
    """Keep valid answers whose lowest axis reaches `minimum_score`.

    Of those, a training question that comes too near a held-out one is left out.

    Args:
        answers: teacher_answers rows.
        judged: judged_answers rows (long: one per content_key and axis; a null score is
            inconclusive).
        minimum_score: on the rubric's 1-5 scale, every axis.
        terms: the configured teacher's, stored with each example.
        ruler: the configured judge's.
        embedder: tells how near two questions are.

    Raises:
        InvalidInputError: the terms do not allow training, an answer is another teacher's, or a
            score was measured by another ruler.
    """
    require_trainable(terms)
    require_teacher(answers, terms)
    require_ruler(judged, ruler)
    ranked = answers.join(_find_lowest(judged), on="content_key", how="left", maintain_order="left")
    score = pl.col("lowest_score")
    reason = (
        pl.when(pl.col("validator_verdict") != "valid")
        .then(pl.lit("invalid"))
        .when(score.is_null() | pl.col("is_inconclusive"))
        .then(pl.lit("judge_inconclusive"))
        .when(score < minimum_score)
        .then(pl.lit("below_minimum_score"))
    )
    splits = pl.Series("split", [choose_split(seed) for seed in ranked["seed_id"]], dtype=pl.String)
    ranked = _separate(ranked.with_columns(reason.alias("reason"), splits), embedder)
    return Selection(
        examples=_tabulate_examples(ranked.filter(pl.col("reason").is_null()), terms),
        rejected=_tabulate_rejected(ranked.filter(pl.col("reason").is_not_null()), ruler),
    )


def take_unguarded(answers: pl.DataFrame, terms: TeacherTerms) -> pl.DataFrame:
    """Return every valid answer as an example of the train split, judged by nobody.

    For the contaminated lane, which asks what a leak would have been worth.

    Raises:
        InvalidInputError: the terms do not allow training, or an answer is another teacher's.
    """
    require_trainable(terms)
    require_teacher(answers, terms)
    valid = answers.filter(pl.col("validator_verdict") == "valid")
    return _tabulate_examples(valid.with_columns(pl.lit("train").alias("split")), terms)


def require_trainable(terms: TeacherTerms) -> None:
    """Refuse a teacher whose terms do not allow training on its answers."""
    if not terms.is_trainable:
        raise InvalidInputError(
            "selecting training examples",
            expected="a teacher whose terms allow training on its answers",
            found=f"teacher.trainable: false ({terms.teacher_id}, {terms.license})",
            next_step="use another teacher, or change the key if its terms allow it",
        )


def require_teacher(answers: pl.DataFrame, terms: TeacherTerms) -> None:
    """Refuse answers of another teacher: its terms may differ, and two teachers are not mixed."""
    foreign = answers.filter(pl.col("teacher_id") != terms.teacher_id)
    if not foreign.is_empty():
        others = ", ".join(sorted(foreign["teacher_id"].unique()))
        raise InvalidInputError(
            "selecting training examples",
            expected=f"answers of the configured teacher, {terms.teacher_id}",
            found=f"{foreign.height} of {answers.height} answers of {others}",
            next_step="label again with `understudy run --select labels`, or configure the teacher "
            "that answered: its answers are kept",
        )


def _find_lowest(judged: pl.DataFrame) -> pl.DataFrame:
    """Return per content_key the lowest score, the first axis that has it, and the rationale."""
    by_score = judged.sort("content_key", "score", nulls_last=False, maintain_order=True)
    return by_score.group_by("content_key", maintain_order=True).agg(
        pl.col("score").min().alias("lowest_score"),
        pl.col("axis").first().alias("lowest_axis"),
        pl.col("status").first().alias("judge_status"),
        pl.col("rationale").first(),
        pl.col("score").is_null().any().alias("is_inconclusive"),
    )


def _separate(ranked: pl.DataFrame, embedder: Embedder) -> pl.DataFrame:
    """Give the kept training rows that come too near a held-out one their reason."""
    near = find_near_held_out(ranked.filter(pl.col("reason").is_null()), embedder)
    joined = ranked.join(near, on="question_id", how="left", maintain_order="left")
    is_near = pl.col("held_out_question_id").is_not_null()
    return joined.with_columns(
        pl.when(is_near).then(pl.lit(NEAR_HELD_OUT)).otherwise("reason").alias("reason")
    )


def _tabulate_examples(kept: pl.DataFrame, terms: TeacherTerms) -> pl.DataFrame:
    ids = [
        content_hash(question_id, key)
        for question_id, key in kept.select("question_id", "content_key").iter_rows()
    ]
    return kept.with_columns(
        pl.Series("example_id", ids, dtype=pl.String),
        pl.col("raw").alias("completion"),
        pl.lit(1.0).alias("weight"),
        pl.lit(terms.license).alias("teacher_license"),
        pl.lit(terms.is_trainable).alias("trainable"),
    ).select(tables.LABELLED_EXAMPLES.names())


def _tabulate_rejected(rejected: pl.DataFrame, ruler: Ruler) -> pl.DataFrame:
    return rejected.with_columns(
        pl.col("raw").alias("completion"),
        pl.when(pl.col("reason") == "below_minimum_score").then("lowest_axis"),
        pl.lit(ruler.rater_id).alias("judge_id"),
        pl.lit(ruler.epoch).alias("judge_epoch"),
        pl.lit(ruler.rubric_version).alias("rubric_version"),
    ).select(tables.REJECTED_EXAMPLES.names())
