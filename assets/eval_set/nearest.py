"""The nearest eval case of every vector: one blocked matrix product, exact, in flat memory.

Belongs here: products of unit vectors and their row maxima. Does not belong here: limits and
verdicts (`guard`), texts (`overlap`), embedding.
"""

import os
import threading
from collections.abc import Iterator
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
TILE_ROWS = 2048
TILE_CASES = 2048
"""One product is at most 2048 x 2048 float32 = 16 MiB a thread, whatever the pool and the set:
small enough that row maxima find it in the cache, large enough for BLAS."""
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

    As many threads as there are cores take tile after tile, each with BLAS on one: a product this
    small would spend its time waiting for BLAS's own threads, and the row maxima would keep one
    core idle. A core that others use as well simply takes fewer tiles.

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
    nearest = NearestCases(
        rows=np.empty(len(vectors), dtype=np.intp),
        cosines=np.empty(len(vectors), dtype=np.result_type(vectors, case_vectors)),
    )
    starts = iter(range(0, len(vectors), TILE_ROWS))  # shared: who is free takes the next
    threads = min(os.cpu_count() or 1, MAXIMUM_THREADS)
    with (
        _BLAS_LOCK,
        _find_blas().limit(limits=1, user_api="blas"),
        ThreadPoolExecutor(threads) as pool,
    ):
        work = [
            pool.submit(_compare_tiles, starts, vectors, case_vectors, nearest)
            for _ in range(threads)
        ]
        for done in work:
            done.result()
    return nearest


def check_unit_length(vectors: Vectors, name: str) -> None:
    """Refuse vectors whose product is no cosine: NaN, infinite, zero, not normalised.

    Raises:
        InvalidInputError: with their count, and the length of the first.
    """
    squares = np.vecdot(vectors, vectors)
    least, most = (1.0 - UNIT_TOLERANCE) ** 2, (1.0 + UNIT_TOLERANCE) ** 2
    if not len(squares) or (squares.min() >= least and squares.max() <= most):  # false of NaN
        return
    wrong = np.flatnonzero(~((squares >= least) & (squares <= most)))
    raise InvalidInputError(
        f"comparing {name} vectors by cosine",
        expected="finite vectors of length 1",
        found=f"{len(wrong)} of {len(vectors)} that are not, the first of length "
        f"{np.sqrt(squares[wrong[0]])}",
        next_step="embed them again with an embedder that normalises",
    )


def _compare_tiles(
    starts: Iterator[int], vectors: Vectors, case_vectors: Vectors, nearest: NearestCases
) -> None:
    """Fill the rows of `nearest` from each start on, tile by tile through one buffer."""
    firsts = range(0, len(case_vectors), TILE_CASES)
    parts = [case_vectors[first : first + TILE_CASES] for first in firsts]
    size = min(TILE_ROWS, len(vectors)) * len(parts[0])
    buffer = np.empty(size, dtype=nearest.cosines.dtype)
    row_starts = {len(cases): np.arange(0, size, len(cases)) for cases in parts}
    for start in starts:
        block = vectors[start : start + TILE_ROWS]
        check_unit_length(block, "candidate")
        best = nearest.cosines[start : start + TILE_ROWS]
        best_rows = nearest.rows[start : start + TILE_ROWS]
        for first, cases in zip(firsts, parts, strict=True):
            product = buffer[: len(block) * len(cases)].reshape(len(block), len(cases))
            np.matmul(block, cases.T, out=product)
            places = product.argmax(axis=1)
            found = product.ravel().take(places + row_starts[len(cases)][: len(block)])
            if first == 0:
                best[:], best_rows[:] = found, places
                continue
            nearer = found > best
            np.copyto(best, found, where=nearer)
            np.copyto(best_rows, places + first, where=nearer)


@lru_cache(maxsize=1)
def _find_blas() -> "ThreadpoolController":
    """Find the loaded BLAS once: looking for it takes longer than a small comparison."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
