"""Confidence: the formula against numpy and sums by hand, and the threshold that is in force."""

import math

import numpy as np
import pytest

from serving.models.protocols import Completion, Hit
from serving.pipeline.confidence import (
    SIGNALS,
    ConfidenceCalibration,
    RiskThreshold,
    estimate_confidence,
    find_logit,
    interpolate,
    read_signals,
    squash,
)

SIGNS = {"minimum_citation_logprob": -0.5, "first_margin": 2.0, "mean_margin": 1.5}


def make_calibration(**changes) -> ConfidenceCalibration:
    fields = {
        "adapter_sha256": "a" * 64, "engine": "local", "dtype": "float32", "method": "platt",
        "case_count": 60, "signals": ("raw_logit", "retrieval_score"), "means": (1.0, 0.5),
        "scales": (2.0, 0.1), "weights": (0.4, 1.0), "intercept": -0.2,
    }  # fmt: skip
    return ConfidenceCalibration(**(fields | changes))


def complete(**changes) -> Completion:
    fields = {
        "text": "x", "model": "s", "prompt_tokens": 1, "completion_tokens": 1,
        "finish_reason": "stop", "latency_ms": 1.0, "mean_logprob": -0.1, "signs": SIGNS,
    }  # fmt: skip
    return Completion(**(fields | changes))


def hit(score: float) -> Hit:
    return Hit(chunk_id="docs:a/1", content_hash="h", text="t", title="A", url="/", score=score)


def test_the_confidence_is_the_logistic_function_of_the_weighted_standardised_signals():
    found = estimate_confidence({"raw_logit": 3.0, "retrieval_score": 0.7}, make_calibration())
    assert found == pytest.approx(1 / (1 + math.exp(-(-0.2 + 0.4 * 1.0 + 1.0 * 2.0))))


def test_a_signal_that_the_engine_does_not_report_leaves_the_confidence_unknown():
    assert estimate_confidence({"retrieval_score": 0.7}, make_calibration()) is None
    constant = make_calibration(
        method="constant", signals=(), means=(), scales=(), weights=(), intercept=math.log(3)
    )
    assert estimate_confidence({}, constant) == pytest.approx(0.75)


def test_knots_are_joined_by_straight_lines_as_numpy_joins_them():
    knots = ((-2.0, 0.1), (0.0, 0.4), (0.0, 0.5), (3.0, 0.9))
    scores = [-9.0, -2.0, -1.3, -1e-12, 1.7, 3.0, 8.0]
    xs, ys = zip(*knots, strict=True)
    assert [interpolate(s, knots) for s in scores] == pytest.approx(np.interp(scores, xs, ys))
    calibration = make_calibration(method="isotonic", knots=knots)
    signals = {"raw_logit": 1.0, "retrieval_score": 0.5}  # both at their means: the intercept
    assert estimate_confidence(signals, calibration) == pytest.approx(interpolate(-0.2, knots))


@pytest.mark.parametrize("score", [-800.0, -3.0, 0.0, 3.0, 800.0])
def test_squashing_never_overflows(score):
    assert squash(score) == pytest.approx(0.5 * (1 + math.tanh(score / 2)))


def test_the_logit_of_the_mean_logprob_is_that_of_its_probability_and_has_a_bound():
    assert squash(find_logit(-0.1)) == pytest.approx(math.exp(-0.1))
    assert find_logit(0.0) == find_logit(-1e-9) == pytest.approx(13.8, abs=0.1)


def test_every_signal_is_read_from_the_answer_and_what_was_retrieved():
    found = read_signals(complete(), (hit(0.5), hit(0.8), hit(0.7)), is_refusal=False)
    assert tuple(sorted(found)) == tuple(sorted(SIGNALS))
    assert found["retrieval_score"] == 0.8
    assert found["retrieval_margin"] == pytest.approx(0.1)
    assert (found["citation_logprob"], found["first_margin"], found["mean_margin"]) == (
        -0.5, 2.0, 1.5,
    )  # fmt: skip


def test_a_refusal_and_an_engine_without_logprobs_give_what_they_have():
    refusal = complete(signs=SIGNS | {"minimum_citation_logprob": None})
    found = read_signals(refusal, (), is_refusal=True)
    assert (found["citation_logprob"], found["retrieval_score"], found["is_refusal"]) == (0, 0, 1)
    assert set(read_signals(complete(signs=None), (), is_refusal=False)) == {
        "retrieval_score", "retrieval_margin", "is_refusal",
    }  # fmt: skip


def test_the_threshold_in_force_is_that_of_the_largest_limit_within_the_risk():
    rows = (
        RiskThreshold(risk_limit_ratio=0.05, threshold=None),
        RiskThreshold(risk_limit_ratio=0.10, threshold=0.8),
        RiskThreshold(risk_limit_ratio=0.20, threshold=0.5),
    )
    calibration = make_calibration(thresholds=rows)
    asked = (None, 0.05, 0.10, 0.19, 0.2, 1.0)
    assert [calibration.find_threshold(limit) for limit in asked] == [
        None, None, 0.8, 0.8, 0.5, 0.5,
    ]  # fmt: skip


def test_the_threshold_of_a_smaller_risk_does_not_stand_in_for_one_that_was_not_certified():
    """Whoever takes the best of several tests at 5 % each is wrong more often than 5 %."""
    rows = (
        RiskThreshold(risk_limit_ratio=0.30, threshold=None),
        RiskThreshold(risk_limit_ratio=0.05, threshold=0.2),
        RiskThreshold(risk_limit_ratio=0.10, threshold=0.8),
    )
    calibration = make_calibration(thresholds=rows)
    asked = (0.30, 0.29, 0.09, 0.01)
    assert [calibration.find_threshold(limit) for limit in asked] == [None, 0.8, 0.2, None]


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": (1.0,)},
        {"scales": (1.0, 0.0)},
        {"signals": ("raw_logit", "mood")},
    ],
)
def test_a_calibration_whose_parts_do_not_fit_is_refused(changes):
    with pytest.raises(ValueError, match="expected"):
        make_calibration(**changes)
