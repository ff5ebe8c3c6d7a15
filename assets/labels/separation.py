"""The wall between training and held-out labels: no training question rewords a held-out one.

Splits are drawn by seed, and two seeds may ask the same: a harvested one in a user's words, a
dreamed one in words written after a held-out miss. Belongs here: which training rows fall. Does not
belong here: the limit (`eval_set/guard`), the draw of the splits (`selection`).
"""

from collections.abc import Iterator

import numpy as np
import polars as pl

from assets.eval_set.guard import BATCH_ROWS, is_too_near
from assets.eval_set.nearest import find_nearest
from serving.models.protocols import Embedder

NEAR_HELD_OUT = "near_held_out"
NEAREST_COLUMNS = pl.Schema(
    {
        "question_id": pl.String(),
        "held_out_question_id": pl.String(),
        "held_out_cosine": pl.Float64(),
    }
)


def find_near_held_out(examples: pl.DataFrame, embedder: Embedder) -> pl.DataFrame:
    """Return the training questions to leave out, each with the held-out one it comes too near.

    What was made of a seed that falls, falls with it: it asks the same in other words.

    Args:
        examples: columns question_id, seed_id (its own id for a seed), question and split.
        embedder: the one of the guard; these texts are in its cache.

    Returns:
        Rows of `NEAREST_COLUMNS`, in the order of the examples.
    """
    nearest = measure_nearness(examples, embedder)
    own = examples.select("question_id", "seed_id").join(
        nearest, on="question_id", maintain_order="left"
    )
    near = own.filter(pl.Series(is_too_near(own["held_out_cosine"].to_numpy()), dtype=pl.Boolean))
    seeds = near.filter(pl.col("question_id") == pl.col("seed_id"))
    made = own.join(
        seeds.select("seed_id", seed_case="held_out_question_id", seed_cosine="held_out_cosine"),
        on="seed_id",
        how="left",
        maintain_order="left",
    )
    by_itself = pl.col("question_id").is_in(near["question_id"].to_list())
    return made.filter(by_itself | pl.col("seed_case").is_not_null()).select(
        "question_id",
        pl.when(by_itself)
        .then("held_out_question_id")
        .otherwise("seed_case")
        .alias("held_out_question_id"),
        pl.when(by_itself)
        .then("held_out_cosine")
        .otherwise("seed_cosine")
        .alias("held_out_cosine"),
    )


def measure_nearness(examples: pl.DataFrame, embedder: Embedder) -> pl.DataFrame:
    """Return the nearest held-out question of each training question, and the cosine with it.

    The training questions go through batch by batch, so memory holds the held-out vectors and one
    batch, whatever the pool.
    """
    held_out = examples.filter(pl.col("split") != "train")
    train = examples.filter(pl.col("split") == "train")
    if held_out.is_empty() or train.is_empty():
        return NEAREST_COLUMNS.to_frame()
    cases = np.ascontiguousarray(embedder.embed(held_out["question"].to_list()))

    def compare() -> Iterator[pl.DataFrame]:
        for batch in train.iter_slices(BATCH_ROWS):
            found = find_nearest(embedder.embed(batch["question"].to_list()), cases)
            yield pl.DataFrame(
                {
                    "question_id": batch["question_id"],
                    "held_out_question_id": held_out["question_id"].gather(found.rows),
                    "held_out_cosine": found.cosines,
                },
                schema_overrides=NEAREST_COLUMNS,
            )

    return pl.concat(compare())
