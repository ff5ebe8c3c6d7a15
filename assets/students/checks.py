"""What the students promise."""

from typing import Any

import dagster as dg
import polars as pl
import polars.selectors as cs

from assets import keys
from assets.partitions import RECIPES
from assets.students.agreement import compare_with_labels, find_metric
from assets.students.calibration import read_calibrator
from assets.students.held_out import STUDENT, TOP_CHUNK
from assets.students.provenance import find_foreign_files
from serving.errors import InvalidInputError
from serving.home import Home
from serving.models.prompted_student import TRAINED_KINDS

MINIMUM_VALID_RATIO = 0.95  # of answerable validation questions
MINIMUM_OUT_OF_SCOPE_RATIO = 0.85  # refused, of out-of-scope validation questions
MINIMUM_CASES = 20  # below: a share of them decides nothing
MAXIMUM_FAILED_RATIO = 0.02  # of held-out questions


@dg.asset_check(
    asset=keys.TRAINING_SET,
    additional_ins={"labelled_examples": dg.AssetIn(key=keys.LABELLED_EXAMPLES)},
    blocking=True,
    partitions_def=RECIPES,
)
def no_training_example_is_cut(
    training_set: pl.DataFrame, labelled_examples: pl.DataFrame
) -> dg.AssetCheckResult:
    """Examples are whole: answers end their turn, have a citation mask, keep their split.

    A kind that trains nothing has ids and splits alone; examples with and without tokens mixed are
    broken.
    """
    tokens = training_set.select(cs.list()).null_count().row(0)
    is_mixed = not set(tokens) <= {0} and not set(tokens) <= {training_set.height}
    lengths = pl.col("answer_ids").list.len()
    broken = training_set.filter((lengths == 0) | (lengths != pl.col("cite_mask").list.len()))
    splits = labelled_examples.select("example_id", pl.col("split").alias("seed_split"))
    moved = training_set.join(splits, on="example_id").filter(
        pl.col("split") != pl.col("seed_split")
    )
    last = training_set["answer_ids"].list.last().n_unique()
    train = training_set.filter(pl.col("split") == "train").height
    return dg.AssetCheckResult(
        passed=train > 0 and not is_mixed and broken.is_empty() and moved.is_empty() and last == 1,
        description=f"{train} examples to train on, {broken.height} broken ones, "
        f"{moved.height} in another split than their seed, {last} kinds of last token (1 is right)"
        + (", examples with and without tokens" if is_mixed else ""),
        metadata={
            "train_count": train,
            "broken": broken["example_id"].to_list()[:20],
            "in_another_split_than_their_seed": moved["example_id"].to_list()[:20],
            "distinct_last_tokens": last,
        },
    )


@dg.asset_check(asset=keys.STUDENT_ADAPTER, blocking=True, partitions_def=RECIPES)
def adapter_is_safetensors_only(
    student_adapter: pl.DataFrame, home: dg.ResourceParam[Home]
) -> dg.AssetCheckResult:
    """The folder holds the files of its kind and nothing else, no pickle, as they were recorded."""
    row = student_adapter.row(0, named=True)
    folder = home.adapters / row["adapter"]
    problems = find_foreign_files(folder, row["kind"], row["adapter_sha256"])
    return dg.AssetCheckResult(
        passed=not problems, metadata={"adapter": row["adapter"], "problems": problems}
    )


@dg.asset_check(
    asset=keys.TRAINING_CURVE,
    additional_ins={"student_adapter": dg.AssetIn(key=keys.STUDENT_ADAPTER)},
    blocking=True,
    partitions_def=RECIPES,
)
def loss_went_down(
    training_curve: pl.DataFrame, student_adapter: pl.DataFrame
) -> dg.AssetCheckResult:
    """The last tenth of the steps has a lower mean loss than the first, and none is NaN.

    A kind that trains nothing passes with no step at all.
    """
    kind = student_adapter["kind"].item()
    if kind not in TRAINED_KINDS:
        return dg.AssetCheckResult(passed=training_curve.is_empty(), metadata={"kind": kind})
    window = max(1, training_curve.height // 10)
    first = float(training_curve["loss"].head(window).mean() or 0.0)
    last = float(training_curve["loss"].tail(window).mean() or 0.0)
    not_finite = int((~training_curve["loss"].is_finite()).sum())
    return dg.AssetCheckResult(
        passed=training_curve.height > 1 and not_finite == 0 and last < first,
        description=f"{training_curve.height} steps, {not_finite} of them not finite; the loss of "
        f"the first {window} was {first:.4g}, of the last {last:.4g}. Where it did not fall, try "
        "more steps or a lower learning_rate",
        metadata={"first_loss": first, "last_loss": last, "steps_not_finite": not_finite},
    )


@dg.asset_check(
    asset=keys.HELD_OUT_ANSWERS,
    additional_ins={"labelled_examples": dg.AssetIn(key=keys.LABELLED_EXAMPLES)},
    blocking=True,
    partitions_def=RECIPES,
)
def held_out_questions_were_never_trained_on(
    held_out_answers: pl.DataFrame, labelled_examples: pl.DataFrame
) -> dg.AssetCheckResult:
    """Every case is of a seed outside the train split, asked once, and at most 2 % failed."""
    mine = held_out_answers.filter(pl.col("arm") == STUDENT)
    train = labelled_examples.filter(pl.col("split") == "train")["seed_id"]
    trained = mine.filter(pl.col("seed_id").is_in(train.to_list()))
    repeated = mine.filter(pl.col("example_id").is_duplicated())
    failed = mine.filter(pl.col("error").is_not_null())
    failed_ratio = failed.height / max(1, mine.height)
    return dg.AssetCheckResult(
        passed=mine.height > 0
        and trained.is_empty()
        and repeated.is_empty()
        and failed_ratio <= MAXIMUM_FAILED_RATIO,
        metadata={
            "case_count": mine.height,
            "failed_ratio": failed_ratio,
            "limit_ratio": MAXIMUM_FAILED_RATIO,
            "of_trained_seeds": trained["example_id"].to_list()[:20],
            "repeated": repeated["example_id"].unique().to_list()[:20],
            "errors": failed["error"].to_list()[:5],
        },
    )


@dg.asset_check(
    asset=keys.VALIDATION_REPORT,
    additional_ins={"held_out_answers": dg.AssetIn(key=keys.HELD_OUT_ANSWERS)},
    partitions_def=RECIPES,
)
def student_passes_the_validator(
    validation_report: pl.DataFrame, held_out_answers: pl.DataFrame
) -> dg.AssetCheckResult:
    """At least 95 % of the answers to answerable validation questions are valid.

    It does not block: a weak student is a finding, which the gate answers with HOLD.
    """
    worst = _read_validation(held_out_answers).filter(
        ~pl.col("label_refused") & ~pl.col("is_valid")
    )
    row = find_metric(validation_report, STUDENT, "valid_answerable")
    return _judge_share(row, MINIMUM_VALID_RATIO, worst.select("example_id", "verdict"))


@dg.asset_check(
    asset=keys.VALIDATION_REPORT,
    additional_ins={"held_out_answers": dg.AssetIn(key=keys.HELD_OUT_ANSWERS)},
    partitions_def=RECIPES,
)
def student_refuses_out_of_scope(
    validation_report: pl.DataFrame, held_out_answers: pl.DataFrame
) -> dg.AssetCheckResult:
    """At least 85 % of the out-of-scope validation questions are refused.

    It does not block: a weak student is a finding, which the gate answers with HOLD.
    """
    worst = _read_validation(held_out_answers).filter(
        pl.col("is_out_of_scope") & ~pl.col("refused")
    )
    row = find_metric(validation_report, STUDENT, "out_of_scope_refused")
    return _judge_share(row, MINIMUM_OUT_OF_SCOPE_RATIO, worst.select("example_id", "verdict"))


@dg.asset_check(
    asset=keys.VALIDATION_REPORT,
    additional_ins={"held_out_answers": dg.AssetIn(key=keys.HELD_OUT_ANSWERS)},
    partitions_def=RECIPES,
)
def student_beats_citing_the_top_chunk(
    validation_report: pl.DataFrame, held_out_answers: pl.DataFrame
) -> dg.AssetCheckResult:
    """The student cites what the label cites more often than the first hit does, beyond chance.

    Over answerable validation questions, by Tango's 95 % interval of the paired difference.
    It does not block: a weak student is a finding, which the gate answers with HOLD.
    """
    row = find_metric(validation_report, f"{STUDENT}-{TOP_CHUNK}", "same_citations")
    lost = _read_validation(held_out_answers).filter(
        ~pl.col("label_refused") & ~pl.col("has_same_citations")
    )
    outcome = "INCONCLUSIVE"
    if row["n"] >= MINIMUM_CASES and (row["lower"] > 0 or row["upper"] < 0):
        outcome = "PASS" if row["lower"] > 0 else "FAIL"
    return _report(row, outcome, 0.0, lost.select("example_id", "citations", "label_citations"))


@dg.asset_check(
    asset=keys.CALIBRATION,
    additional_ins={
        "student_adapter": dg.AssetIn(key=keys.STUDENT_ADAPTER),
        "labelled_examples": dg.AssetIn(key=keys.LABELLED_EXAMPLES),
    },
    blocking=True,
    partitions_def=RECIPES,
)
def calibration_is_of_this_adapter(
    calibration: pl.DataFrame, student_adapter: pl.DataFrame, labelled_examples: pl.DataFrame
) -> dg.AssetCheckResult:
    """It was fitted to this adapter's answers, on calibration seeds alone, and is unchanged."""
    row = calibration.row(0, named=True)
    expected = student_adapter["adapter_sha256"].item()
    splits = dict(labelled_examples.select("seed_id", "split").iter_rows())
    stray = [s for s in row["calibration_seeds"] if splits.get(s) != "calibration"]
    problems = [f"fitted on the seed {seed} of the split {splits.get(seed)}" for seed in stray]
    try:
        calibrator = read_calibrator(row)
    except InvalidInputError as error:
        calibrator = None
        problems.append(str(error))
    found = {row["adapter_sha256"], calibrator.adapter_sha256 if calibrator else expected}
    if found != {expected}:
        problems.append(f"fitted for {sorted(found)}, not for {expected}")
    return dg.AssetCheckResult(
        passed=not problems,
        metadata={
            "method": row["method"],
            "case_count": row["fit_count"] + row["certify_count"],
            "problems": problems[:20],
        },
    )


@dg.asset_check(asset=keys.CALIBRATION, partitions_def=RECIPES)
def calibration_improves_the_confidence(calibration: pl.DataFrame) -> dg.AssetCheckResult:
    """Calibrated confidence has a smaller Brier score than raw confidence on validation answers.

    It does not block: a confidence decides nothing until a threshold is certified for it.
    """
    row = calibration.row(0, named=True)
    n = row["validation_count"] or 0
    outcome = "INCONCLUSIVE"
    if n >= MINIMUM_CASES:
        outcome = "PASS" if row["brier_after"] < row["brier_before"] else "FAIL"
    return dg.AssetCheckResult(
        passed=outcome == "PASS",
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{outcome}: {n} valid validation answers",
        metadata={
            name: row[name] for name in ("brier_before", "brier_after", "ece_before", "ece_after")
        },
    )


def _read_validation(held_out_answers: pl.DataFrame) -> pl.DataFrame:
    of_student = (pl.col("arm") == STUDENT) & (pl.col("split") == "validation")
    return compare_with_labels(held_out_answers.filter(of_student))


def _judge_share(row: dict[str, Any], limit: float, worst: pl.DataFrame) -> dg.AssetCheckResult:
    """Judge a share by its point; its interval is shown. Few cases are inconclusive, no pass."""
    outcome = "INCONCLUSIVE"
    if row["n"] >= MINIMUM_CASES:
        outcome = "PASS" if row["value"] >= limit else "FAIL"
    return _report(row, outcome, limit, worst)


def _report(
    row: dict[str, Any], outcome: str, limit: float, worst: pl.DataFrame
) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=outcome == "PASS",
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{outcome}: n = {row['n']}",
        metadata={
            "value": row["value"],
            "lower": row["lower"],
            "upper": row["upper"],
            "limit": limit,
            "n": row["n"],
            "minimum_n": MINIMUM_CASES,
            "worst": dg.MetadataValue.json(worst.head(20).to_dicts()),
        },
    )
