"""Looking after servers: one question each, patience, and an alarm when patience ends."""

import asyncio
import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from orchestration.config import load_config
from orchestration.sensors.keep_warm import (
    ColdSpell,
    Probe,
    ServerColdError,
    build_warmth_sensor,
    judge_warmth,
    probe_servers,
    read_memory,
    write_memory,
)
from tests.orchestration.test_traffic import listening

NOW = datetime(2026, 3, 3, 12, tzinfo=UTC)
LIMIT = timedelta(seconds=300)
WARM = Probe(url="http://a", is_warm=True, told="status 200")
COLD = Probe(url="http://b", is_warm=False, told="status 503")


def judge(*probes, spells=None, now=NOW):
    return judge_warmth(probes, spells=spells or {}, now=now, maximum=LIMIT)


def test_every_skip_says_what_it_waits_for():
    assert judge().reason == "waits for a server: loop.servers names none"
    assert judge(WARM).reason == "waits for a cold server: all 1 are warm"
    assert "1 of 2 servers to become warm: http://b: status 503" in judge(WARM, COLD).reason


def test_a_server_alarms_once_when_it_was_cold_for_too_long_and_not_before():
    first = judge(WARM, COLD)
    assert first.spells == {"http://b": ColdSpell(since=NOW)}
    later = judge(WARM, COLD, spells=first.spells, now=NOW + LIMIT)
    assert later.overdue == ()
    late = judge(COLD, spells=later.spells, now=NOW + LIMIT + timedelta(seconds=1))
    assert late.overdue == ("http://b since 2026-03-03 12:00:00 UTC (status 503)",)
    assert judge(COLD, spells=late.spells, now=NOW + 2 * LIMIT).overdue == ()


def test_a_server_that_was_warm_in_between_is_cold_anew():
    warmed = judge(
        Probe(url="http://b", is_warm=True, told=""),
        spells={"http://b": ColdSpell(since=NOW, is_alarmed=True)},
    )
    assert warmed.spells == {}
    again = judge(COLD, spells=warmed.spells, now=NOW + 2 * LIMIT)
    assert again.overdue == ()
    assert judge(COLD, spells=again.spells, now=NOW + 4 * LIMIT).overdue != ()


@pytest.fixture
def nobody():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    return f"http://127.0.0.1:{port}"


def tick(home, urls):
    """Evaluate the sensor once, as a daemon does."""
    config = load_config({})
    loop = config.loop.model_copy(update={"servers": urls})
    sensor = build_warmth_sensor(config.model_copy(update={"loop": loop, "home": home}))
    with dg.build_sensor_context() as context:
        return sensor.evaluate_tick(context)


def make_old(home):
    """Let a day pass since the servers were found cold."""
    path = home / "sensors" / "servers_are_warm.json"
    day = timedelta(days=1)
    spells = read_memory(path)
    write_memory(path, {url: replace(s, since=s.since - day) for url, s in spells.items()})


def test_a_running_server_is_warm_and_one_that_is_not_there_is_cold(tmp_path, nobody):
    with listening(tmp_path / "home") as (url, _):
        probes = asyncio.run(probe_servers((f"{url}/", nobody)))
        assert [(probe.is_warm, probe.told) for probe in probes] == [
            (True, "status 200"), (False, "ConnectError"),
        ]  # fmt: skip
        told = tick(tmp_path, (url, nobody))
    assert told.skip_message == f"waits for 1 of 2 servers to become warm: {nobody}: ConnectError"


def test_one_cold_spell_is_one_alarm_over_the_ticks_and_hides_no_other_server(tmp_path, nobody):
    tick(tmp_path, (nobody,))
    make_old(tmp_path)
    with pytest.raises(Exception, match="looking after the servers") as caught:
        tick(tmp_path, (nobody,))
    chain = caught.value, caught.value.__cause__
    assert any(isinstance(error, ServerColdError) for error in chain)
    other = f"{nobody}/other"
    for _ in range(2):
        assert "servers to become warm" in tick(tmp_path, (nobody, other)).skip_message
    make_old(tmp_path)
    with pytest.raises(Exception, match="looking after the servers") as caught:
        tick(tmp_path, (nobody, other))
    told = str(caught.value.__cause__ or caught.value)
    assert f"{other} since" in told
    assert f"{nobody} since" not in told


def test_a_server_that_is_looked_after_no_more_is_forgotten_and_begins_anew(tmp_path, nobody):
    tick(tmp_path, (nobody,))
    make_old(tmp_path)
    assert "names none" in tick(tmp_path, ()).skip_message
    assert "servers to become warm" in tick(tmp_path, (nobody,)).skip_message
