"""Weighted estimates: what the logs of a router say about all questions."""

import numpy as np
import polars as pl
import pytest

from assets.monitoring.propensity import (
    estimate_weighted,
    measure_unbiased,
    select_explored,
)
from serving.errors import InvalidInputError


def log_traffic(count: int, seed: int):
    """Let a router prefer the student for easy questions, by known chances.

    The student fails a question as often as it is hard, the truth over all questions being 1/2.
    """
    chance = np.random.default_rng(seed)
    hardness = chance.random(count)
    propensity = np.clip(1 - hardness, 0.1, 0.9)
    is_student = chance.random(count) < propensity
    failed = (chance.random(count) < hardness)[is_student]
    return failed.astype(float), propensity[is_student]


def test_weighting_undoes_the_routers_choice_where_the_naive_mean_does_not():
    failed, propensity = log_traffic(20_000, seed=3)
    found = estimate_weighted("student", failed, propensity)
    assert found.naive < 0.40
    assert found.weighted.lower < 0.5 < found.weighted.upper
    assert found.weighted.value == pytest.approx(0.5, abs=0.02)
    assert found.is_conclusive
    assert found.effective_count < found.row_count


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    covered = 0
    for seed in range(100):
        failed, propensity = log_traffic(600, seed=seed)
        found = estimate_weighted("student", failed, propensity)
        covered += found.weighted.lower <= 0.5 <= found.weighted.upper
    assert covered >= 88  # binomial(100, 0.95) falls below with probability 0.002


def test_equal_chances_change_nothing():
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    found = estimate_weighted("teacher", values, [0.02] * 5)
    assert found.weighted.value == pytest.approx(found.naive)
    assert found.effective_count == pytest.approx(5)
    assert not found.is_conclusive


@pytest.mark.parametrize(
    ("values", "propensities"), [([], []), ([1.0], [0.0]), ([1.0], [1.5]), ([1.0], [0.5, 0.5])]
)
def test_what_is_no_chance_is_an_error(values, propensities):
    with pytest.raises(InvalidInputError, match=r"each in \(0, 1\]"):
        estimate_weighted("student", values, propensities)


def test_only_what_chance_decided_is_selected_and_a_fallback_counts_for_who_was_asked_first():
    rows = [
        ("default", "rule", 0.98, ["student"]),
        ("explore", "explore", 0.02, ["teacher"]),
        ("low_confidence", "fallback", 0.98, ["student", "teacher"]),
        ("low_retrieval", "rule", 1.0, ["teacher"]),
        ("default", "shadow", 1.0, ["teacher"]),
        ("default", "rule", 0.98, []),
    ]
    records = pl.DataFrame(
        {
            "route_reason": [row[0] for row in rows],
            "selection_mode": [row[1] for row in rows],
            "propensity": [row[2] for row in rows],
            "attempts": [[{"role": role} for role in row[3]] for row in rows],
        },
        schema_overrides={"attempts": pl.List(pl.Struct({"role": pl.String}))},
    )
    chosen = select_explored(records)
    assert chosen["asked_first"].to_list() == ["student", "teacher", "student"]


def test_served_traffic_shows_each_model_with_the_routers_choice_undone(quiet):
    shown = {(m.metric, m.slice): m for m in measure_unbiased(quiet.asks)}
    assert {name for _, name in shown} <= {"asked_first=student", "asked_first=teacher"}
    refused = shown["refused_share_weighted", "asked_first=student"]
    explored = select_explored(quiet.asks).filter(pl.col("asked_first") == "student")
    assert refused.n == explored["refused"].count() > 0
    assert f"naive {explored['refused'].mean():.3f}" in refused.detail
    assert refused.lower <= refused.number <= refused.upper
    assert {m.outcome for m in shown.values()} == {"shown"}


def test_without_exploration_there_is_nothing_to_show(quiet):
    assert measure_unbiased(quiet.asks.clear()) == []
