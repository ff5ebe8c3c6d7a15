"""A server whose model fails in every way a server can: answers in time, few calls, no lies."""

import asyncio
import time
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from serving.errors import DeadlineExceededError
from serving.models.breaker import CircuitBreaker
from serving.models.guarded import GuardedChatModel
from serving.models.openai_chat import OpenAIChatModel, connect
from serving.models.protocols import ChatRequest, Price
from serving.models.served_transport import ServedTransport
from serving.pipeline.router import RouterPolicy
from tests.serving.fakes import GOOD, INVALID, CannedChatModel, make_engine
from tests.serving.running import run_app
from tests.serving.torture import IS_FULL, count, report
from tests.serving.upstreams import FAULTS, FaultyUpstream, serve_upstream

DEADLINE_SECONDS = 0.4
LATENESS_SECONDS = 0.1
REQUEST = ChatRequest(messages=({"role": "user", "content": "Where?"},))
TO_TEACHER = RouterPolicy(min_retrieval_score=1.0)


def connect_guarded(url: str, *, timeout_seconds: float = 30) -> GuardedChatModel:
    transport = ServedTransport()
    model = connect(
        url, None, model="m", price=Price(), timeout_seconds=timeout_seconds, transport=transport
    )
    return GuardedChatModel(model, breaker=CircuitBreaker(), timeout_seconds=timeout_seconds)


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_failing_teacher_costs_nobody_more_than_the_deadline(
    tmp_path: Path, fault: str
) -> None:
    """Every question ends as a problem within the deadline; calls stay under 1.1 a question."""
    asked = count(20, 200)
    upstream = FaultyUpstream()
    lateness: list[float] = []
    outcomes: Counter[str] = Counter()
    async with serve_upstream(upstream) as url:
        teacher = connect_guarded(url)
        engine = make_engine(teacher=teacher, router=TO_TEACHER, phase="hitchhiker")
        options = {"request_deadline_seconds": DEADLINE_SECONDS}
        async with run_app(engine, tmp_path, **options) as running:
            upstream.fault = fault
            for _ in range(asked):
                began = time.perf_counter()
                response = await running.ask()
                lateness.append(time.perf_counter() - began - DEADLINE_SECONDS)
                assert response.status_code in (502, 504), response.text
                assert response.headers["content-type"] == "application/problem+json"
                outcomes[response.json()["type"].rpartition(":")[2]] += 1
            upstream.fault = ""
            traces = running.traces()
        await teacher.close()
    calls = upstream.calls[fault]
    latest = f"latest {max(lateness):+.3f} s"
    report(f"{fault}: {asked} asked, {calls} calls, {dict(outcomes)}, {latest}")
    assert calls <= 1.1 * asked
    if fault.startswith("429"):
        assert teacher.breaker.opened_count == 0
    assert Counter(t["outcome"] for t in traces) == outcomes
    if IS_FULL:  # times hold on a quiet machine
        assert max(lateness) <= LATENESS_SECONDS


async def test_while_the_teacher_is_down_students_answer_and_it_is_found_again(
    tmp_path: Path,
) -> None:
    upstream = FaultyUpstream()
    async with serve_upstream(upstream) as url:
        teacher = connect_guarded(url)
        engine = make_engine(teacher=teacher, router=TO_TEACHER)
        async with run_app(engine, tmp_path) as running:
            upstream.fault = "500"
            found = [await running.ask() for _ in range(12)]
            metrics = await running.metrics()
            upstream.fault = ""
            teacher.breaker._opened_at = -1e9  # its five seconds are over
            again = (await running.ask()).json()
        await teacher.close()
    reasons = Counter(r.json().get("route_reason", "problem") for r in found)
    report(f"500: {upstream.calls['500']} calls for 12 questions, {dict(reasons)}")
    assert reasons == {"problem": 5, "breaker": 7}
    assert 'understudy_breaker_open{model="m"} 1.0' in metrics
    assert (again["served_by"], again["route_reason"]) == ("teacher", "low_retrieval")


async def test_an_endless_body_is_given_up_before_it_fills_the_memory() -> None:
    upstream = FaultyUpstream("endless")
    async with serve_upstream(upstream) as url:
        model = connect_guarded(url, timeout_seconds=60)
        with pytest.raises(Exception, match=r"no connection|33554432"):
            await model.complete(REQUEST)
        await model.close()
    assert 1 <= upstream.calls["endless"] <= 2


async def test_words_are_handed_on_before_the_answer_is_whole() -> None:
    upstream = FaultyUpstream()
    upstream.pieces = asyncio.Event()
    seen: list[str] = []

    def take(text: str) -> None:
        # The upstream sends the rest only once the first word arrived here.
        seen.append(text)
        upstream.pieces.set()

    async with serve_upstream(upstream) as url:
        model = connect_guarded(url)
        completion = await model.stream(REQUEST, take)
        await model.close()
    assert "".join(seen) == completion.text == GOOD
    assert (completion.prompt_tokens, completion.completion_tokens) == (100, 20)
    assert completion.finish_reason == "stop"
    assert completion.first_token_ms is not None
    assert completion.first_token_ms <= completion.latency_ms


@pytest.mark.parametrize("transport", [None, ServedTransport])
@pytest.mark.parametrize("fault", ["500", "reset", "half", "no_json", "bad_chunk"])
async def test_a_stream_that_fails_says_what_a_call_would(
    fault: str, transport: type[ServedTransport] | None
) -> None:
    upstream = FaultyUpstream(fault)
    async with serve_upstream(upstream) as url:
        model = connect(
            url, None, model="m", price=Price(), timeout_seconds=10, retries=0,
            transport=transport and transport(),
        )  # fmt: skip
        assert isinstance(model, OpenAIChatModel)
        errors = []
        for ask in (model.complete(REQUEST), model.stream(REQUEST, lambda _: None)):
            with pytest.raises(Exception) as raised:  # noqa: PT011
                await ask
            errors.append(raised.value)
        await model.close()
    assert [type(e).__module__ for e in errors] == ["serving.errors"] * 2
    assert not [e for e in errors if isinstance(e, DeadlineExceededError)]


@pytest.mark.parametrize("pause_seconds", [0, 0.1])
@pytest.mark.parametrize("fault", ["half", "bad_chunk"])
async def test_a_body_cut_short_is_a_read_error_whenever_it_is_read(
    fault: str, pause_seconds: float
) -> None:
    """Before its connection is lost or after, and also a second time."""
    async with serve_upstream(FaultyUpstream(fault)) as url:
        transport = ServedTransport()
        request = httpx2.Request("POST", url, content=b"{}")
        response = await transport.handle_async_request(request)
        await asyncio.sleep(pause_seconds)
        async with asyncio.timeout(10):
            for _ in range(2):
                with pytest.raises(httpx2.ReadError):
                    [part async for part in response.stream]
        await response.aclose()
        await transport.aclose()


async def test_no_malformed_model_output_becomes_a_body(tmp_path: Path) -> None:
    """Whatever two models write, what is sent is valid, or a refusal."""
    asked = count(300, 10_000)
    shapes = (
        "", "\x00", "[1]", "REFUSE " * 9, INVALID, "{" * 50, '{"answer": "x"}', "[9] [1]",
        "Put it [docs:../../etc/passwd].", "<script>alert(1)</script> [1]", "A. [1] B. [2] C.",
        "\ud83d half", "x" * 9000, "Put environment variables in a .env file. [1] [1000]",
        "```\n[1]\n```", "\u202egnirts [1]", "[docs:guides/deploy/1]" * 50, "1] [", "[1", GOOD,
    )  # fmt: skip
    writers = iter(shapes * (asked // len(shapes) * 2 + 2))
    student = CannedChatModel("s", lambda _: next(writers))
    teacher = CannedChatModel("t", lambda _: next(writers))
    kinds: Counter[str] = Counter()
    engine = make_engine(student=student, teacher=teacher)
    async with run_app(engine, tmp_path) as running:
        for _ in range(asked):
            response = await running.ask()
            assert response.status_code == 200, response.text
            body = response.json()
            cited = {c["id"] for c in body["citations"]}
            assert cited <= {"docs:guides/environment-variables/2", "docs:guides/deploy/1"}
            assert body["refused"] == (not cited)
            assert body["served_by"] == ("student" if body["model"] == "s" else "teacher")
            kinds["refused" if body["refused"] else "answered"] += 1
    report(f"{asked} asked, 0 invalid bodies: {dict(kinds)}")
    assert kinds["refused"]
    assert kinds["answered"]
