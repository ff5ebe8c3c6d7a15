"""What the labels promise."""

import dagster as dg
import polars as pl

from assets import keys
from assets.check_results import report_outcome
from assets.labels.answering import MAXIMUM_LOST_RATIO, WITHOUT_ANSWER
from assets.labels.assets import LabellingPlan
from assets.labels.coverage import measure_coverage
from assets.labels.expectations import evaluate_examples
from assets.labels.judging import AXES
from assets.labels.logprob_rows import PER_TOKEN
from assets.labels.refusals import FLOOR_RATIO, MINIMUM_CLASS_SEEDS
from assets.losses import REJECTED_BY_TEACHER, UNANSWERED, allowed_losses
from assets.seeds.harvesting import list_private_seeds

MAXIMUM_INCONCLUSIVE_RATIO = 0.02
MINIMUM_SOFT_TOKEN_RATIO = 0.5  # of the tokens of answers that a source was asked about


@dg.asset_check(asset=keys.TEACHER_ANSWERS, blocking=True)
def every_answer_cites_a_chunk(teacher_answers: pl.DataFrame) -> dg.AssetCheckResult:
    """An answer that is no refusal cites at least one of the chunks it was given, and no other."""
    has_answer = ~pl.col("validator_verdict").is_in(WITHOUT_ANSWER)
    answered = teacher_answers.filter(~pl.col("refused") & has_answer)
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
    allowed = allowed_losses(teacher_answers.height, MAXIMUM_LOST_RATIO)
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


@dg.asset_check(asset=keys.TEACHER_ANSWERS)
def every_question_was_answered(teacher_answers: pl.DataFrame) -> dg.AssetCheckResult:
    """No question is left without an answer because the teacher's server failed at it.

    It does not block: at most 2 % can be missing, and training need not wait for them.
    """
    verdict = pl.col("validator_verdict")
    missing = teacher_answers.filter(verdict == UNANSWERED)["question_id"].to_list()
    return dg.AssetCheckResult(
        passed=not missing,
        severity=dg.AssetCheckSeverity.WARN,
        description=None
        if not missing
        else "run `understudy run --select labels/teacher_answers --force`: only these are bought",
        metadata={"unanswered_count": len(missing), "unanswered": missing[:20]},
    )


@dg.asset_check(
    asset=keys.JUDGED_ANSWERS,
    additional_ins={"teacher_answers": dg.AssetIn(key=keys.TEACHER_ANSWERS)},
    blocking=True,
)
def every_answer_is_judged_on_every_axis(
    judged_answers: pl.DataFrame, teacher_answers: pl.DataFrame
) -> dg.AssetCheckResult:
    """Each valid answer has all five axes by one ruler; at most 2 % (or one) are inconclusive."""
    valid = teacher_answers.filter(pl.col("validator_verdict") == "valid").select("question_id")
    judged = judged_answers.join(valid, on="question_id", how="semi")
    axes = judged.group_by("question_id").agg(pl.col("axis").n_unique())
    incomplete = valid.height - axes.filter(pl.col("axis") == len(AXES)).height
    doubtful = judged.filter(pl.col("score").is_null()).unique("question_id", maintain_order=True)
    allowed = max(1, int(valid.height * MAXIMUM_INCONCLUSIVE_RATIO))
    rulers = judged.select("rater_id", "judge_epoch", "rubric_version").unique()
    return dg.AssetCheckResult(
        passed=incomplete == 0 and doubtful.height <= allowed and rulers.height <= 1,
        metadata={
            "answers_without_every_axis": incomplete,
            "inconclusive_count": doubtful.height,
            "allowed_count": allowed,
            "inconclusive_by_reason": dict(doubtful["status"].value_counts().iter_rows()),
            "inconclusive": doubtful["question_id"].to_list()[:20],
            "rulers": [" ".join(row) for row in sorted(rulers.iter_rows())],
        },
    )


@dg.asset_check(
    asset=keys.LABELLED_EXAMPLES,
    additional_ins={
        "guarded_questions": dg.AssetIn(key=keys.GUARDED_QUESTIONS),
        "seed_questions": dg.AssetIn(key=keys.SEED_QUESTIONS),
    },
    blocking=True,
)
def labelled_examples_meet_expectations(
    labelled_examples: pl.DataFrame, guarded_questions: pl.DataFrame, seed_questions: pl.DataFrame
) -> dg.AssetCheckResult:
    """Every example is whole, licensed and cites its own sources; shares of kinds only warn.

    An example that asks another question than the guard kept, cites what its prompt does not hold,
    or names no licence blocks: it would be trained on. Too few refusals or a skewed split make a
    poorer student, not a wrong one, so they warn.
    """
    private_seeds = list_private_seeds(seed_questions)
    return report_outcome(
        evaluate_examples(labelled_examples, guarded_questions, private_seeds=private_seeds)
    )


@dg.asset_check(asset=keys.LABELLED_EXAMPLES, blocking=True)
def every_example_may_train(
    labelled_examples: pl.DataFrame, labelling_plan: dg.ResourceParam[LabellingPlan]
) -> dg.AssetCheckResult:
    """Each example is of the configured teacher, whose licence is named and allows training."""
    terms = labelling_plan.terms
    named = pl.col("teacher_license").fill_null("").str.strip_chars() == terms.license.strip()
    wrong = labelled_examples.filter(
        ~pl.col("trainable").fill_null(value=False)
        | ~named
        | (pl.col("teacher_id") != terms.teacher_id)
    )
    licences = labelled_examples.group_by("teacher_id", "teacher_license").len()
    return dg.AssetCheckResult(
        passed=terms.is_trainable and bool(terms.license.strip()) and wrong.is_empty(),
        description=None
        if terms.is_trainable
        else f"teacher.trainable is false: the terms of {terms.teacher_id} ({terms.license}) do "
        "not allow training on its answers",
        metadata={
            "examples_by_teacher": {
                f"{teacher} ({licence})": count for teacher, licence, count in licences.iter_rows()
            },
            "configured_teacher": f"{terms.teacher_id} ({terms.license})",
            "may_not_train": wrong["example_id"].to_list()[:20],
        },
    )


@dg.asset_check(asset=keys.REFUSAL_RULE)
def the_refusal_rule_holds(refusal_rule: pl.DataFrame) -> dg.AssetCheckResult:
    """The best source's score foretells what the teacher refuses, on seeds the rule has not seen.

    It does not block: without a certified rule, students are taught to refuse.
    """
    row = refusal_rule.row(0, named=True)
    bounds = {name: row[f"{name}_lower_ratio"] for name in ("refused", "answered")}
    return dg.AssetCheckResult(
        passed=row["is_certified"],
        severity=dg.AssetCheckSeverity.WARN,
        description=None
        if row["is_certified"]
        else f"expected lower bounds of at least {FLOOR_RATIO} for both shares, from "
        f"{MINIMUM_CLASS_SEEDS} seeds or more of each outcome; found {bounds}: students are "
        "taught to refuse instead; more seeds, in and out of scope, may certify one",
        metadata={name: value for name, value in row.items() if value is not None},
    )


@dg.asset_check(
    asset=keys.REJECTED_EXAMPLES,
    additional_ins={
        "teacher_answers": dg.AssetIn(key=keys.TEACHER_ANSWERS),
        "labelled_examples": dg.AssetIn(key=keys.LABELLED_EXAMPLES),
    },
    blocking=True,
)
def every_answer_is_kept_or_rejected(
    rejected_examples: pl.DataFrame,
    teacher_answers: pl.DataFrame,
    labelled_examples: pl.DataFrame,
) -> dg.AssetCheckResult:
    """Kept and rejected answers add up to all answers, and every rejection has a reason."""
    kept, rejected = labelled_examples["question_id"], rejected_examples["question_id"]
    both = set(kept) & set(rejected)
    lost = set(teacher_answers["question_id"]) ^ (set(kept) | set(rejected))
    unexplained = rejected_examples.filter(pl.col("reason").is_null())["question_id"].to_list()
    adds_up = kept.len() + rejected.len() == teacher_answers.height
    return dg.AssetCheckResult(
        passed=adds_up and not both and not lost and not unexplained,
        metadata={
            "answer_count": teacher_answers.height,
            "kept_count": kept.len(),
            "rejected_count": rejected.len(),
            "kept_and_rejected": sorted(both)[:20],
            "neither": sorted(lost)[:20],
            "without_reason": unexplained[:20],
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
        pl.any_horizontal(pl.col(name).list.len() != lengths for name in PER_TOKEN)
    )
    training = set(labelled_examples.filter(pl.col("split") == "train")["example_id"])
    strangers = set(teacher_logprobs["example_id"]) - training
    return dg.AssetCheckResult(
        passed=wrong.is_empty() and not strangers,
        metadata={
            "example_count": teacher_logprobs.height,
            "rows_of_wrong_length": wrong["example_id"].to_list()[:20],
            "not_training_examples": sorted(strangers)[:20],
        },
    )


@dg.asset_check(asset=keys.TEACHER_LOGPROBS)
def soft_targets_cover_the_answers(teacher_logprobs: pl.DataFrame) -> dg.AssetCheckResult:
    """Of the answers that a source was asked about, at least half the tokens have a soft target.

    It does not block: a token without one is trained on the teacher's text, which is poorer and not
    wrong. Answers beyond the scorer's sample are not counted, since nobody was asked about them.
    """
    found = measure_coverage(teacher_logprobs)
    passed = not found.asked_token_count or found.asked_soft_ratio >= MINIMUM_SOFT_TOKEN_RATIO
    asked = teacher_logprobs.filter(pl.col("source") != "none")
    worst = asked.sort("soft_token_ratio", "example_id").head(20)
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=None
        if passed
        else "most tokens are trained hard: look at the reasons, or configure a scorer that shares "
        "the student's tokenizer",
        metadata={
            "soft_token_ratio": found.asked_soft_ratio,
            "minimum_soft_token_ratio": MINIMUM_SOFT_TOKEN_RATIO,
            "asked_token_count": found.asked_token_count,
            "hard_only_answers_by_reason": dict(found.hard_reasons),
            "least_covered": dict(worst.select("example_id", "soft_token_ratio").iter_rows()),
        },
    )


@dg.asset_check(
    asset=keys.CONTAMINATED_EXAMPLES,
    additional_ins={"labelled_examples": dg.AssetIn(key=keys.LABELLED_EXAMPLES)},
    blocking=True,
)
def contamination_stays_in_its_lane(
    contaminated_examples: pl.DataFrame, labelled_examples: pl.DataFrame
) -> dg.AssetCheckResult:
    """Every contaminated example is one to train on, and none stands among the labelled ones."""
    elsewhere = contaminated_examples.filter(pl.col("split") != "train")
    shared = contaminated_examples.join(labelled_examples, on="question_id", how="semi")
    return dg.AssetCheckResult(
        passed=not contaminated_examples.is_empty() and elsewhere.is_empty() and shared.is_empty(),
        metadata={
            "example_count": contaminated_examples.height,
            "in_another_split": elsewhere["example_id"].to_list()[:20],
            "among_the_labelled": shared["question_id"].to_list()[:20],
        },
    )
