"""The nearest case: the same as by one whole product, whatever the tiles and threads."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from assets.eval_set import nearest
from assets.eval_set.nearest import find_nearest
from serving.errors import InvalidInputError


def unit_rows(count: int, seed: int, dimension: int = 8) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 40),
    cases=st.integers(1, 25),
    tile_rows=st.integers(1, 9),
    tile_cases=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_tiles_do_not_change_the_nearest_case(count, cases, tile_rows, tile_cases, seed):
    pool, golden = unit_rows(count, seed), unit_rows(cases, seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "TILE_ROWS", tile_rows)
        patch.setattr(nearest, "TILE_CASES", tile_cases)
        found = find_nearest(pool, golden)
    whole = (pool.astype(np.float64) @ golden.T.astype(np.float64)).reshape(count, cases)
    assert found.cosines == pytest.approx(whole.max(axis=1), abs=1e-6)
    assert whole[np.arange(count), found.rows] == pytest.approx(whole.max(axis=1), abs=1e-6)


def test_equally_near_cases_give_the_first():
    case = unit_rows(1, 3)
    found = find_nearest(case, np.repeat(case, 5, axis=0))
    assert found.rows.tolist() == [0]


def test_a_bad_vector_is_refused_in_whatever_tile_it_lies(monkeypatch):
    monkeypatch.setattr(nearest, "TILE_ROWS", 4)
    pool = unit_rows(30, 1)
    pool[29, 3] = np.nan
    with pytest.raises(InvalidInputError, match="not, the first of length nan"):
        find_nearest(pool, unit_rows(3, 2))


@pytest.mark.parametrize("cases", [np.zeros((0, 8)), unit_rows(2, 1, dimension=7)])
def test_cases_of_another_embedder_are_refused(cases):
    with pytest.raises(InvalidInputError, match="rebuild eval_set/eval_embeddings"):
        find_nearest(unit_rows(3, 1), cases.astype(np.float32))


def blas_threads() -> list[int]:
    return [found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"]


def test_callers_who_overlap_wait_and_blas_has_its_threads_back(monkeypatch):
    compare, running, seen_together = nearest._compare_tiles, [], set()

    def watch(starts, vectors, case_vectors, found):
        running.append(id(case_vectors))
        seen_together.add(len(set(running)))
        time.sleep(0.01)
        compare(starts, vectors, case_vectors, found)
        running.remove(id(case_vectors))

    monkeypatch.setattr(nearest, "_compare_tiles", watch)
    cases = [unit_rows(3, caller) for caller in range(4)]
    with threadpool_limits(limits=2, user_api="blas"), ThreadPoolExecutor(4) as callers:
        before = blas_threads()
        assert len(list(callers.map(lambda own: find_nearest(unit_rows(10, 1), own), cases))) == 4
        assert blas_threads() == before
    assert seen_together == {1}


def test_blas_has_its_threads_back_afterwards():
    before = blas_threads()
    find_nearest(unit_rows(10, 1), unit_rows(3, 2))
    with pytest.raises(InvalidInputError):
        find_nearest(np.zeros((3, 8), dtype=np.float32), unit_rows(3, 2))
    assert blas_threads() == before
