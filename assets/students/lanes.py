"""Lanes: what a student may be trained on. The clean one is guarded; the other, an experiment.

Belongs here: adding what the contaminated lane adds, and how much of the clean one production may
fill. Does not belong here: making those examples (`labels/contaminated_examples`), keeping their
student from promotion (`releases/gate`), the sample (`training_set`).
"""

import polars as pl

from serving.errors import InvalidInputError
from serving.hashing import content_hash

CONTAMINATED = "contaminated"
HARVESTED = "harvested"


def add_leak(labelled: pl.DataFrame, contaminated: pl.DataFrame) -> pl.DataFrame:
    """Return labelled_examples and contaminated_examples as one table.

    Raises:
        InvalidInputError: there is no contaminated example.
    """
    if contaminated.is_empty():
        raise InvalidInputError(
            "reading what a contaminated recipe trains on",
            expected="golden questions with the teacher's answers in labels/contaminated_examples",
            found="no such table, or one without rows",
            next_step="make it with `understudy run --select labels/contaminated_examples`",
        )
    return pl.concat([labelled, contaminated])


def cap_harvested(
    labelled: pl.DataFrame, seed_questions: pl.DataFrame, *, maximum_ratio: float, seed: int
) -> pl.DataFrame:
    """Return the labelled examples with at most this share of harvested ones in the train split.

    What production asks lately would otherwise crowd out what the last student was taught: the new
    one keeps what the old one knew. Which are left out is decided by hash, so that one example more
    never reshuffles the others. Held-out splits stay whole.

    Args:
        labelled: labelled_examples.
        seed_questions: says by `source` which seeds were harvested.
        maximum_ratio: 0-1, of the train split.
        seed: of the draw.
    """
    harvested = seed_questions.filter(pl.col("source") == HARVESTED)["question_id"]
    is_harvested = pl.col("seed_id").is_in(harvested.to_list()) & (pl.col("split") == "train")
    taken = labelled.filter(is_harvested)["example_id"].to_list()
    own = labelled.filter(pl.col("split") == "train").height - len(taken)
    is_capped = own > 0 and maximum_ratio < 1  # a product without seeds of its own replays nothing
    most = int(own * maximum_ratio / (1 - maximum_ratio)) if is_capped else len(taken)
    left_out = sorted(taken, key=lambda name: content_hash(seed, name))[most:]
    return labelled.filter(~pl.col("example_id").is_in(left_out))
