"""Monitoring judges agreement in shadow, and clusters of disagreement, by the gate's limits."""

from dataclasses import replace

import polars as pl
import pytest

from assets import tables
from assets.monitoring.agreement import measure_agreement
from assets.monitoring.clusters import judge_clusters, read_clusters
from assets.monitoring.measurements import MonitoringPlan, tabulate_measurements
from orchestration.bindings import Bindings
from orchestration.config import load_config
from serving.home import Home
from serving.models.protocols import NoProgress
from tests.assets.monitoring.weeks import START, WEEK

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
