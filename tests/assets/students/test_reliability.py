"""Measures of confidences against scikit-learn and against sums by hand."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from assets.students.reliability import (
    bin_answers,
    bootstrap_ece,
    find_risk,
    measure_reliability,
    score_aurc,
    score_brier,
    score_ece,
)

GENERATOR = np.random.default_rng(3)
CONFIDENCES = GENERATOR.random(150)
AGREES = GENERATOR.random(150) < CONFIDENCES**2
FOUR = np.array([0.9, 0.8, 0.7, 0.6])
RIGHT = np.array([True, False, True, False])


def test_brier_is_that_of_scikit_learn():
    assert score_brier(CONFIDENCES, AGREES) == pytest.approx(brier_score_loss(AGREES, CONFIDENCES))


def test_bins_are_the_quantile_bins_of_scikit_learn():
    accuracy, confidence = calibration_curve(AGREES, CONFIDENCES, n_bins=15, strategy="quantile")
    found = bin_answers(CONFIDENCES, AGREES)
    assert [b.accuracy for b in found] == pytest.approx(accuracy)
    assert [b.confidence for b in found] == pytest.approx(confidence)
    assert {b.count for b in found} == {10}
    assert score_ece(CONFIDENCES, AGREES) == pytest.approx(np.abs(accuracy - confidence).mean())


def test_ece_by_hand():
    assert score_ece(FOUR, RIGHT, bins=4) == pytest.approx((0.1 + 0.8 + 0.3 + 0.6) / 4)
    assert score_ece(FOUR, RIGHT, bins=2) == pytest.approx((abs(0.85 - 0.5) + abs(0.65 - 0.5)) / 2)
    assert score_ece(FOUR, RIGHT, bins=1) == pytest.approx(0.25)


def test_risks_and_their_area_by_hand():
    assert [find_risk(FOUR, RIGHT, c) for c in (0.25, 0.5, 0.75, 1.0)] == pytest.approx(
        [0, 1 / 2, 1 / 3, 1 / 2]
    )
    assert find_risk(FOUR, RIGHT, 0.6) == pytest.approx(1 / 3)  # at least so many: three
    assert score_aurc(FOUR, RIGHT) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert score_aurc(FOUR, RIGHT) < score_aurc(1 - FOUR, RIGHT)


def test_equal_confidences_are_one_group_whatever_the_order_of_the_rows():
    constant, agrees = np.full(40, 0.5), np.arange(40) < 30
    shuffled = np.random.default_rng(1).permutation(agrees)
    for rows in (agrees, shuffled):
        assert score_ece(constant, rows) == pytest.approx(0.25)
        assert score_aurc(constant, rows) == pytest.approx(0.25)
        assert find_risk(constant, rows, 0.8) == pytest.approx(0.25)


def test_the_interval_of_the_ece_is_seeded_and_wider_when_seeds_are_few():
    each = [str(n) for n in range(150)]
    tenth = [str(n // 15) for n in range(150)]
    single = bootstrap_ece(CONFIDENCES, AGREES, each, resamples=200)
    assert single == bootstrap_ece(CONFIDENCES, AGREES, each, resamples=200)
    agrees = np.repeat(np.arange(10) % 2 == 0, 15)  # a seed is right or wrong as a whole
    narrow = bootstrap_ece(CONFIDENCES, agrees, each, resamples=200)
    wide = bootstrap_ece(CONFIDENCES, agrees, tenth, resamples=200)
    assert wide[1] - wide[0] > narrow[1] - narrow[0]


def test_everything_is_measured_at_once():
    measured = measure_reliability(FOUR, RIGHT, ["a", "b", "c", "d"])
    assert measured["brier"] == score_brier(FOUR, RIGHT)
    assert measured["ece_lower"] <= measured["ece_upper"]
    assert measured["risk_at_80"] == find_risk(FOUR, RIGHT, 0.8)
