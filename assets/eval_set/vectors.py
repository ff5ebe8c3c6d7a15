"""The vectors of eval_set/eval_embeddings, read to be compared with an embedder's.

Belongs here: reading them, and refusing another embedder's. Does not belong here: what a cosine
decides (`guard`, `assets/parity/behaviours`), products of vectors (`nearest`).
"""

import numpy as np
import polars as pl

from serving.errors import InvalidInputError
from serving.models.protocols import Embedder, Vectors


def read_vectors(eval_embeddings: pl.DataFrame, *, embedder: Embedder) -> Vectors:
    """Return the [m, d] vectors of eval_embeddings, to be compared with vectors of `embedder`.

    Raises:
        InvalidInputError: another embedder made them. Vectors of equal length multiply whoever made
            them, so nothing else would tell: every cosine would be noise, no question near a case.
    """
    made_by = eval_embeddings["embedder_fingerprint"].unique().sort().to_list()
    if eval_embeddings.height and made_by != [embedder.fingerprint]:
        raise InvalidInputError(
            "comparing questions with eval_set/eval_embeddings",
            expected=f"vectors of this run's embedder, {embedder.fingerprint}",
            found=f"vectors of {', '.join(map(str, made_by))}",
            next_step="run `understudy run --select eval_set`, then this stage again",
        )
    if eval_embeddings.is_empty():
        return np.zeros((0, 0), dtype=np.float32)
    return np.asarray(eval_embeddings["vector"].to_list(), dtype=np.float32)
