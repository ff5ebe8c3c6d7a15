"""The same question again: texts so near that a second one teaches nothing.

Belongs here: what counts as a repetition among training questions, one answer for harvested seeds
and for paraphrases. Does not belong here: equal texts (`fold_text`), nearness to the eval set
(`eval_set/guard`), whose limit protects something else and is far lower.
"""

import numpy as np
import numpy.typing as npt

from serving.models.protocols import Vectors

NEAR_DUPLICATE_COSINE = 0.99  # at or above: dropped as the same question
"""Read off samples of 501 rewordings of this repository's seeds (MiniLM): pairs from 0.99 differed
in a greeting, a "Thanks!", capitals or one synonym; from just below it on there are other question
forms and typos, the variety that paraphrases are bought for."""

CLUSTER_COSINE = 0.9  # at or above: the same matter in other words
MAXIMUM_CLUSTER_ROWS = 3  # of harvested seeds about one matter; whoever floods teaches no more

BLOCK_ROWS = 512
"""Rows compared at once: 512 x 60,000 float32 are 120 MB."""


def mark_near_duplicates(
    vectors: Vectors, *, known_count: int, limit: float = NEAR_DUPLICATE_COSINE
) -> npt.NDArray[np.bool_]:
    """Say of each row whether an earlier row that stays is as near as `limit` or nearer.

    Greedy in row order, so what is appended never changes the verdict on what was there before.

    Args:
        vectors: [n, d] unit vectors.
        known_count: the first rows, which stay whatever they are near to.
        limit: cosine at or above which the later of two rows is a duplicate.

    Returns:
        [n] flags; memory is `BLOCK_ROWS` x n.
    """
    is_duplicate = np.zeros(len(vectors), dtype=np.bool_)
    for start in range(known_count, len(vectors), BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, len(vectors))
        near = vectors[start:stop] @ vectors[:stop].T >= limit
        for row in range(start, stop):
            earlier = np.flatnonzero(near[row - start, :row])
            is_duplicate[row] = bool((~is_duplicate[earlier]).any())
    return is_duplicate


def mark_crowded(
    vectors: Vectors, *, limit: float = CLUSTER_COSINE, maximum_rows: int = MAXIMUM_CLUSTER_ROWS
) -> npt.NDArray[np.bool_]:
    """Say of each row whether `maximum_rows` earlier rows that stay are as near as `limit`.

    Greedy in row order, like `mark_near_duplicates`.
    """
    is_crowded = np.zeros(len(vectors), dtype=np.bool_)
    for start in range(0, len(vectors), BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, len(vectors))
        near = vectors[start:stop] @ vectors[:stop].T >= limit
        for row in range(start, stop):
            earlier = np.flatnonzero(near[row - start, :row])
            is_crowded[row] = int((~is_crowded[earlier]).sum()) >= maximum_rows
    return is_crowded
