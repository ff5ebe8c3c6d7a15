"""The bounds of `bench/fusion_limits.py`, against an example worked out by hand."""

import math

import numpy as np
import pytest

pytest.importorskip("ir_measures", reason="pip install -e .[bench]")

from bench.fusion_limits import OWN, WEIGHTS, Parts, score_weights, state_bounds

JUDGEMENTS = {"q1": {"a": 1}, "q2": {"d": 1}, "q3": {"a": 1, "far": 1}}
BY_WORDS = Parts(
    documents=["b", "a", "c"], nearness=np.array([0.6, 0.4, 0.1]), words=np.array([0.3, 0.4, 0.0])
)
BY_VECTORS = Parts(
    documents=["d", "c", "d"], nearness=np.array([0.6, 0.5, 0.1]), words=np.array([0.0, 0.4, 0.0])
)
PARTS = {"q1": BY_WORDS, "q2": BY_VECTORS, "q3": BY_WORDS}
SECOND = 1 / math.log2(3)
IDEAL = 1 + SECOND  # of two documents


def test_every_weight_is_scored_by_the_order_it_gives():
    scores = score_weights(JUDGEMENTS, PARTS)
    vectors_alone, words_alone = scores[0], scores[-1]
    assert vectors_alone.tolist() == pytest.approx([SECOND, 1.0, SECOND / IDEAL])
    assert words_alone.tolist() == pytest.approx([1.0, SECOND, 1 / IDEAL])
    assert WEIGHTS[OWN] == 0.5
    assert scores[OWN].tolist() == pytest.approx([SECOND, SECOND, SECOND / IDEAL])


def test_bounds_name_what_fusion_can_reach_and_what_no_search_found():
    bounds = state_bounds(JUDGEMENTS, PARTS)
    assert bounds["retriever"]["mean"] == pytest.approx((2 * SECOND + SECOND / IDEAL) / 3)
    assert bounds["best_weight"] > 0.5
    assert bounds["best_weight_scores"] == pytest.approx((1 + SECOND + 1 / IDEAL) / 3)
    assert bounds["best_weight_by_question"] == pytest.approx((2 + 1 / IDEAL) / 3)
    assert bounds["best_order"] == bounds["best_weight_by_question"]
    assert bounds["without_loss"] == 0
    assert (bounds["missed_documents"], bounds["judged_documents"]) == (1, 4)
