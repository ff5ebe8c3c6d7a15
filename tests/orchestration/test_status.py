"""What `understudy status` says of a home that curation has worked in."""

import asyncio
import json
import os
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from typer.testing import CliRunner

from orchestration import cli
from orchestration.curate_cli import compact
from orchestration.production_traffic import TrafficStatus, count_unsealed, read_traffic
from orchestration.sensors.deciding import GiveUp, Wait
from orchestration.status import (
    NO_TRAFFIC,
    Reading,
    find_cold_servers,
    find_problems,
    read_status,
)
from orchestration.status_cli import _describe_cost, _describe_traffic
from serving.home import Home
from serving.releases.bundle import ensure_signing_key
from serving.settings import ServerSettings
from serving.tracing.segments import OPEN_SUFFIX, SegmentWriter
from tests.assets.traces.served import START, make_keys, plan_days, serve_plan
from tests.orchestration.sensors.curated import (
    accept,
    choose_rows,
    read_records,
    report_student,
    write_curated,
)
from tests.orchestration.test_traffic import listening

QUIET = NO_TRAFFIC
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
    paid, whole = answered["cost_usd"].sum(), answered["counterfactual_cost_usd"].sum()
    assert traffic.cost_usd == pytest.approx(paid)
    assert traffic.cost_usd + traffic.failed_cost_usd == pytest.approx(records["cost_usd"].sum())
    saved = 1 - paid / whole
    assert traffic.saved_ratio == pytest.approx(saved)
    assert traffic.last_asked_at == records["asked_at"].max()


def test_it_says_what_the_next_training_waits_for_and_that_nothing_is_released(found):
    assert "11 of 30 curated teacher traces" in found.retraining
    assert not found.is_retraining_due
    assert found.candidate_count > 10
    assert found.unknowns == ("no monitor has run",)
    assert found.release is None
    assert found.phases[1].missing == ("a release with a student",)
    assert found.problems == ("nothing is released: `understudy run`",)


def test_what_failed_asks_cost_is_told_apart_from_what_was_saved():
    spent = replace(QUIET, ask_count=2, cost_usd=1.0, teacher_only_cost_usd=4.0)
    assert _describe_cost(spent).endswith("saved 75%")
    assert _describe_cost(replace(spent, failed_cost_usd=0.5)).endswith(
        "saved 75%; 0.5000 USD for asks that failed"
    )
    assert _describe_cost(replace(QUIET, failed_cost_usd=0.5)) == "0.5000 USD for asks that failed"
    assert _describe_cost(QUIET) == "nothing was spent"


def test_old_traffic_is_out_of_the_window(config):
    with dg.instance_for_test() as instance:
        later = read_status(config, instance, now=NOW + timedelta(days=30))
    assert later.traffic.ask_count == 0
    assert later.traffic.saved_ratio is None


def test_traces_of_other_environments_and_unsealed_ones_are_said_and_not_counted(tmp_path):
    home = Home(tmp_path)
    serve_plan(home.root, plan_days(0.1, 60)[:3], keys=make_keys(home.root, 12, env="staging"))
    assert count_unsealed(home) == (0, ())  # a server that ended has sealed its traces
    compact(home)
    writer = SegmentWriter(ServerSettings(home=home.root).segments_folder)

    async def write() -> TrafficStatus:
        await writer.append({"trace_id": "t"})
        told = read_traffic(home, since=START - timedelta(days=1))
        await writer.close()
        return told

    told = asyncio.run(write())
    assert (told.ask_count, told.elsewhere, told.unsealed_count) == (0, ("staging",), 1)


def test_a_segment_sealed_while_it_is_counted_is_passed_over_and_a_damaged_one_is_a_problem(
    tmp_path,
):
    home = Home(tmp_path)
    writer = SegmentWriter(ServerSettings(home=home.root).segments_folder)

    async def write() -> Path:
        for number in range(3):
            await writer.append({"trace_id": f"t{number}"})
        (path,) = home.traces.glob(f"*{OPEN_SUFFIX}")
        data = path.read_bytes()
        await writer.close()
        path.write_bytes(data)
        return path

    path = asyncio.run(write())
    gone = path.with_name(f"gone{OPEN_SUFFIX}")
    gone.symlink_to(path.with_suffix(".elsewhere"))  # listed, and nothing to open: as if renamed
    assert count_unsealed(home) == (3, ())
    data = bytearray(path.read_bytes())
    data[data.index(b"t1")] ^= 1
    path.write_bytes(data)
    traffic = read_traffic(home, since=START)
    assert traffic.unsealed_count == 1
    (told,) = [
        line
        for line in find_problems(None, traffic, alarms=(), decision=Wait(reason="w"))
        if "damaged" in line
    ]
    assert str(path) in told


def test_what_is_not_known_is_not_fine_and_other_environments_are_always_named(found):
    assert replace(found, problems=(), is_monitored=True).is_fine
    assert not replace(found, problems=(), is_monitored=False).is_fine
    for traffic in (QUIET, found.traffic):
        told = _describe_traffic(replace(traffic, elsewhere=("staging",)))
        assert "others asked in staging" in told


def test_a_configured_server_that_is_not_ready_asks_for_a_person(tmp_path):
    with listening(tmp_path / "home") as (url, _):
        assert find_cold_servers([url]) == ()
    (told,) = find_cold_servers([url])
    assert "is not ready" in told


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
    assert "loop.retrain: manual" in " ".join(shown.output.split())
    body = json.loads(told.stdout)
    assert body["is_fine"] is False
    assert body["traffic"]["ask_count"] >= 0


def invoke_status(config, home, monkeypatch):
    before = dict(os.environ)
    monkeypatch.setenv("UNDERSTUDY_CONFIG", str(config.source))
    monkeypatch.setenv("UNDERSTUDY_HOME", str(home.root))
    monkeypatch.setenv("COLUMNS", "400")
    try:
        return [CliRunner().invoke(cli.app, ["status", *more]) for more in ((), ("--json",))]
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.parametrize(
    ("part", "names", "content"),
    [
        ("release", ("releases/CURRENT",), b"junk"),
        ("gate", ("lake/releases/gate_verdict/tiny.parquet",), b"PAR1junkPAR1"),
        ("monitors", ("lake/monitoring/alarms.parquet",), b""),
        ("candidates", ("traces/curation_decisions.jsonl",), b"junk\n"),
    ],
)
def test_a_damaged_part_is_told_and_the_others_are_shown(
    config, tmp_path, monkeypatch, part, names, content
):
    home = Home(tmp_path / "home")
    shutil.copytree(config.home, home.root)
    ensure_signing_key(home.keys)
    for name in names:
        path = home.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    shown, told = invoke_status(config, home, monkeypatch)
    assert (shown.exit_code, told.exit_code) == (1, 1)
    body = json.loads(told.stdout)
    assert part in body["unread"]
    assert set(body["unread"]) <= {part, "training"}  # which is decided by several parts
    (line,) = [line for line in shown.output.splitlines() if f"✗ {part} cannot be read" in line]
    assert "Next: " in line
    for name in ("release", "traffic", "cost", "monitors", "training", "next phase"):
        assert f"  {name}  " in shown.output
    assert body["traffic"]["teacher_only_cost_usd"] >= 0
    assert "Traceback" not in shown.output
    if part == "release":
        assert "nothing is released" not in shown.output


def test_whatever_ails_a_part_it_is_a_problem_with_a_next_step():
    reading = Reading()

    def fail():
        raise KeyError("gate")

    assert reading.read("gate", fail, 7) == 7
    assert reading.read("traffic", lambda: 8, 0) == 8
    assert list(reading.problems) == ["gate"]
    assert "KeyError: 'gate'. Next: " in reading.problems["gate"]
