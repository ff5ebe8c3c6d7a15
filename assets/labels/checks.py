"""What the labels promise."""

import dagster as dg
import polars as pl

from assets import keys
from assets.labels.judging import AXES


@dg.asset_check(asset=keys.TEACHER_ANSWERS, blocking=True)
def every_answer_cites_a_chunk(teacher_answers: pl.DataFrame) -> dg.AssetCheckResult:
    """An answer that is no refusal cites at least one of the chunks it was given, and no other."""
    answered = teacher_answers.filter(~pl.col("refused"))
    retrieved = pl.col("retrieved").list.eval(pl.element().struct.field("chunk_id"))
    stray = pl.col("citations").list.set_difference(retrieved).list.len() > 0
    wrong = answered.filter((pl.col("citations").list.len() == 0) | stray)
    return dg.AssetCheckResult(
        passed=not answered.is_empty() and wrong.is_empty(),
        metadata={
            "answered_count": answered.height,
            "refused_count": teacher_answers.height - answered.height,
            "without_valid_citation": wrong["question_id"].to_list()[:20],
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
    """Each answer has all five axes, and at most 2 % of the scores are inconclusive."""
    axes = judged_answers.group_by("question_id").agg(pl.col("axis").n_unique())
    incomplete = teacher_answers.height - axes.filter(pl.col("axis") == len(AXES)).height
    scores = judged_answers["score"]
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
    """No seed has examples in two splits, and every split has some."""
    splits = labelled_examples.group_by("seed_id").agg(pl.col("split").n_unique())
    shared = splits.filter(pl.col("split") > 1)["seed_id"].to_list()
    present = sorted(labelled_examples["split"].unique())
    return dg.AssetCheckResult(
        passed=not shared and present == ["calibration", "train", "validation"],
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
