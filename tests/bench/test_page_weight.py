"""Choosing the weight of the page: by the other sets, never by the one it is scored on."""

import numpy as np
import pytest

pytest.importorskip("ir_measures", reason="pip install -e .[bench]")

from bench.page_weight import WEIGHTS, choose_without, leave_out


def make_scores(**best: int) -> dict[str, np.ndarray]:
    """Return sets of two questions that score 0.2, and 0.6 and 0.8 with their best weight."""
    scores = {name: np.full((len(WEIGHTS), 2), 0.2) for name in best}
    for name, weight in best.items():
        scores[name][weight] = 0.6, 0.8
    return scores


def test_the_set_left_out_has_no_say():
    scores = make_scores(a=1, b=4, c=4)
    assert choose_without(["a"], scores) == 4
    assert choose_without(["b", "c"], scores) == 1
    found = leave_out("a", ["a"], scores)
    assert (found["weight"], found["score"]) == (WEIGHTS[4], 0.2)
    assert found["gain"]["mean"] == 0.0
    found = leave_out("b", ["b"], make_scores(a=4, b=4, c=4))
    assert found["score"] == pytest.approx(0.7)
    assert found["gain"]["mean"] == pytest.approx(0.5)
