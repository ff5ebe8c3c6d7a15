"""What the students promise."""

import dagster as dg
import polars as pl

from assets import keys
from assets.partitions import RECIPES
from assets.students.provenance import find_foreign_files
from serving.home import Home


@dg.asset_check(
    asset=keys.TRAINING_SET,
    additional_ins={"labelled_examples": dg.AssetIn(key=keys.LABELLED_EXAMPLES)},
    blocking=True,
    partitions_def=RECIPES,
)
def no_training_example_is_cut(
    training_set: pl.DataFrame, labelled_examples: pl.DataFrame
) -> dg.AssetCheckResult:
    """Examples are whole: answers end their turn, have a citation mask, keep their split."""
    lengths = pl.col("answer_ids").list.len()
    broken = training_set.filter((lengths == 0) | (lengths != pl.col("cite_mask").list.len()))
    splits = labelled_examples.select("example_id", pl.col("split").alias("seed_split"))
    moved = training_set.join(splits, on="example_id").filter(
        pl.col("split") != pl.col("seed_split")
    )
    last = training_set["answer_ids"].list.last().n_unique()
    train = training_set.filter(pl.col("split") == "train").height
    return dg.AssetCheckResult(
        passed=train > 0 and broken.is_empty() and moved.is_empty() and last == 1,
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
    """The adapter folder holds the five expected files, no pickle, as they were recorded."""
    row = student_adapter.row(0, named=True)
    problems = find_foreign_files(home.adapters / row["adapter"], row["adapter_sha256"])
    return dg.AssetCheckResult(
        passed=not problems, metadata={"adapter": row["adapter"], "problems": problems}
    )


@dg.asset_check(asset=keys.TRAINING_CURVE, blocking=True, partitions_def=RECIPES)
def loss_went_down(training_curve: pl.DataFrame) -> dg.AssetCheckResult:
    """The last tenth of the steps has a lower mean loss than the first, and none is NaN."""
    window = max(1, training_curve.height // 10)
    first = float(training_curve["loss"].head(window).mean() or 0.0)
    last = float(training_curve["loss"].tail(window).mean() or 0.0)
    not_finite = int((~training_curve["loss"].is_finite()).sum())
    return dg.AssetCheckResult(
        passed=training_curve.height > 1 and not_finite == 0 and last < first,
        metadata={"first_loss": first, "last_loss": last, "steps_not_finite": not_finite},
    )
