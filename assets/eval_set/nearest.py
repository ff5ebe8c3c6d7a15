"""The nearest eval case of every vector: one blocked matrix product, exact, in flat memory.

Belongs here: products of unit vectors and their row maxima. Does not belong here: limits and
verdicts (`guard`), texts (`overlap`), embedding.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from serving.errors import InvalidInputError
from serving.models.protocols import Vectors

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

UNIT_TOLERANCE = 1e-3  # how far a vector's length may be from 1
TILE_ROWS = 4096
TILE_CASES = 1024
"""One product is at most 4096 x 1024 float32 = 16 MiB a thread, whatever the pool and the set."""
MAXIMUM_THREADS = 8
_BLAS_LOCK = threading.Lock()
"""The limit is the process's: of two callers who overlap, the later would note one thread as what
was before, and restore that for good."""


@dataclass(frozen=True, kw_only=True)
class NearestCases:
    """Of n candidates: the row of the nearest case, and the cosine with it. Both [n]."""

    rows: npt.NDArray[np.intp]
    cosines: npt.NDArray[np.floating]


def find_nearest(vectors: Vectors, case_vectors: Vectors) -> NearestCases:
    """Compare every candidate with every case.

    Spans of candidates go to as many threads as there are cores, each with BLAS on one: a product
    this small would spend its time waiting for BLAS's own threads, and the row maxima would keep
    one core idle.

    Args:
        vectors: [n, d] candidates of unit length.
        case_vectors: [m, d] cases of unit length, m > 0.

    Raises:
        InvalidInputError: there is no case, the dimensions differ, or a candidate is not finite or
            not of unit length: the product would be no cosine.
    """
    if not len(case_vectors) or vectors.shape[1:] != case_vectors.shape[1:]:
        raise InvalidInputError(
            "comparing questions with the eval set",
            expected=f"cases with vectors of shape {vectors.shape[1:]}, as the candidates have",
            found=f"{len(case_vectors)} cases of shape {case_vectors.shape[1:]}",
            next_step="rebuild eval_set/eval_embeddings with the embedder of this run",
        )
    rows = np.zeros(len(vectors), dtype=np.intp)
    cosines = np.full(len(vectors), -np.inf, dtype=np.result_type(vectors, case_vectors))
    threads = min(os.cpu_count() or 1, MAXIMUM_THREADS)
    spans = np.linspace(0, len(vectors), threads + 1, dtype=int)

    def compare(thread: int) -> None:
        span = slice(spans[thread], spans[thread + 1])
        _compare_span(vectors[span], case_vectors, rows[span], cosines[span])

    with (
        _BLAS_LOCK,
        _find_blas().limit(limits=1, user_api="blas"),
        ThreadPoolExecutor(threads) as pool,
    ):
        list(pool.map(compare, range(threads)))
    return NearestCases(rows=rows, cosines=cosines)


def check_unit_length(vectors: Vectors, name: str) -> None:
    """Refuse vectors whose product is no cosine: NaN, infinite, zero, not normalised.

    Raises:
        InvalidInputError: with their count, and the length of the first.
    """
    squares = np.vecdot(vectors, vectors)
    is_unit = np.abs(np.sqrt(squares) - 1.0) <= UNIT_TOLERANCE  # false of NaN and infinity
    if is_unit.all():
        return
    wrong = np.flatnonzero(~is_unit)
    raise InvalidInputError(
        f"comparing {name} vectors by cosine",
        expected="finite vectors of length 1",
        found=f"{len(wrong)} of {len(vectors)} that are not, the first of length "
        f"{np.sqrt(squares[wrong[0]])}",
        next_step="embed them again with an embedder that normalises",
    )


def _compare_span(
    vectors: Vectors,
    case_vectors: Vectors,
    rows: npt.NDArray[np.intp],
    cosines: npt.NDArray[np.floating],
) -> None:
    """Fill `rows` and `cosines`, which come as 0 and -inf, tile by tile through one buffer."""
    width = min(TILE_CASES, len(case_vectors))
    buffer = np.empty(min(TILE_ROWS, len(vectors)) * width, dtype=cosines.dtype)
    for start in range(0, len(vectors), TILE_ROWS):
        block = vectors[start : start + TILE_ROWS]
        check_unit_length(block, "candidate")
        best, best_rows = cosines[start : start + TILE_ROWS], rows[start : start + TILE_ROWS]
        for first in range(0, len(case_vectors), width):
            cases = case_vectors[first : first + width]
            product = buffer[: len(block) * len(cases)].reshape(len(block), len(cases))
            np.matmul(block, cases.T, out=product)
            nearest = product.argmax(axis=1)
            found = product.ravel().take(nearest + np.arange(0, product.size, len(cases)))
            nearer = found > best
            np.copyto(best, found, where=nearer)
            np.copyto(best_rows, nearest + first, where=nearer)


@lru_cache(maxsize=1)
def _find_blas() -> "ThreadpoolController":
    """Find the loaded BLAS once: looking for it takes longer than a small comparison."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
