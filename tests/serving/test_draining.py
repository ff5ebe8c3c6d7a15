"""SIGTERM: what was taken is answered, or ended and told so; all of it is on disk."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

import serving.server
from serving.tracing.segments import read_segment
from tests.serving.fakes import CannedChatModel, make_engine
from tests.serving.running import read_events, run_app
from tests.serving.torture import count, report

ROOT = Path(__file__).parents[2]
PLAIN = "Where do environment variables go?"
ENDLESS = "Where do they go, and please take an hour to think about it?"

_SERVER = """
import asyncio, sys
from pathlib import Path
import serving.app, serving.listening
from serving.settings import ServerSettings
from tests.serving.fakes import CannedChatModel, make_engine

class Thinker(CannedChatModel):
    async def complete(self, request):
        self.delay_seconds = 3600 if "an hour" in str(request.messages) else 0.5
        return await super().complete(request)

async def load(settings):
    return make_engine(student=Thinker("s"))

serving.app.load_engine = load
serving.listening.DRAIN_SECONDS = float(sys.argv[3])
asyncio.run(serving.app.serve(ServerSettings(home=Path(sys.argv[1]), port=int(sys.argv[2]))))
"""


@dataclass
class Stopped:
    """What a server that was stopped had answered, logged and stored."""

    responses: list[httpx2.Response]
    log: str
    traces: list[dict[str, Any]]


def test_sigterm_lets_questions_in_flight_finish(tmp_path: Path) -> None:
    """Whatever was taken is answered and stored, by one server after another."""
    stops = count(1, 50)
    asked = [(PLAIN, "application/json")] * 5
    for number in range(stops):
        stopped = _stop_under_load(tmp_path / str(number), asked, drain_seconds=25)
        assert [r.status_code for r in stopped.responses] == [200] * 5, stopped.log
        assert "server" not in stopped.responses[0].headers
        assert PLAIN not in stopped.log
        told = sorted(r.json()["trace_id"] for r in stopped.responses)
        assert sorted(t["trace_id"] for t in stopped.traces) == told
    report(f"{stops} stops, {5 * stops} questions in flight, 0 lost")


def test_questions_longer_than_the_drain_are_ended_told_so_and_stored(tmp_path: Path) -> None:
    """Asked is stored and declared lost, for the whole answer and for the one read along."""
    stops = count(1, 20)
    asked = [
        (PLAIN, "application/json"),
        (ENDLESS, "application/json"),
        (ENDLESS, "application/json"),
        (ENDLESS, "text/event-stream"),
    ]
    for number in range(stops):
        stopped = _stop_under_load(tmp_path / str(number), asked, drain_seconds=1.5)
        plain, *ended, stream = stopped.responses
        assert plain.status_code == 200, stopped.log
        for response in ended:
            assert response.status_code == 503, stopped.log
            assert response.headers["x-trace-persisted"] == "true"
            assert response.json()["type"].endswith(":not-ready")
        name, problem = read_events(stream.text)[-1]
        assert (name, problem["found"]) == ("problem", "a server that is shutting down")
        assert problem["trace_persisted"]
        outcomes = sorted(t["outcome"] for t in stopped.traces)
        assert outcomes == ["answered", "not-ready", "not-ready", "not-ready"]
        assert {a["error"] is None for t in stopped.traces for a in t["attempts"]} == {True, False}
    report(f"{stops} stops, {4 * stops} asked, {stops} answered, {3 * stops} ended, 0 lost")


def _stop_under_load(home: Path, asked: list[tuple[str, str]], *, drain_seconds: float) -> Stopped:
    """Stop a server while it answers questions, each with what it accepts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(home), str(port), str(drain_seconds)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        responses = asyncio.run(_ask_then_stop(server, f"http://127.0.0.1:{port}", asked))
    finally:
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=20)
    segments = home / "traces" / "segments"
    traces = [record for path in segments.glob("*.seg") for record in read_segment(path)]
    return Stopped(responses, log, traces)


async def _ask_then_stop(
    server: "subprocess.Popen[str]", url: str, asked: list[tuple[str, str]]
) -> list[httpx2.Response]:
    async with httpx2.AsyncClient(base_url=url, timeout=20) as client:
        for _ in range(1200):
            try:
                if (await client.get("/readyz")).status_code == 200:
                    break
            except httpx2.TransportError:
                pass
            assert server.poll() is None
            await asyncio.sleep(0.05)
        answers = [
            asyncio.create_task(
                client.post("/ask", json={"question": question}, headers={"accept": accept})
            )
            for question, accept in asked
        ]
        taken = f"in_flight {len(asked)}.0"
        while taken not in (await client.get("/metrics")).text:
            if any(answer.done() for answer in answers):
                break  # a machine so slow that the first was answered before the last was taken
            await asyncio.sleep(0.01)
        server.send_signal(signal.SIGTERM)
        return await asyncio.gather(*answers)


async def test_a_stream_whose_reader_left_is_ended_and_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.server, "_LAST_STREAMS_SECONDS", 0.05)
    student = CannedChatModel("s")
    engine = make_engine(student=student)
    async with run_app(engine, tmp_path, request_deadline_seconds=2) as running:
        student.delay_seconds = 3600
        reading = asyncio.create_task(running.stream())
        while "in_flight 1.0" not in await running.metrics():
            await asyncio.sleep(0.005)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    (trace,) = running.traces()
    assert (trace["outcome"], trace["route"]) == ("not-ready", "student")
