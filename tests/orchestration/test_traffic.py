"""Traffic: a plan that repeats, has the shape of days, and reaches a server over HTTP."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections import Counter

import httpx2
import pytest
import uvicorn
from typer.testing import CliRunner

from assets.traces.flags import is_injection
from orchestration import cli
from orchestration.traffic import PROFILES, plan_traffic, send_traffic
from serving.access.escalation import strip_admin_prefix
from serving.app import create_app
from serving.errors import InvalidInputError
from serving.settings import ServerSettings
from serving.tracing.scrub import scrub
from serving.tracing.segments import SegmentWriter, read_segment
from tests.serving.fakes import make_engine

TOPICS = {
    "a": ["How does a work?"], "b": ["How does b work?"],
    "y": ["How does y work?"], "z": ["How does z work?"], "out_of_scope": ["Who won?"],
}  # fmt: skip


@pytest.fixture(scope="module")
def plan():
    return plan_traffic(TOPICS, days=4, asks_per_day=1000, seed=5, key_count=7)


def test_equal_seeds_give_equal_plans_and_others_do_not(plan):
    again = plan_traffic(TOPICS, days=4, asks_per_day=1000, seed=5, key_count=7)
    assert plan == again
    assert plan != plan_traffic(TOPICS, days=4, asks_per_day=1000, seed=6, key_count=7)


def test_days_have_a_shape_and_stay_within_the_plan(plan):
    times = [ask.at_seconds for ask in plan if ask.kind != "contest"]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] < 4 * 86_400
    hours = Counter(int(at // 3600) % 24 for at in times)
    assert sum(hours[h] for h in (9, 10, 14, 15)) > 4 * sum(hours[h] for h in (1, 2, 3, 4))


def test_topics_shift_half_way(plan):
    halves = [
        Counter(ask.topic for ask in plan if (ask.at_seconds >= 2 * 86_400) == late)
        for late in (False, True)
    ]
    assert halves[0]["a"] > 2 * halves[0]["z"]
    assert halves[1]["z"] > 2 * halves[1]["a"]


def test_every_profile_behaves_as_its_kind(plan):
    assert {ask.profile for ask in plan} == {profile.name for profile in PROFILES}
    by_kind = {kind: [a.question for a in plan if a.kind == kind] for kind in (
        "plain", "injection", "admin", "personal", "off_topic", "contest")}  # fmt: skip
    assert all(map(is_injection, by_kind["injection"]))
    assert not any(map(is_injection, by_kind["plain"] + by_kind["contest"] + by_kind["personal"]))
    assert all(strip_admin_prefix(text)[1] for text in by_kind["admin"])
    assert all(scrub(text) != text for text in by_kind["personal"])
    assert set(by_kind["off_topic"]) == {"Who won?"}
    contested = {a.conversation_id for a in plan if a.kind == "contest"}
    assert contested <= {a.conversation_id for a in plan if a.kind != "contest"}
    assert {ask.key_number for ask in plan} == set(range(7))


def test_no_topic_is_an_error():
    with pytest.raises(InvalidInputError, match="at least one topic"):
        plan_traffic({"out_of_scope": ["Who won?"]}, days=1, asks_per_day=5, seed=1)


@contextlib.contextmanager
def listening(home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    settings = ServerSettings(env="dev", home=home, auth="open")
    app = create_app(
        engine=make_engine(), settings=settings, writer=SegmentWriter(settings.segments_folder)
    )
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="on"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}", settings
    finally:
        server.should_exit = True
        thread.join(20)


def test_asked_is_stored_plus_declared_lost_over_http(tmp_path):
    with listening(tmp_path / "home") as (url, settings):
        done = CliRunner().invoke(
            cli.app,
            ["traffic", "--url", url, "--days", "0.5", "--asks-per-day", "120", "--json"],
        )
        assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["asked_count"] >= 60
    assert report["asked_count"] == report["persisted_count"] + report["lost_count"]
    assert report["by_status"] == {"200": report["asked_count"]}
    stored = [
        record["trace_id"]
        for path in settings.segments_folder.glob("*.seg")
        for record in read_segment(path)
    ]
    assert len(set(stored)) == report["persisted_count"]


@pytest.mark.parametrize(("concurrency", "left_out"), [(8, 0), (2, 3)])
def test_at_a_pace_no_slow_answer_delays_a_question(plan, concurrency, left_out):
    """The server answers nothing until all five were sent or left out."""
    arrived, may_answer = [], asyncio.Event()

    async def answer(request):
        arrived.append(request)
        await may_answer.wait()
        body = {"served_by": "teacher", "refused": False}
        return httpx2.Response(200, json=body, headers={"x-trace-persisted": "true"})

    async def send():
        transport = httpx2.MockTransport(answer)
        async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
            sending = asyncio.create_task(
                send_traffic(client, plan[:5], pace=1e9, concurrency=concurrency)
            )
            async with asyncio.timeout(20):
                while len(arrived) < 5 - left_out:
                    await asyncio.sleep(0.005)
            await asyncio.sleep(0.1)  # for what would be sent on top
            may_answer.set()
            return await sending

    report = asyncio.run(send())
    assert len(arrived) == report.asked_count == report.persisted_count == 5 - left_out
    assert report.left_out_count == left_out


def test_a_server_that_is_not_there_is_explained():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = CliRunner().invoke(cli.app, ["traffic", "--url", f"http://127.0.0.1:{port}"])
    assert done.exit_code == 2
