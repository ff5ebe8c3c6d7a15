"""Spans and measures of a question reach a collector, named by the conventions, without text."""

import asyncio
import gzip
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import serving.app
from serving.errors import InvalidInputError, UpstreamError
from serving.models.breaker import BreakerPolicy, CircuitBreaker
from serving.models.guarded import GuardedChatModel
from serving.models.protocols import ChatRequest, Completion, Hit
from serving.settings import ServerSettings
from tests.serving.fakes import INVALID, CannedChatModel, CannedRetriever, make_engine
from tests.serving.running import QUESTION, run_app

DOWN = UpstreamError("asking", expected="200", found="503", next_step="wait")


@contextmanager
def collect(measures: list[Any] | None = None) -> Iterator[tuple[str, list[Any]]]:
    """Run an OTLP/HTTP collector; yield its endpoint and the spans that arrive."""
    spans: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/metrics":
                measured = ExportMetricsServiceRequest.FromString(body)
                for resource in measured.resource_metrics:
                    for scope in resource.scope_metrics:
                        (measures if measures is not None else []).extend(scope.metrics)
            else:
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
    finally:
        server.shutdown()
        server.server_close()


def read(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


async def test_a_fallback_is_one_span_with_two_calls_inside(tmp_path: Path) -> None:
    engine = make_engine(student=CannedChatModel("s", INVALID))
    with collect() as (endpoint, spans):
        async with run_app(engine, tmp_path, otlp_endpoint=endpoint) as running:
            body = (await running.ask()).json()
        (root,) = [s for s in spans if s.name == "ask"]
        calls = sorted((s for s in spans if s is not root), key=lambda s: s.start_time_unix_nano)
    assert [c.name for c in calls] == ["chat s", "chat extractive-v1"]
    assert all(c.parent_span_id == root.span_id and c.trace_id == root.trace_id for c in calls)
    assert read(root)["understudy.trace_id"] == body["trace_id"]
    assert read(root)["understudy.served_by"] == "teacher"
    found = read(calls[1])
    assert found["gen_ai.operation.name"] == "chat"
    assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (100, 20)
    written = str(spans)
    assert QUESTION["question"] not in written
    assert body["answer"] not in written


async def test_each_call_is_measured_in_seconds_and_tokens(tmp_path: Path) -> None:
    engine = make_engine(student=CannedChatModel("s", INVALID))
    measures: list[Any] = []
    with collect(measures) as (endpoint, _):
        async with run_app(engine, tmp_path, otlp_endpoint=endpoint) as running:
            assert (await running.ask()).status_code == 200
    by_name = {measure.name: measure for measure in measures}
    seconds, tokens = (
        by_name[f"gen_ai.client.{name}"] for name in ("operation.duration", "token.usage")
    )
    assert (seconds.unit, tokens.unit) == ("s", "{token}")
    calls = {read(p)["gen_ai.request.model"]: p for p in seconds.histogram.data_points}
    assert set(calls) == {"s", "extractive-v1"}
    assert all(p.count == 1 and p.sum < 60 for p in calls.values())
    counted = {
        (read(p)["gen_ai.request.model"], read(p)["gen_ai.token.type"]): p.sum
        for p in tokens.histogram.data_points
    }
    assert counted["extractive-v1", "input"] == 100
    assert counted["extractive-v1", "output"] == 20
    assert QUESTION["question"] not in str(measures)


class ByRule(CannedChatModel):
    """Answers without having read a token, as a student that refuses by rule does."""

    async def complete(self, request: ChatRequest) -> Completion:
        done = await super().complete(request)
        return replace(done, prompt_tokens=0, completion_tokens=0)


async def test_an_answer_by_rule_is_no_call(tmp_path: Path) -> None:
    measures: list[Any] = []
    with collect(measures) as (endpoint, spans):
        engine = make_engine(student=ByRule("s", INVALID))
        async with run_app(engine, tmp_path, otlp_endpoint=endpoint) as running:
            await running.ask()
    assert "chat s" in {span.name for span in spans}
    asked = [p for m in measures for p in m.histogram.data_points]
    assert {read(p)["gen_ai.request.model"] for p in asked} == {"extractive-v1"}


def let_be(model: CannedChatModel) -> GuardedChatModel:
    """Put a model behind a breaker that has just opened."""
    breaker = CircuitBreaker(BreakerPolicy(open_seconds=3600))
    while (entered := breaker.enter()) is not None:
        breaker.leave(entered, has_failed=True)
    return GuardedChatModel(model, breaker=breaker, timeout_seconds=1)


@pytest.mark.parametrize(
    ("teacher", "options"),
    [
        (CannedChatModel("t"), {"teacher_calls_per_day": 0}),
        (let_be(CannedChatModel("t")), {}),
        (CannedChatModel("t", DOWN), {}),
    ],
    ids=["budget", "breaker", "failure"],
)
async def test_a_model_that_was_not_asked_has_not_failed(
    tmp_path: Path, teacher: Any, options: dict[str, Any]
) -> None:
    measures: list[Any] = []
    engine = make_engine(teacher=teacher, student=CannedChatModel("s", INVALID))
    with collect(measures) as (endpoint, _):
        async with run_app(engine, tmp_path, otlp_endpoint=endpoint, **options) as running:
            assert (await running.ask()).json()["refused"]
        (trace,) = running.traces()
    assert [a["model"] for a in trace["attempts"]] == ["s", "t"]
    assert trace["attempts"][1]["error"]
    seconds = next(m for m in measures if m.name.endswith("duration")).histogram.data_points
    failed = {read(p)["gen_ai.request.model"]: read(p).get("error.type") for p in seconds}
    was_asked = isinstance(teacher, CannedChatModel) and bool(teacher.requests)
    assert failed == {"s": None} | ({"t": "model_error"} if was_asked else {})


@dataclass
class SlowRetriever(CannedRetriever):
    async def retrieve(self, question: str) -> tuple[Hit, ...]:
        if self.questions:  # the first is the warm-up's
            await asyncio.sleep(60)
        return await super().retrieve(question)


async def test_a_question_whose_time_was_up_before_a_model_was_asked_made_no_call(
    tmp_path: Path,
) -> None:
    measures: list[Any] = []
    engine = make_engine(retriever=SlowRetriever())
    options = {"request_deadline_seconds": 0.05}
    with collect(measures) as (endpoint, _):
        async with run_app(engine, tmp_path, otlp_endpoint=endpoint, **options) as running:
            assert (await running.ask()).status_code == 504
    assert measures == []


async def test_a_failed_question_is_an_error(tmp_path: Path) -> None:
    engine = make_engine(teacher=CannedChatModel("t", DOWN))
    options = {"allow_prefer_quality": True}
    with collect() as (endpoint, spans):
        async with run_app(engine, tmp_path, otlp_endpoint=endpoint, **options) as running:
            assert (await running.ask(prefer_quality=True)).status_code == 502
    root, call = sorted(spans, key=lambda span: bool(span.parent_span_id))
    assert (root.status.code, root.status.message) == (2, "upstream-failed")
    assert (call.name, call.status.code, call.parent_span_id) == ("chat t", 2, root.span_id)


async def test_a_collector_that_is_away_costs_no_answer(tmp_path: Path) -> None:
    endpoint = "http://127.0.0.1:9/v1/traces"
    async with run_app(make_engine(), tmp_path, otlp_endpoint=endpoint) as running:
        answers = await asyncio.gather(*(running.ask() for _ in range(5)))
    assert {a.status_code for a in answers} == {200}
    assert len(running.traces()) == 5


def test_without_an_endpoint_nothing_of_it_is_imported() -> None:
    import subprocess
    import sys

    code = (
        "import sys, serving.app; "
        "sys.exit(any(m.startswith('opentelemetry.sdk') or m.startswith('opentelemetry.exporter')"
        " for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", logger="opentelemetry")


async def test_without_the_extra_the_server_says_so_before_it_loads_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[ServerSettings] = []

    async def load(settings: ServerSettings) -> Any:
        loaded.append(settings)
        raise AssertionError("the release must not be loaded")

    monkeypatch.setattr(serving.app, "load_engine", load)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    settings = ServerSettings(home=tmp_path, otlp_endpoint="http://127.0.0.1:4318/v1/traces")
    with pytest.raises(InvalidInputError, match=r"understudy-serving\[otel\]"):
        await serving.app.serve(settings)
    assert not loaded
