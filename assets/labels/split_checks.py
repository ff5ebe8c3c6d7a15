"""What the splits of the labels promise: what judges a student was not trained on."""

import dagster as dg
import polars as pl

from assets import keys
from assets.eval_set.guard import LEAKAGE_COSINE_LIMIT
from assets.labels.separation import find_near_held_out, measure_nearness
from serving.models.protocols import Embedder


@dg.asset_check(asset=keys.LABELLED_EXAMPLES, blocking=True)
def splits_share_no_seed(labelled_examples: pl.DataFrame) -> dg.AssetCheckResult:
    """No seed has examples in two splits, and train and validation have some.

    Calibration may be empty, since a split is drawn by seed and a small product can miss one: then
    the confidence is not fitted, no threshold is certified, and the student answers without one.
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


@dg.asset_check(asset=keys.LABELLED_EXAMPLES, blocking=True)
def no_training_question_near_a_held_out_one(
    labelled_examples: pl.DataFrame, embedder: dg.ResourceParam[Embedder]
) -> dg.AssetCheckResult:
    """No training question comes as near to a validation or calibration question as the guard bars.

    Two seeds may ask the same: one by hand, one harvested or dreamed. Their ids say nothing of it,
    so their questions are compared.
    """
    near = find_near_held_out(labelled_examples, embedder)
    cosines = measure_nearness(labelled_examples, embedder)["held_out_cosine"]
    return dg.AssetCheckResult(
        passed=near.is_empty(),
        metadata={
            "compared_count": cosines.len(),
            "largest_cosine": float(cosines.max() or 0.0),  # type: ignore[arg-type]
            "limit": LEAKAGE_COSINE_LIMIT,
            "too_near": dict(near.head(20).select("question_id", "held_out_question_id").rows()),
        },
    )
