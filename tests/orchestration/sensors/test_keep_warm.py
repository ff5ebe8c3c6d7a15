"""Looking after servers: one question each, patience, and an alarm when patience ends."""

import asyncio
import socket
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from orchestration.config import load_config
from orchestration.sensors.keep_warm import (
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


def judge(*probes, cold_since=None, now=NOW):
    return judge_warmth(probes, cold_since=cold_since or {}, now=now, maximum=LIMIT)


def test_every_skip_says_what_it_waits_for():
    assert judge().reason == "waits for a server: loop.servers names none"
    assert judge(WARM).reason == "waits for a cold server: all 1 are warm"
    assert "1 of 2 servers to become warm: http://b: status 503" in judge(WARM, COLD).reason


def test_a_server_alarms_once_it_was_cold_for_too_long_and_not_before():
    first = judge(WARM, COLD)
    assert first.cold_since == {"http://b": NOW}
    later = judge(WARM, COLD, cold_since=first.cold_since, now=NOW + LIMIT)
    assert later.overdue == ()
    late = judge(COLD, cold_since=later.cold_since, now=NOW + LIMIT + timedelta(seconds=1))
    assert late.overdue == ("http://b since 2026-03-03 12:00:00 UTC (status 503)",)


def test_a_server_that_was_warm_in_between_is_cold_anew():
    warmed = judge(Probe(url="http://b", is_warm=True, told=""), cold_since={"http://b": NOW})
    assert warmed.cold_since == {}
    again = judge(COLD, cold_since=warmed.cold_since, now=NOW + 2 * LIMIT)
    assert again.overdue == ()


def test_the_memory_survives_as_text():
    assert read_memory(write_memory({"http://b": NOW})) == {"http://b": NOW}
    assert read_memory(None) == {}


@pytest.fixture
def nobody():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    return f"http://127.0.0.1:{port}"


def tick(urls, *, cursor=None):
    config = load_config({})
    loop = config.loop.model_copy(update={"servers": urls})
    sensor = build_warmth_sensor(config.model_copy(update={"loop": loop}))
    with (
        dg.instance_for_test() as instance,
        dg.build_sensor_context(instance=instance, cursor=cursor) as context,
    ):
        return sensor.evaluate_tick(context)


def test_a_running_server_is_warm_one_that_is_not_there_is_cold_and_alarms_in_time(
    tmp_path, nobody
):
    with listening(tmp_path / "home") as (url, _):
        probes = asyncio.run(probe_servers((f"{url}/", nobody)))
        assert [(probe.is_warm, probe.told) for probe in probes] == [
            (True, "status 200"), (False, "ConnectError"),
        ]  # fmt: skip
        told = tick((url, nobody))
        assert told.skip_message == (
            f"waits for 1 of 2 servers to become warm: {nobody}: ConnectError"
        )
        assert list(read_memory(told.cursor)) == [nobody]
        assert tick((url,), cursor=told.cursor).cursor == "{}"
    old = write_memory({nobody: datetime.now(UTC) - timedelta(days=1)})
    with pytest.raises(Exception, match="looking after the servers") as caught:
        tick((nobody,), cursor=old)
    chain = caught.value, caught.value.__cause__
    assert any(isinstance(error, ServerColdError) for error in chain)
