"""Monitoring judges agreement in shadow, and clusters of disagreement, by the gate's limits."""

from dataclasses import replace
from datetime import timedelta

import polars as pl
import pytest

from assets import tables
from assets.monitoring.agreement import measure_agreement
from assets.monitoring.clusters import judge_clusters, read_clusters
from assets.monitoring.measurements import MonitoringPlan, tabulate_measurements
from assets.monitoring.traffic import split_traffic
from orchestration.bindings import Bindings
from orchestration.config import load_config
from serving.home import Home
from serving.models.protocols import NoProgress
from tests.assets.monitoring.weeks import START, WEEK
from tests.assets.releases.test_shadow import UNTIL, answer_twice

KIND = {"question_count": 6, "asked_count": 7, "p_value": 1e-6, "medoid_trace_id": "t",
        "is_registered": False}  # fmt: skip
CLUSTERS = pl.DataFrame([KIND], schema_overrides=tables.DISAGREEMENT_CLUSTERS)


def find(traffic, metric, **limits):
    found = measure_agreement(traffic, MonitoringPlan(**limits))
    return next(m for m in found if m.metric == metric and m.outcome != "shown")


def test_the_plan_has_the_limits_of_the_configured_gate():
    config = load_config({})
    limits = {
        "minimum_agreement_ratio": 0.8,
        "minimum_agreement_pairs": 70,
        "unregistered_cluster_cases": 9,
    }
    gates = config.gates.model_copy(update=limits)
    plan = Bindings(config.model_copy(update={"gates": gates}), NoProgress()).monitoring_plan
    assert {name: getattr(plan, name) for name in limits} == limits


def test_agreement_is_measured_by_the_limits_of_the_plan(quiet):
    assert find(quiet, "agreement").outcome == "within"
    assert find(quiet, "agreement", minimum_agreement_ratio=0.9999).limit == 0.9999
    assert find(quiet, "agreement", minimum_agreement_ratio=0.9999).outcome != "within"
    for metric in ("agreement", "agreement_fall"):
        found = find(quiet, metric, minimum_agreement_pairs=100_000)
        assert found.outcome == "inconclusive"
        assert "100000" in found.detail


@pytest.mark.parametrize("ratio", [0.0, 0.03, 1.0])
def test_a_limit_that_leaves_no_odds_leaves_the_sequential_test_open(quiet, ratio):
    found = find(quiet, "agreement_sprt", minimum_agreement_ratio=ratio)
    assert found.outcome == "inconclusive"
    assert "no odds to compare" in found.detail


@pytest.mark.parametrize(("cases", "outcome"), [(6, "past"), (7, "within")])
def test_so_many_of_one_kind_as_the_plan_says_are_too_many(quiet, cases, outcome):
    plan = replace(MonitoringPlan(), unregistered_cluster_cases=cases)
    rows = tabulate_measurements(
        "shadow_agreement", measure_agreement(quiet, plan), start=START, end=START + WEEK
    )
    found = judge_clusters(CLUSTERS, rows, plan)
    assert (found.outcome, found.limit) == (outcome, cases - 1)


def test_the_last_table_is_read_and_one_of_another_version_says_nothing(tmp_path):
    home = Home(tmp_path)
    assert read_clusters(home) is None
    path = home.table("monitoring/disagreement_clusters")
    path.parent.mkdir(parents=True)
    made = tables.DISAGREEMENT_CLUSTERS.to_frame()
    made.write_parquet(path)
    assert made.equals(read_clusters(home))
    made.drop("p_value").write_parquet(path)
    assert read_clusters(home) is None


@pytest.mark.parametrize("last", [("tiny@1",), ("tiny@1", "compact@1")])
def test_two_students_asked_in_turn_are_measured_together(last):
    """A larger one that is often wrong is not hidden by a smaller one that never is."""
    turns = [("tiny@1",), ("tiny@1", "compact@1")]
    rows = []
    for number in range(2002):
        asked = turns[number % 2] if number else last
        old = ("tiny@0", "compact@1")
        agrees = len(asked) == 1 or number % 10 == 1
        age = timedelta(minutes=10 * number)
        for who, count, moved in ((asked, number, age), (old, number + 9000, age + 2 * WEEK)):
            rows += answer_twice(count, agrees=agrees, student=who[-1], asked=who, age=moved)
    frame = pl.DataFrame(rows, schema=tables.STORED_TRACES).with_columns(
        conversation=pl.coalesce("conversation_id", "trace_id"), topic=pl.lit("t")
    )
    start = UNTIL - 4 * WEEK
    traffic = split_traffic(frame, start=start, end=UNTIL, before_start=start - 4 * WEEK)
    found = find(traffic, "agreement")
    assert found.outcome == "past"
    assert found.n is not None
    assert found.n > 1900
    assert "pairs of tiny@1, then compact@1" in found.detail
    assert " 0 before of tiny@1" in find(traffic, "agreement_fall").detail
