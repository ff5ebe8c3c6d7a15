import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import schemas
from serving.app import create_app
from serving.engine import ServingEngine
from serving.errors import (
    BudgetExceededError,
    DeadlineExceededError,
    UpstreamError,
    UpstreamRejectedError,
)
from serving.models.protocols import ChatRequest
from serving.pipeline.router import RouterPolicy
from serving.releases.manifest import GoldenPrompt, hash_retrieved
from serving.settings import ServerSettings
from serving.tracing.record import TRACE_FIELDS
from serving.tracing.segments import SegmentWriter, read_segment
from tests.serving.fakes import (
    GOOD,
    HITS,
    INVALID,
    STUDENT_PRICE,
    TEACHER_PRICE,
    CannedChatModel,
    CannedRetriever,
    make_engine,
    make_manifest,
)

LEAK = "sk-upstream-0123456789abcdef"
QUESTION = {"question": "Where do I put environment variables?"}
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}
Serve = Callable[..., Any]


def _fail(found: str = LEAK) -> UpstreamError:
    return UpstreamError("asking", expected="200", found=found, next_step="wait")


class Served:
    """An app with its lifespan running, a client, and the folder its traces go to."""

    def __init__(self, client: httpx2.AsyncClient, folder: Path) -> None:
        self.client = client
        self.folder = folder

    async def ask(self, **body: Any) -> httpx2.Response:
        response = await self.client.post("/ask", json=QUESTION | body)
        for header, value in SECURITY_HEADERS.items():
            assert response.headers[header] == value
        return response

    def traces(self) -> list[dict[str, Any]]:
        paths = sorted([*self.folder.glob("*.seg"), *self.folder.glob("*.seg.open")])
        return [record for path in paths for record in read_segment(path)]


@asynccontextmanager
async def _run(
    engine: ServingEngine, folder: Path, *, is_warm: bool = True, **options: Any
) -> AsyncIterator[Served]:
    app = create_app(
        engine=engine, settings=ServerSettings(**options), writer=SegmentWriter(folder)
    )
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        for _ in range(200 * is_warm):
            if (await client.get("/readyz")).status_code == 200:
                break
            await asyncio.sleep(0.005)
        yield Served(client, folder)


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Start an app: `serve(settings=…, **engine parts)`."""
    async with AsyncExitStack() as stack:

        async def start(
            engine: ServingEngine | None = None,
            settings: dict[str, Any] | None = None,
            *,
            is_warm: bool = True,
            folder: Path = tmp_path / "segments",
            **parts: Any,
        ) -> Served:
            options = {"home": tmp_path} | (settings or {})
            running = _run(engine or make_engine(**parts), folder, is_warm=is_warm, **options)
            return await stack.enter_async_context(running)

        yield start


def _check_problem(response: httpx2.Response, name: str, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["type"] == f"urn:understudy:problem:{name}"
    assert problem["status"] == status
    assert set(problem) == {
        "type", "title", "status", "detail", "expected", "found", "next_step", "instance",
    }  # fmt: skip
    assert problem["instance"] == response.headers["x-trace-id"]
    for header, value in SECURITY_HEADERS.items():
        assert response.headers[header] == value
    return problem


async def test_an_answer_has_the_contracts_fields(serve: Serve) -> None:
    served = await serve()
    response = await served.ask()
    body = response.json()
    (trace,) = served.traces()
    assert response.status_code == 200
    assert body == {
        "answer": "Put environment variables in a .env file. [docs:guides/environment-variables/2]",
        "citations": [
            {
                "id": HITS[0].chunk_id,
                "url": HITS[0].url,
                "title": HITS[0].title,
                "score": 0.86,
                "text": HITS[0].text,
            }
        ],
        "refused": False,
        "trace_id": response.headers["x-trace-id"],
        "served_by": "student",
        "model": "compact@3f9c0a1b2c4d",
        "route_reason": "default",
        "skill": None,
        "release": make_manifest().release_id,
        "cost_usd": STUDENT_PRICE.cost_usd(100, 20),
        "counterfactual_cost_usd": TEACHER_PRICE.cost_usd(trace["prompt_tokens_estimate"], 20),
    }
    assert {c["id"] for c in body["citations"]} <= {h.chunk_id for h in HITS}
    assert response.headers["x-trace-persisted"] == "true"


async def test_the_trace_on_disk_is_the_response(serve: Serve) -> None:
    served = await serve(settings={"env": "prod"})
    response = await served.ask(conversation_id="c-1")
    (trace,) = served.traces()
    body = response.json()
    assert tuple(trace) == TRACE_FIELDS
    for field in ("trace_id", "answer", "refused", "served_by", "model", "route_reason"):
        assert trace[field] == body[field]
    assert trace["citations"] == [c["id"] for c in body["citations"]]
    assert trace["release_id"] == body["release"]
    assert trace["question"] == QUESTION["question"]
    assert (trace["env"], trace["conversation_id"], trace["outcome"]) == ("prod", "c-1", "answered")
    assert [h["chunk_id"] for h in trace["retrieved"]] == [h.chunk_id for h in HITS]


async def test_a_trace_names_the_kind_of_client_and_never_its_header(serve: Serve) -> None:
    served = await serve()
    header = {"User-Agent": "understudy-traffic/ide (of jo)"}
    response = await served.client.post("/ask", json=QUESTION, headers=header)
    assert response.status_code == 200
    await served.client.post("/ask", json=QUESTION, headers={"User-Agent": "Jo's own client"})
    assert [trace["client_kind"] for trace in served.traces()] == ["ide", "other"]
    assert "jo" not in str(served.traces()).lower()


async def test_an_invalid_student_answer_is_replaced_by_the_teachers(serve: Serve) -> None:
    served = await serve(student=CannedChatModel("s", INVALID))
    body = (await served.ask()).json()
    assert (body["served_by"], body["model"], body["refused"]) == (
        "teacher",
        "extractive-v1",
        False,
    )
    (trace,) = served.traces()
    assert [(a["role"], a["verdict"] == "valid") for a in trace["attempts"]] == [
        ("student", False),
        ("teacher", True),
    ]
    assert (trace["route"], trace["selection_mode"]) == ("student", "fallback")


async def test_a_failing_student_is_replaced_too(serve: Serve) -> None:
    served = await serve(student=_Flaky())
    assert (await served.ask()).json()["served_by"] == "teacher"
    (trace,) = served.traces()
    assert [a["error"] is None for a in trace["attempts"]] == [False, True]
    assert LEAK not in json.dumps(trace)


class _Flaky(CannedChatModel):
    """Answers the warm-up, then fails."""

    def __init__(self) -> None:
        super().__init__("s")

    async def complete(self, request: ChatRequest) -> Any:
        if self.requests:
            self.answer = _fail()
        return await super().complete(request)


async def test_two_invalid_answers_become_a_refusal(serve: Serve) -> None:
    served = await serve(
        student=CannedChatModel("s", INVALID), teacher=CannedChatModel("t", INVALID)
    )
    body = (await served.ask()).json()
    assert (body["refused"], body["citations"], body["served_by"]) == (True, [], "teacher")
    assert "could not find" in body["answer"]
    assert len(served.traces()[0]["attempts"]) == 2


@pytest.mark.parametrize(
    ("parts", "body", "served_by", "reason"),
    [
        ({}, {}, "student", "default"),
        ({"router": RouterPolicy(long_context_tokens=5)}, {}, "teacher", "long_context"),
        ({"router": RouterPolicy(min_retrieval_score=0.9)}, {}, "teacher", "low_retrieval"),
        ({}, {"prefer_quality": True}, "teacher", "prefer_quality"),
        ({"phase": "hitchhiker"}, {}, "teacher", "phase"),
    ],
)
async def test_every_rule_of_the_router_gives_its_reason(
    serve: Serve, parts: dict[str, Any], body: dict[str, Any], served_by: str, reason: str
) -> None:
    served = await serve(settings={"allow_prefer_quality": True}, **parts)
    answer = (await served.ask(**body)).json()
    assert (answer["served_by"], answer["route_reason"]) == (served_by, reason)
    assert served.traces()[0]["route_reason"] == reason


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "question"),
        ({"question": ""}, "question"),
        ({"question": "  \u200b\t "}, "question"),
        ({"question": "x" * 4001}, "4001"),
        ({"question": "\ufdfa" * 300}, "question"),
        ({"question": 7}, "question"),
        ({"question": "half \ud83d"}, "question"),
        ({"question": "x", "prefer_quality": "yes"}, "prefer_quality"),
        ({"question": "x", "prefer_quality": 1}, "prefer_quality"),
        ({"question": "x", "conversation_id": 7}, "conversation_id"),
        ({"question": "x", "conversation_id": "c" * 201}, "conversation_id"),
        ({"question": "x", "temperature": 2}, "temperature"),
        ([], "body"),
        (None, "body"),
    ],
)
async def test_a_wrong_body_is_explained(serve: Serve, body: object, named: str) -> None:
    served = await serve()
    response = await served.client.post(
        "/ask", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    problem = _check_problem(response, "invalid-request", 422)
    assert named in problem["found"]
    assert not served.traces()


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"{", "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"[" * 5000, "application/json"),
        (b"1" * 5000, "application/json"),
        (b"", "application/json"),
        (b'{"question": "x"}', "text/plain"),
        (b"question=x", "application/x-www-form-urlencoded"),
    ],
)
async def test_what_is_no_json_object_is_a_wrong_body(
    serve: Serve, content: bytes, content_type: str
) -> None:
    served = await serve()
    response = await served.client.post(
        "/ask", content=content, headers={"content-type": content_type}
    )
    _check_problem(response, "invalid-request", 422)


async def test_what_is_too_long_as_it_came_is_not_normalised(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body of the letter that NFKC makes eighteen of would hold the event loop."""
    longest: list[int] = []
    normalise = schemas.normalise_question

    def watch(text: str) -> str:
        longest.append(len(text))
        return normalise(text)

    monkeypatch.setattr(schemas, "normalise_question", watch)
    served = await serve()
    _check_problem(await served.ask(question="\ufdfa" * 21_000), "invalid-request", 422)
    assert not longest
    _check_problem(await served.ask(question="\ufdfa" * 300), "invalid-request", 422)
    assert longest == [300]


async def test_the_question_limits_are_inclusive(serve: Serve) -> None:
    served = await serve()
    for question in ("x", "  x  ", "x" * 4000):
        assert (await served.ask(question=question)).status_code == 200


async def test_prefer_quality_needs_the_setting(serve: Serve) -> None:
    served = await serve()
    problem = _check_problem(await served.ask(prefer_quality=True), "not-allowed", 403)
    assert "UNDERSTUDY_SERVE_ALLOW_PREFER_QUALITY" in problem["next_step"]


async def test_past_capacity_is_refused_at_once(serve: Serve) -> None:
    student = CannedChatModel("s", delay_seconds=0.1)
    served = await serve(student=student, settings={"max_concurrency": 2})
    responses = await asyncio.gather(*(served.ask() for _ in range(10)))
    refused = [r for r in responses if r.status_code == 503]
    assert len(refused) == 8
    for response in refused:
        _check_problem(response, "overloaded", 503)
        assert response.headers["retry-after"] == "1"
    assert (await served.ask()).status_code == 200


async def test_the_deadline_is_kept_and_traced(serve: Serve) -> None:
    served = await serve(student=_SlowAfterWarmUp(), settings={"request_deadline_seconds": 0.1})
    began = asyncio.get_running_loop().time()
    response = await served.ask()
    assert asyncio.get_running_loop().time() - began < 1
    _check_problem(response, "deadline-exceeded", 504)
    assert response.headers["x-trace-persisted"] == "true"
    (trace,) = served.traces()
    assert (trace["outcome"], trace["trace_id"]) == (
        "deadline-exceeded",
        response.headers["x-trace-id"],
    )
    assert trace["answer"] is None


class _SlowAfterWarmUp(CannedChatModel):
    def __init__(self) -> None:
        super().__init__("s")

    async def complete(self, request: ChatRequest) -> Any:
        self.delay_seconds = 30.0 if self.requests else 0.0
        return await super().complete(request)


@pytest.mark.parametrize(
    ("error", "name", "status"),
    [
        (_fail(), "upstream-failed", 502),
        (
            UpstreamRejectedError("a", expected="b", found=LEAK, next_step="c"),
            "upstream-failed",
            502,
        ),
        (
            BudgetExceededError("a", expected="b", found=LEAK, next_step="c"),
            "over-quota",
            429,
        ),
        (
            DeadlineExceededError("a", expected="b", found=LEAK, next_step="c"),
            "deadline-exceeded",
            504,
        ),
        (RuntimeError(LEAK), "internal-error", 500),
        (TimeoutError(LEAK), "internal-error", 500),
    ],
)
async def test_a_failing_upstream_gives_away_nothing(
    serve: Serve, error: Exception, name: str, status: int
) -> None:
    served = await serve(teacher=CannedChatModel("t", error), router=_all_to_teacher())
    response = await served.ask()
    _check_problem(response, name, status)
    assert LEAK not in response.text + str(response.headers)
    (trace,) = served.traces()
    assert trace["outcome"] == name
    assert LEAK not in json.dumps(trace)


def _all_to_teacher() -> RouterPolicy:
    return RouterPolicy(min_retrieval_score=1.0)


async def test_a_failing_retriever_is_an_internal_error(serve: Serve) -> None:
    class Broken(CannedRetriever):
        async def retrieve(self, question: str) -> Any:
            if self.questions:
                raise OSError(LEAK)
            return await super().retrieve(question)

    served = await serve(retriever=Broken())
    response = await served.ask()
    _check_problem(response, "internal-error", 500)
    assert LEAK not in response.text


async def test_answers_go_on_when_traces_cannot_be_written(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where the folder should be")
    served = await serve(folder=tmp_path / "blocked" / "segments")
    assert (await served.client.get("/healthz")).json()["status"] == "ok"
    response = await served.ask()
    assert response.status_code == 200
    assert response.headers["x-trace-persisted"] == "false"
    health = (await served.client.get("/healthz")).json()
    assert health["status"] == "degraded"
    assert health["traces"] == {"stored_count": 0, "lost_count": 1}
    (tmp_path / "blocked").unlink()
    assert (await served.ask()).headers["x-trace-persisted"] == "true"
    assert (await served.client.get("/healthz")).json()["status"] == "ok"


async def test_half_a_character_from_a_model_breaks_nothing(serve: Serve) -> None:
    served = await serve(student=CannedChatModel("s", "Put it in a .env file \ud83d. [1]"))
    response = await served.ask()
    assert response.status_code == 200
    assert response.headers["x-trace-persisted"] == "true"
    assert served.traces()[0]["answer"] == response.json()["answer"]


async def test_a_body_over_the_limit_is_refused(serve: Serve) -> None:
    served = await serve()
    _check_problem(await served.ask(question="x" * 70_000), "too-large", 413)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1024

    response = await served.client.post("/ask", content=chunks())
    _check_problem(response, "too-large", 413)


@pytest.mark.parametrize(
    ("method", "path", "name", "status"),
    [
        ("GET", "/nowhere", "not-found", 404),
        ("GET", "/ask", "method-not-allowed", 405),
        ("DELETE", "/healthz", "method-not-allowed", 405),
        ("GET", "/redoc", "not-found", 404),
    ],
)
async def test_other_addresses_are_problems(
    serve: Serve, method: str, path: str, name: str, status: int
) -> None:
    served = await serve()
    _check_problem(await served.client.request(method, path), name, status)


async def test_nothing_is_answered_before_the_warm_up(serve: Serve) -> None:
    served = await serve(student=CannedChatModel("s", delay_seconds=0.2), is_warm=False)
    for response in (await served.ask(), await served.client.get("/readyz")):
        problem = _check_problem(response, "not-ready", 503)
        assert "warming up" in problem["found"]
    assert (await served.client.get("/healthz")).status_code == 200
    await asyncio.sleep(0.3)
    assert (await served.ask()).status_code == 200
    assert (await served.client.get("/readyz")).json()["status"] == "ready"


async def test_another_index_than_the_releases_is_never_served(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    right = hash_retrieved([h.chunk_id for h in HITS])
    good = make_manifest(golden_prompts=(GoldenPrompt(question="q", retrieved_hash=right),))
    served = await serve(manifest=good)
    assert (await served.client.get("/readyz")).status_code == 200
    bad = make_manifest(golden_prompts=(GoldenPrompt(question="q", retrieved_hash="0"),))
    with caplog.at_level(logging.ERROR):
        served = await serve(manifest=bad, is_warm=False, folder=served.folder.parent / "bad")
        await asyncio.sleep(0.05)
    problem = _check_problem(await served.client.get("/readyz"), "not-ready", 503)
    assert "IndexMismatchError" in problem["found"]
    assert "golden prompt" in caplog.text


async def test_a_teacher_that_is_down_at_the_start_is_tried_again(serve: Serve) -> None:
    teacher = CannedChatModel("t", _fail())
    served = await serve(teacher=teacher, phase="hitchhiker", is_warm=False)
    await asyncio.sleep(0.05)
    problem = _check_problem(await served.client.get("/readyz"), "not-ready", 503)
    assert LEAK not in json.dumps(problem)
    teacher.answer = GOOD
    await asyncio.sleep(1.2)
    assert (await served.client.get("/readyz")).status_code == 200


async def test_the_release_is_described_without_secrets(serve: Serve) -> None:
    teacher = {
        "provider": "openai",
        "model": "frontier-2026-05-01",
        "base_url": "https://internal.example/v1",
        "api_key_env": "TEACHER_API_KEY",
    }
    served = await serve(manifest=make_manifest(teacher=teacher))
    response = await served.client.get("/v1/release")
    info = response.json()
    assert info["release"] == make_manifest(teacher=teacher).release_id
    assert (info["phase"], info["gate_verdict"]) == ("switch", "PROMOTE")
    assert info["students"]["compact"]["adapter"] == "compact@3f9c0a1b2c4d"
    assert info["teacher_model"] == "frontier-2026-05-01"
    assert "internal.example" not in response.text
    assert "TEACHER_API_KEY" not in response.text


async def test_openapi_shows_examples_and_problems(serve: Serve) -> None:
    served = await serve()
    assert (await served.client.get("/docs")).status_code == 200
    schema = (await served.client.get("/openapi.json")).json()
    ask = schema["paths"]["/ask"]["post"]
    assert set(ask["responses"]) == {
        "200", "401", "403", "413", "422", "429", "500", "502", "503", "504",
    }  # fmt: skip
    assert set(ask["responses"]["503"]["content"]) == {"application/problem+json"}
    assert "X-Trace-Persisted" in ask["responses"]["200"]["headers"]
    told = {status: set(ask["responses"][status]["headers"]) for status in ask["responses"]}
    assert told["401"] == {"X-Trace-Id", "WWW-Authenticate"}
    assert told["422"] == {"X-Trace-Id"}
    assert told["429"] == told["503"] == {"X-Trace-Id", "Retry-After", "X-Trace-Persisted"}
    assert told["504"] == {"X-Trace-Id", "X-Trace-Persisted"}
    feedback = schema["paths"]["/feedback"]["post"]["responses"]
    assert set(feedback["503"]["headers"]) == {"X-Trace-Id", "Retry-After"}
    components = schema["components"]
    events = ask["responses"]["200"]["content"]["text/event-stream"]["x-events"]
    assert list(events) == ["draft", "correction", "answer", "problem"]
    for event in events.values():
        assert components["schemas"][event["$ref"].rpartition("/")[2]]["properties"]
    assert components["schemas"]["AskRequest"]["examples"]
    shown = ask["responses"]["422"]["content"]["application/problem+json"]["schema"]["$ref"]
    assert shown.removeprefix("#/components/schemas/") in components["schemas"]
    assert (ask["operationId"], ask["security"]) == ("ask", [{"key": []}, {}])
    assert "security" not in schema["paths"]["/healthz"]["get"]
    unexplained = [
        f"{name}.{field}"
        for name, known in components["schemas"].items()
        for field, told in known.get("properties", {}).items()
        if name != "HTTPValidationError" and not {"description", "examples", "$ref"} & set(told)
    ]
    assert not unexplained
    assert set(schema["paths"]) == {
        "/ask", "/feedback", "/healthz", "/metrics", "/readyz", "/v1/release",
    }  # fmt: skip


async def test_stopping_seals_the_traces_and_lets_go_of_the_engine(tmp_path: Path) -> None:
    closed: list[bool] = []

    async def close() -> None:
        closed.append(True)

    parts = make_engine()
    engine = ServingEngine(pipeline=parts.pipeline, manifest=parts.manifest, close=close)
    async with _run(engine, tmp_path, home=tmp_path / "home") as served:
        await served.ask()
    assert closed == [True]
    assert len(list(tmp_path.glob("*.seg"))) == 1
    assert not list(tmp_path.glob("*.seg.open"))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_BODIES = st.one_of(
    st.binary(max_size=200),
    _JSON.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        {"question": st.text(max_size=60) | _JSON},
        optional={"prefer_quality": st.booleans() | _JSON, "conversation_id": st.text() | _JSON},
    ).map(lambda value: json.dumps(value).encode()),
)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(bodies=st.lists(_BODIES, min_size=10, max_size=30), model_text=st.text(max_size=80))
def test_no_body_and_no_model_text_breaks_the_server(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[bytes], model_text: str
) -> None:
    async def ask_all() -> None:
        engine = make_engine(
            student=CannedChatModel("s", model_text + " [1]"),
            teacher=CannedChatModel("t", model_text),
        )
        folder = tmp_path_factory.mktemp("segments")
        async with _run(engine, folder, home=folder / "home") as served:
            for body in bodies:
                response = await served.client.post(
                    "/ask", content=body, headers={"content-type": "application/json"}
                )
                assert response.status_code in (200, 403, 422), response.text
                if response.status_code == 200:
                    answer = response.json()
                    assert {c["id"] for c in answer["citations"]} <= {h.chunk_id for h in HITS}
                    assert response.headers["x-trace-persisted"] == "true"

    asyncio.run(ask_all())
