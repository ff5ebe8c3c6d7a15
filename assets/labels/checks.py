"""What the labels promise."""

import dagster as dg
import polars as pl

from assets import keys
from assets.labels.answering import REJECTED_BY_TEACHER, allowed_rejections
from assets.labels.judging import AXES


@dg.asset_check(asset=keys.TEACHER_ANSWERS, blocking=True)
def every_answer_cites_a_chunk(teacher_answers: pl.DataFrame) -> dg.AssetCheckResult:
    """An answer that is no refusal cites at least one of the chunks it was given, and no other."""
    was_taken = pl.col("validator_verdict") != REJECTED_BY_TEACHER
    answered = teacher_answers.filter(~pl.col("refused") & was_taken)
    retrieved = pl.col("retrieved").list.eval(pl.element().struct.field("chunk_id"))
    stray = pl.col("citations").list.set_difference(retrieved).list.len() > 0
    wrong = answered.filter((pl.col("citations").list.len() == 0) | stray)
    return dg.AssetCheckResult(
        passed=not answered.is_empty() and wrong.is_empty(),
        metadata={
            "answered_count": answered.height,
            "refused_count": int(teacher_answers["refused"].sum()),
            "without_valid_citation": wrong["question_id"].to_list()[:20],
        },
    )


@dg.asset_check(asset=keys.TEACHER_ANSWERS, blocking=True)
def teacher_rejected_few_questions(teacher_answers: pl.DataFrame) -> dg.AssetCheckResult:
    """The teacher's server refused to take at most 2 % of the questions (one in any case)."""
    verdict = pl.col("validator_verdict")
    rejected = teacher_answers.filter(verdict == REJECTED_BY_TEACHER)["question_id"].to_list()
    allowed = allowed_rejections(teacher_answers.height)
    passed = len(rejected) <= allowed
    return dg.AssetCheckResult(
        passed=passed,
        description=None
        if passed
        else "reword or remove the seeds of these questions, or use a teacher that takes them",
        metadata={
            "rejected_count": len(rejected),
            "allowed_count": allowed,
            "rejected": rejected[:20],
        },
    )


@dg.asset_check(
    asset=keys.JUDGED_ANSWERS,
    additional_ins={"teacher_answers": dg.AssetIn(key=keys.TEACHER_ANSWERS)},
    blocking=True,
)
def every_answer_is_judged_on_every_axis(
    judged_answers: pl.DataFrame, teacher_answers: pl.DataFrame
) -> dg.AssetCheckResult:
    """Each valid answer has all five axes, and at most 2 % of the scores are inconclusive."""
    valid = teacher_answers.filter(pl.col("validator_verdict") == "valid").select("question_id")
    judged = judged_answers.join(valid, on="question_id", how="semi")
    axes = judged.group_by("question_id").agg(pl.col("axis").n_unique())
    incomplete = valid.height - axes.filter(pl.col("axis") == len(AXES)).height
    scores = judged["score"]
    inconclusive = scores.null_count() / len(scores) if len(scores) else 1.0
    return dg.AssetCheckResult(
        passed=incomplete == 0 and inconclusive <= 0.02,
        metadata={
            "answers_without_every_axis": incomplete,
            "inconclusive_ratio": inconclusive,
            "limit_ratio": 0.02,
        },
    )


@dg.asset_check(asset=keys.LABELLED_EXAMPLES, blocking=True)
def splits_share_no_seed(labelled_examples: pl.DataFrame) -> dg.AssetCheckResult:
    """No seed has examples in two splits, and train and validation have some.

    Calibration may be empty: nothing reads it yet, and a split is drawn by seed, so a small product
    can miss one.
    """
    splits = labelled_examples.group_by("seed_id").agg(pl.col("split").n_unique())
    shared = splits.filter(pl.col("split") > 1)["seed_id"].to_list()
    present = sorted(labelled_examples["split"].unique())
    absent = [split for split in ("train", "validation") if split not in present]
    return dg.AssetCheckResult(
        passed=not shared and not absent,
        description=f"no examples in {' and '.join(absent)}: add seed questions whose answers are "
        "kept; a hash of its id gives each seed a split, about one in seven validates"
        if absent
        else None,
        metadata={
            "seed_count": splits.height,
            "seeds_in_two_splits": shared[:20],
            "splits_present": present,
        },
    )


@dg.asset_check(
    asset=keys.TEACHER_LOGPROBS,
    additional_ins={"labelled_examples": dg.AssetIn(key=keys.LABELLED_EXAMPLES)},
    blocking=True,
)
def logprob_rows_match_their_tokens(
    teacher_logprobs: pl.DataFrame, labelled_examples: pl.DataFrame
) -> dg.AssetCheckResult:
    """Row j predicts answer token j: as many rows as tokens, of training examples only."""
    lengths = pl.col("token_ids").list.len()
    wrong = teacher_logprobs.filter(
        (pl.col("top_ids").list.len() != lengths) | (pl.col("top_logprobs").list.len() != lengths)
    )
    training = set(labelled_examples.filter(pl.col("split") == "train")["example_id"])
    strangers = set(teacher_logprobs["example_id"]) - training
    return dg.AssetCheckResult(
        passed=wrong.is_empty() and not strangers,
        metadata={
            "scored_count": teacher_logprobs.height,
            "rows_of_wrong_length": wrong["example_id"].to_list()[:20],
            "not_training_examples": sorted(strangers)[:20],
        },
    )
