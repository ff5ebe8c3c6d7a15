"""Clocks that jump, disks that fail, clients that dawdle, bodies nobody would write."""

import asyncio
import contextlib
import json
import random
import resource
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
from starlette.types import Receive, Scope, Send

import serving.exchange
import serving.tracing.segments
from serving.access.escalation import strip_admin_prefix
from serving.access.keys import create_key
from serving.edge import Edge
from serving.listening import PatientProtocol
from serving.problems import CATALOGUE
from tests.serving.fakes import GOOD, HITS, CannedChatModel, make_engine
from tests.serving.running import QUESTION, listen, run_app
from tests.serving.torture import count, report


class _Shifted(datetime):
    """A wall clock that was set wrong."""

    by = timedelta()

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.now(tz) + cls.by


@pytest.mark.parametrize("hours", [-24, 24])
async def test_a_clock_that_jumps_changes_no_answer(
    tmp_path: Path, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deadlines, breakers and polling run on a clock nobody sets; traces say what was told."""
    asked = count(20, 500)
    shifted = type("Shifted", (_Shifted,), {"by": timedelta(hours=hours)})
    async with run_app(make_engine(), tmp_path, shadow_ratio=1.0) as running:
        before = (await running.ask()).json()
        monkeypatch.setattr(serving.exchange, "datetime", shifted)
        wall = time.time
        monkeypatch.setattr(time, "time", lambda: wall() + hours * 3600)
        after = [(await running.ask()).json() for _ in range(asked)]
        traces = await running.wait_for_traces(asked + 1)
        monkeypatch.undo()
    assert {a["answer"] for a in after} == {before["answer"]}
    served = [t for t in traces if t["selection_mode"] != "shadow"]
    assert len({t["trace_id"] for t in served}) == asked + 1
    told = [datetime.fromisoformat(t["asked_at"]) for t in served[1:]]
    away = [abs(t - datetime.now(UTC) - timedelta(hours=hours)) for t in told]
    report(
        f"{asked} asked with the clock {hours:+d} h, {len(served) - 1} traced as told, 0 changed"
    )
    assert max(away) < timedelta(minutes=5)


async def test_asked_is_stored_and_declared_lost_while_the_disk_comes_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = count(60, 2_000)
    lots = random.Random(7)  # noqa: S311  (which write fails)
    fsync = serving.tracing.segments.os.fsync

    def fail_at_times(descriptor: int) -> None:
        if lots.random() < 0.3:
            raise OSError(lots.choice((5, 28, 30)), "EIO, ENOSPC or EROFS")
        fsync(descriptor)

    said: Counter[str] = Counter()
    async with run_app(make_engine(), tmp_path) as running:
        monkeypatch.setattr(serving.tracing.segments.os, "fsync", fail_at_times)
        stored_ids = set()
        for _ in range(asked):
            response = await running.ask()
            assert response.status_code == 200
            said[response.headers["x-trace-persisted"]] += 1
            if response.headers["x-trace-persisted"] == "true":
                stored_ids.add(response.json()["trace_id"])
        monkeypatch.undo()
        health = (await running.client.get("/healthz")).json()["traces"]
    on_disk = [t["trace_id"] for t in running.traces()]
    report(f"{asked} asked, {dict(said)}, {health}, {len(on_disk)} on disk")
    assert (health["stored_count"], health["lost_count"]) == (said["true"], said["false"])
    assert sum(said.values()) == asked
    assert stored_ids == set(on_disk)
    assert len(on_disk) == len(stored_ids)
    assert said["false"]


BEGINNINGS = (
    b"POST /ask HTTP/1.1\r\nhost: x\r\n",
    b"POST /ask HTTP/1.1\r\nhost: x\r\ncontent-length: 60\r\n\r\n{",
    b"G",
    b"",
    b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\nGET /readyz HTT",
)


@pytest.mark.usefixtures("many_files")
async def test_slow_clients_hold_no_place(tmp_path: Path) -> None:
    """More clients than places send a header or half a body and wait; others are answered."""
    slow = count(40, 2_000)
    async with listen(make_engine(), tmp_path, max_concurrency=4) as port:
        writers = []
        for number in range(slow):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(BEGINNINGS[number % len(BEGINNINGS)])
            await writer.drain()
            writers.append(writer)
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.01)
            answers = [await client.post("/ask", json=QUESTION) for _ in range(20)]
        for writer in writers:
            writer.transport.abort()
    report(f"{slow} slow clients, {Counter(a.status_code for a in answers)}")
    assert {a.status_code for a in answers} == {200}


@pytest.mark.usefixtures("many_files")
async def test_a_header_that_never_ends_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each connection is closed by the server, also one that sends a byte now and then."""
    slow = count(40, 2_000)
    monkeypatch.setattr(PatientProtocol, "header_seconds", 0.5)
    monkeypatch.setattr(Edge.__init__, "__kwdefaults__", {"is_foreign": None, "body_seconds": 0.5})
    async with listen(make_engine(), tmp_path) as port:
        async with asyncio.timeout(60):
            ends = await asyncio.gather(
                *(_dawdle(port, BEGINNINGS[n % len(BEGINNINGS)]) for n in range(slow))
            )
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.post("/ask", json=QUESTION)).status_code == 200
    report(f"{slow} slow clients, {Counter(ends)}")
    assert Counter(ends) == {"closed": slow}


async def _dawdle(port: int, beginning: bytes) -> str:
    """Send a beginning, then a byte now and then, until the server has had enough."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(beginning)
    closed = asyncio.create_task(reader.read())
    with contextlib.suppress(ConnectionError):
        while not closed.done():
            writer.write(b"x" * bool(beginning))
            await writer.drain()
            await asyncio.wait({closed}, timeout=0.1)
    await asyncio.gather(closed, return_exceptions=True)
    writer.transport.abort()
    return "closed"


@pytest.fixture
def many_files() -> Iterator[None]:
    """Two descriptors a connection, since client and server are one process here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_body_that_never_ends_arriving_is_given_up() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(0.005)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise AssertionError("the app must not see half a body")

    scope: Scope = {"type": "http", "method": "POST", "path": "/ask", "headers": []}
    await Edge(app, body_seconds=0.05)(scope, receive, send)
    assert sent[0]["status"] == 422
    assert b"a part of one" in sent[1]["body"]


_ADMIN = (
    "[admin]", "[ADMIN]", "[\uff21\uff44min]", "[\u0430dmin]", "[ad\u200bmin]", "(admin)",
    "[a\u0301dmin]:", "\u3010admin\u3011", "[ admin ] -", "[admln]", "admin:", "[admin",
    "[[admin]]",
)  # fmt: skip


async def test_what_anybody_types_breaks_nothing_and_grants_nothing(tmp_path: Path) -> None:
    """Bodies, headers and prefixes at random: known statuses, cited is a subset, no quality."""
    asked = count(400, 100_000)
    lots = random.Random(11)  # noqa: S311  (a corpus)
    key = create_key(tmp_path / "keys", tenant="fuzz", requests_per_minute=10_000_000).text
    statuses: Counter[int] = Counter()
    served: Counter[str] = Counter()
    documented = {200} | {status for status, _ in CATALOGUE.values()} - {500}
    told = ("REFUSE", GOOD, "x [7]", "")
    student = CannedChatModel("s", lambda _: lots.choice(told))
    teacher = CannedChatModel("t", "Deploy with the build command. [2]")
    async with run_app(
        make_engine(student=student, teacher=teacher), tmp_path, admin_prefix=True
    ) as running:
        for _ in range(asked):
            body = _make_body(lots)
            headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
            headers |= lots.choice(({}, {}, {}, {"authorization": _make_text(lots, 30)}))
            headers |= lots.choice(({}, {}, {"accept": "text/event-stream"}, {"accept": "*/*;q"}))
            raw = [(k, v.encode("utf-8", "replace")) for k, v in headers.items()]
            response = await running.client.post("/ask", content=body, headers=raw)
            statuses[response.status_code] += 1
            assert response.status_code in documented, response.text
            if response.headers["content-type"] == "application/json":
                answer = response.json()
                assert {c["id"] for c in answer["citations"]} <= {h.chunk_id for h in HITS}
                assert answer["route_reason"] != "prefer_quality"
                who = {GOOD[:40]: "student", "Deploy with": "teacher"}
                true = [name for text, name in who.items() if answer["answer"].startswith(text)]
                assert true == ([] if answer["refused"] else [answer["served_by"]])
                served[answer["served_by"]] += not answer["refused"]
        traces = running.traces()
    assert not any(t["escalation_granted"] for t in traces)
    assert not any(strip_admin_prefix(t["question"])[1] for t in traces)
    report(
        f"{asked} bodies, {dict(statuses)}, by {dict(served)}, {len(traces)} traces, "
        "0 escalations granted"
    )
    assert min(served["student"], served["teacher"]) > 0


def _make_text(lots: random.Random, longest: int) -> str:
    alphabet = (
        "ab [](){}\"\\'/:;,.%&<>\u200b\u202e\u0430\ufdfa\x00\x7f\n\t\U0001f600e\u0301docs:REFUSE1"
    )
    return "".join(lots.choice(alphabet) for _ in range(lots.randrange(longest)))


def _make_body(lots: random.Random) -> bytes:
    question = lots.choice(("", *_ADMIN, *_ADMIN)) * lots.randrange(1, 3) + _make_text(lots, 60)
    body: Any = {"question": question}
    body |= lots.choice(({}, {}, {}, {"conversation_id": _make_text(lots, 300)}, {"x": 1}))
    body |= lots.choice(({}, {}, {}, {"prefer_quality": lots.choice((True, 1, "true", None))}))
    text = json.dumps(lots.choice((*[body] * 12, [body], question, None, 1e308)))
    data = text.encode()
    return lots.choice((*[data] * 8, data[: lots.randrange(len(data) + 1)], data + b"}"))


async def test_every_answer_is_one_the_schema_describes(tmp_path: Path) -> None:
    """Requests made from the OpenAPI document; whatever comes back must be described there."""
    examples = count(25, 1_000)
    async with listen(make_engine(), tmp_path) as port:
        asked = await asyncio.to_thread(_ask_by_schema, f"http://127.0.0.1:{port}", examples)
    report(f"{asked} requests made from the schema, 0 answers it does not describe")
    assert sum(asked.values()) > examples


def _ask_by_schema(url: str, examples: int) -> Counter[str]:
    import hypothesis

    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    asked: Counter[str] = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            response = case.call(base_url=url)
            asked[f"{case.method} {case.path}"] += 1
            case.validate_response(
                response,
                checks=[
                    schemathesis.checks.not_a_server_error,
                    schemathesis.specs.openapi.checks.status_code_conformance,
                    schemathesis.specs.openapi.checks.content_type_conformance,
                    schemathesis.specs.openapi.checks.response_schema_conformance,
                ],
            )

        ask()
    return asked
