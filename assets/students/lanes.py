"""Lanes: what a student may be trained on. The clean one is guarded; the other, an experiment.

Belongs here: adding what the contaminated lane adds. Does not belong here: making those examples
(`labels/contaminated_examples`), keeping their student from promotion (`releases/gate`).
"""

import polars as pl

from serving.errors import InvalidInputError


def add_leak(labelled: pl.DataFrame, contaminated: pl.DataFrame) -> pl.DataFrame:
    """Return labelled_examples and contaminated_examples as one table.

    Raises:
        InvalidInputError: there is no contaminated example.
    """
    if contaminated.is_empty():
        raise InvalidInputError(
            "building the training set of a contaminated recipe",
            expected="golden questions with the teacher's answers in labels/contaminated_examples",
            found="no such table, or one without rows",
            next_step="make it with `understudy run --select labels/contaminated_examples`",
        )
    return pl.concat([labelled, contaminated])
