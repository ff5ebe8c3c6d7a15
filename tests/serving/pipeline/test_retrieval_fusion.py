"""From the scores of two searches to one relevance."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.pipeline.fusion import compare, fuse, limit_bm25, merge_candidates, read_vectors

UNIT = st.floats(-1, 1)


def test_candidates_that_both_rankings_have_come_before_those_of_one():
    assert merge_candidates([[5, 1, 2], [9, 2, 5]], limit=9) == [5, 2, 9, 1]
    assert merge_candidates([[5, 1, 2], [9, 2, 5]], limit=2) == [5, 2]
    assert merge_candidates([[3, 1], []], limit=9) == [3, 1]
    assert merge_candidates([[], []], limit=9) == []


def test_of_candidates_that_earn_the_same_the_first_of_the_corpus_comes_first():
    assert merge_candidates([[3, 1], [1, 3]], limit=9) == [1, 3]
    assert merge_candidates([[9], [5], [7]], limit=2) == [5, 7]


@given(st.integers(1, 60), st.integers(0, 40))
def test_a_cosine_does_not_depend_on_where_a_vector_stands(rows, before):
    drawn = np.random.default_rng(rows)
    vectors = drawn.normal(size=(rows, 384)).astype(np.float32)
    question = drawn.normal(size=384).astype(np.float32)
    among = np.concatenate([drawn.normal(size=(before, 384)).astype(np.float32), vectors])
    alone = [compare(vector[None], question)[0] for vector in vectors]
    assert compare(among, question)[before:].tolist() == alone


def test_a_full_match_finds_the_rarest_words_and_long_questions_ask_for_a_smaller_share():
    rarest = 2.2 * math.log(1 + 999.5 / 1.5)
    assert limit_bm25(1000, 5) == pytest.approx(5 * rarest)
    assert limit_bm25(1000, 20) == pytest.approx(10 * rarest)
    assert limit_bm25(1000, 0) == 1.0
    assert limit_bm25(1, 1) > 0


def test_relevance_is_the_mean_of_both_shares():
    found = fuse(np.array([0.6, 0.2, -0.5]), np.array([0.0, 5.0, 20.0]), limit=10.0)
    assert found.tolist() == pytest.approx([0.3, 0.35, 0.5])


@given(st.lists(st.tuples(UNIT, st.floats(0, 1e4)), min_size=1), st.floats(0.1, 1e4))
def test_relevance_is_0_to_1_and_no_better_score_lowers_it(pairs, limit):
    cosines, bm25 = (np.array(column) for column in zip(*pairs, strict=True))
    relevance = fuse(cosines, bm25, limit=limit)
    assert ((relevance >= 0) & (relevance <= 1)).all()
    assert (fuse(cosines + 0.1, bm25 * 1.1, limit=limit) >= relevance - 1e-9).all()


@given(st.lists(UNIT, min_size=2, max_size=2), st.integers(0, 3))
def test_a_relevance_does_not_depend_on_what_else_was_found(scores, more):
    alone = fuse(np.array(scores[:1]), np.array([3.0]), limit=10.0)
    among = fuse(np.array(scores[:1] + [0.9] * more), np.array([3.0] + [9.0] * more), limit=10.0)
    assert among[0] == alone[0]


def unit(*rows: tuple[float, float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


QUESTION = unit((1, 0))[0]


def test_a_chunk_of_one_window_alone_on_its_page_has_one_cosine():
    best, nearness = read_vectors(QUESTION, [unit((0.6, 0.8))], unit((0.6, 0.8)))
    assert best.tolist() == pytest.approx([0.6])
    assert nearness.tolist() == pytest.approx([0.6])


def test_the_best_window_and_the_page_count_half_each():
    windows = [unit((0, 1), (0.8, 0.6)), unit((0.8, 0.6)), unit((0.8, 0.6))]
    pages = unit((0.6, 0.8), (0.6, 0.8), (-1, 0))
    best, nearness = read_vectors(QUESTION, windows, pages)
    assert best.tolist() == pytest.approx([0.8, 0.8, 0.8])
    assert nearness.tolist() == pytest.approx([0.7, 0.7, -0.1])


def test_a_page_without_a_direction_is_near_to_nothing():
    _, nearness = read_vectors(QUESTION, [unit((1, 0), (-1, 0))], unit((0, 0)))
    assert nearness.tolist() == [0.5]
