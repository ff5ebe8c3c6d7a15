"""What `understudy status` says of a home that curation has worked in."""

import json
import os
from datetime import timedelta

import dagster as dg
import polars as pl
import pytest
from typer.testing import CliRunner

from orchestration import cli
from orchestration.sensors.deciding import GiveUp, Wait
from orchestration.status import TrafficStatus, find_problems, read_status
from tests.assets.traces.served import START
from tests.orchestration.sensors.curated import (
    accept,
    choose_rows,
    read_records,
    report_student,
    write_curated,
)

QUIET = TrafficStatus(
    ask_count=0, failed_ratio=None, teacher_ratio=None, refused_ratio=None, cost_usd=0.0,
    teacher_only_cost_usd=0.0, last_asked_at=None,
)  # fmt: skip
NOW = START + timedelta(days=2)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    made = write_curated(tmp_path_factory.mktemp("status"), minimum_teacher_traces=30)
    accept(made, choose_rows(made, "teacher")[:11])
    return made


@pytest.fixture
def found(config):
    with dg.instance_for_test() as instance:
        report_student(instance)
        yield read_status(config, instance, now=NOW)


def test_traffic_and_cost_are_those_of_the_records(config, found):
    records = read_records(config).filter(pl.col("selection_mode") != "shadow")
    traffic = found.traffic
    assert traffic.ask_count == records.height > 100
    answered = records.filter(pl.col("outcome") == "answered")
    assert traffic.teacher_ratio == pytest.approx((answered["served_by"] == "teacher").mean())
    assert traffic.cost_usd == pytest.approx(records["cost_usd"].sum())
    saved = 1 - records["cost_usd"].sum() / records["counterfactual_cost_usd"].sum()
    assert traffic.saved_ratio == pytest.approx(saved)
    assert traffic.last_asked_at == records["asked_at"].max()


def test_it_says_what_the_next_training_waits_for_and_that_nothing_is_released(found):
    assert "11 of 30 curated teacher traces" in found.retraining
    assert not found.is_retraining_due
    assert found.release is None
    assert found.phases[1].missing == ("a release with a student",)
    assert found.problems == ("nothing is released: `understudy run`",)


def test_old_traffic_is_out_of_the_window(config):
    with dg.instance_for_test() as instance:
        later = read_status(config, instance, now=NOW + timedelta(days=30))
    assert later.traffic.ask_count == 0
    assert later.traffic.saved_ratio is None


def test_alarms_failures_and_used_up_attempts_each_ask_for_a_person():
    failing = TrafficStatus(**vars(QUIET) | {"ask_count": 100, "failed_ratio": 0.05})
    waiting, over = Wait(reason="w"), GiveUp(reason="3 of 3")
    assert find_problems(None, QUIET, alarms=(), decision=waiting) != ()
    told = find_problems(None, failing, alarms=("traffic_drift",), decision=over)
    assert [word for word in ("released", "5.0%", "traffic_drift", "3 of 3") if
            not any(word in line for line in told)] == []  # fmt: skip


def test_the_command_prints_both_ways_and_exits_1_when_a_person_is_needed(config, monkeypatch):
    before = dict(os.environ)
    monkeypatch.setenv("UNDERSTUDY_CONFIG", str(config.source))
    monkeypatch.setenv("UNDERSTUDY_HOME", str(config.home))
    runner = CliRunner()
    try:
        shown = runner.invoke(cli.app, ["status"])
        told = runner.invoke(cli.app, ["status", "--json"])
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert (shown.exit_code, told.exit_code) == (1, 1)
    assert "needs a person" in shown.output
    assert "first student" in shown.output
    body = json.loads(told.stdout)
    assert body["is_fine"] is False
    assert body["traffic"]["ask_count"] >= 0
