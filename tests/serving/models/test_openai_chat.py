"""The chat client against a real ASGI server that misbehaves on demand."""

import asyncio
import gzip
import json
import logging
import socket
import threading
import time
import traceback
from dataclasses import asdict, replace

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from serving.errors import (
    DeadlineExceededError,
    InvalidInputError,
    RateLimitedError,
    UpstreamError,
    UpstreamRejectedError,
)
from serving.models.openai_chat import OpenAIChatModel, connect, connect_in_process
from serving.models.protocols import ChatModel, ChatRequest, Completion, Price
from serving.models.served_transport import ServedTransport

PRICE = Price(input_usd_per_mtok=3.0, output_usd_per_mtok=15.0)
REQUEST = ChatRequest(
    messages=({"role": "user", "content": "hello"},), max_tokens=7, temperature=0.5, seed=11
)
KEY = "sk-very-secret-key"


def make_answer(**changes: object) -> dict[str, object]:
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}
        ],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
        **changes,
    }


class Upstream:
    """Gives the planned responses one after another, then good answers; keeps what it was sent."""

    def __init__(self, *planned: Response | Exception, delay_seconds: float = 0.0) -> None:
        self.planned = list(planned)
        self.bodies: list[dict[str, object]] = []
        self.headers: list[dict[str, str]] = []
        self.app = FastAPI()

        @self.app.post("/v1/chat/completions")
        async def complete(request: Request) -> Response:
            self.bodies.append(await request.json())
            self.headers.append(dict(request.headers))
            await asyncio.sleep(delay_seconds)
            planned = self.planned.pop(0) if self.planned else JSONResponse(make_answer())
            if isinstance(planned, Exception):
                raise planned
            return planned


def model_over(upstream: Upstream, **changes: float) -> OpenAIChatModel:
    return connect_in_process(upstream.app, model="m-1", price=PRICE, **changes)


def error(status: int, message: str = "no", **headers: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message}}, status_code=status, headers=headers)


async def test_a_request_is_mapped_and_its_answer_measured_and_priced():
    upstream = Upstream()
    model = model_over(upstream)
    completion = await model.complete(REQUEST)
    assert isinstance(model, ChatModel)
    assert upstream.bodies == [
        {
            "model": "m-1",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 7,
            "temperature": 0.5,
            "seed": 11,
        }
    ]
    assert (completion.text, completion.model, completion.finish_reason) == ("hi", "m-1", "stop")
    assert (completion.prompt_tokens, completion.completion_tokens) == (1000, 100)
    assert completion.cost_usd == pytest.approx(0.0045)
    assert completion.latency_ms > 0
    assert completion.mean_logprob is None


@pytest.mark.parametrize(
    "failure",
    [*(error(status) for status in (408, 409, 429, 500, 503, 529)), RuntimeError("crash")],
)
async def test_what_can_pass_is_tried_once_more(failure):
    upstream = Upstream(failure)
    assert (await model_over(upstream).complete(REQUEST)).text == "hi"
    assert len(upstream.bodies) == 2


async def test_a_second_failure_is_final_and_retryable_by_the_caller():
    upstream = Upstream(*(error(503) for _ in range(5)))
    with pytest.raises(UpstreamError, match="status 503") as raised:
        await model_over(upstream).complete(REQUEST)
    assert raised.value.is_retryable
    assert len(upstream.bodies) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_a_refused_request_is_not_sent_again(status):
    upstream = Upstream(error(status, "bad model"))
    with pytest.raises(UpstreamRejectedError, match="bad model") as raised:
        await model_over(upstream).complete(REQUEST)
    assert not raised.value.is_retryable
    assert len(upstream.bodies) == 1


async def test_who_retries_elsewhere_asks_once():
    upstream = Upstream(error(503))
    with pytest.raises(UpstreamError, match="status 503"):
        await replace(model_over(upstream), retries=0).complete(REQUEST)
    assert len(upstream.bodies) == 1


async def test_a_compressed_answer_is_read_and_a_broken_one_can_pass():
    packed = gzip.compress(json.dumps(make_answer()).encode())
    said = {"content-encoding": "gzip", "content-type": "application/json"}
    upstream = Upstream(Response(b"no gzip", headers=said), Response(packed, headers=said))
    model = model_over(upstream)
    assert (await model.complete(REQUEST)).text == "hi"
    assert len(upstream.bodies) == 2


async def test_each_request_has_one_key_and_another_draw_has_another():
    upstream = Upstream(error(503))
    for request in (REQUEST, REQUEST, replace(REQUEST, seed=12)):
        await model_over(upstream).complete(request)
    keys = [headers["idempotency-key"] for headers in upstream.headers]
    assert keys[:3] == [REQUEST.content_key("m-1")] * 3
    assert keys[3] != keys[0]


async def test_the_deadline_covers_the_call():
    upstream = Upstream(delay_seconds=5)
    started = time.perf_counter()
    with pytest.raises(DeadlineExceededError, match=r"within 0\.1 s"):
        await model_over(upstream, timeout_seconds=0.1).complete(REQUEST)
    assert time.perf_counter() - started < 2


async def test_a_wait_that_the_deadline_cuts_off_is_not_begun():
    upstream = Upstream(error(429, **{"retry-after": "15"}))
    with pytest.raises(RateLimitedError) as raised:
        await model_over(upstream, timeout_seconds=10).complete(REQUEST)
    assert raised.value.retry_after_seconds == 15


@pytest.mark.parametrize(
    "answer",
    [
        make_answer(choices=[]),
        make_answer(choices=[{}]),
        make_answer(usage=None),
        make_answer(usage={"prompt_tokens": "12", "completion_tokens": 3}),
        make_answer(usage={"prompt_tokens": 12, "completion_tokens": -3}),
        make_answer(usage={"prompt_tokens": 12.5, "completion_tokens": True}),
        make_answer(choices=[["text"]]),
        make_answer(
            choices=[{"index": 0, "finish_reason": "content_filter", "message": {"content": None}}]
        ),
    ],
)
async def test_an_answer_without_text_or_usage_is_no_answer(answer):
    with pytest.raises(UpstreamRejectedError, match="expected one choice with text") as raised:
        await model_over(Upstream(JSONResponse(answer))).complete(REQUEST)
    assert raised.value.may_be_billed


@pytest.mark.parametrize(
    "content",
    ["odd", 3, {}, [{}], [None], [{"token": "hi", "logprob": "-1"}],
     [{"token": "hi", "logprob": float("nan")}],
     [{"token": "hi", "logprob": -1.0, "top_logprobs": [{"token": "hi"}]}]],
)  # fmt: skip
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_logprobs_nobody_asked_for_cost_no_answer_whatever_they_are(content, is_streamed):
    said = {"index": 0, "finish_reason": "stop", "logprobs": {"content": content}}
    text = {"role": "assistant", "content": "hi"}
    if is_streamed:
        document = json.dumps(make_answer(choices=[said | {"delta": text}]))
        answer = Response(f"data: {document}\n\ndata: [DONE]\n\n", media_type="text/event-stream")
        model = model_over(Upstream(answer))
        completion = await model.stream(REQUEST, lambda _piece: None)
    else:
        document = json.dumps(make_answer(choices=[said | {"message": text}]))
        answer = Response(document, media_type="application/json")
        completion = await model_over(Upstream(answer)).complete(REQUEST)
    assert (completion.text, completion.mean_logprob) == ("hi", None)


async def test_a_paid_answer_whose_logprobs_cannot_be_read_is_kept_without_them():
    def say(*top: float) -> Upstream:
        tops = [{"token": "x", "logprob": value} for value in top]
        token = {"token": "hi", "logprob": -1.0, "top_logprobs": tops}
        choice = make_answer()["choices"][0] | {"logprobs": {"content": [token]}}
        document = json.dumps(make_answer(choices=[choice]))
        return Upstream(Response(document, media_type="application/json"))

    def ask(upstream: Upstream) -> OpenAIChatModel:
        return replace(model_over(upstream), top_logprobs=2)

    unread = await ask(say(-1.0, float("nan"))).complete(REQUEST)
    assert (unread.text, unread.logprobs, unread.mean_logprob) == ("hi", None, None)
    found = await ask(say(-1.0, float("-inf"))).complete(REQUEST)
    assert [entry["logprob"] for entry in found.logprobs[0]["top"]] == [-1.0]
    with pytest.raises(InvalidInputError, match="no logprobs"):
        await ask(Upstream()).complete(REQUEST)


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        ("<html>welcome</html>", "text/html"),
        ("{}", "application/json"),
        ("[]", "application/json"),
        ('{"choices": "none"}', "application/json"),
        ('{"choices": [', "application/json"),
    ],
)
async def test_what_is_no_chat_completion_is_an_upstream_failure(content, media_type):
    pages = [Response(content, media_type=media_type) for _ in range(2)]
    with pytest.raises(UpstreamError):
        await model_over(Upstream(*pages)).complete(REQUEST)


async def test_logprobs_are_asked_for_only_when_wanted_and_averaged():
    tokens = [{"token": t, "logprob": p, "top_logprobs": []} for t, p in (("h", -1.0), ("i", -3.0))]
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "hi"},
        "logprobs": {"content": tokens, "refusal": None},
    }
    upstream = Upstream(JSONResponse(make_answer(choices=[choice])))
    plain = model_over(upstream)
    model = replace(plain, top_logprobs=1)
    assert (await model.complete(REQUEST)).mean_logprob == -2.0
    assert (await plain.complete(REQUEST)).mean_logprob is None
    assert [body.get("logprobs") for body in upstream.bodies] == [True, None]


@pytest.mark.parametrize("transport", [None, ServedTransport()])
async def test_no_connection_is_a_retryable_failure_that_costs_nothing(transport):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    model = connect(url, KEY, model="m", price=PRICE, timeout_seconds=10, transport=transport)
    with pytest.raises(UpstreamError, match="no connection") as raised:
        await model.complete(REQUEST)
    assert not raised.value.may_be_billed
    await model.close()


@pytest.mark.parametrize("base_url", ["", "api.example/v1", "file:///etc/passwd"])
def test_a_base_url_that_is_no_url_is_refused_at_once(base_url):
    with pytest.raises(InvalidInputError, match="base_url"):
        connect(base_url, KEY, model="m", price=PRICE)


@pytest.fixture
def served():
    """A function that serves an upstream on a socket of this machine until the test ends."""
    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    def serve(upstream: Upstream) -> str:
        config = uvicorn.Config(upstream.app, port=0, log_level="error", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}/v1"

    yield serve
    for server, thread in servers:
        server.should_exit = True
        thread.join(timeout=5)


def test_one_model_serves_one_event_loop_after_another(served):
    upstream = Upstream()
    model = connect(served(upstream), KEY, model="m", price=PRICE, timeout_seconds=10)
    for _ in range(3):
        assert asyncio.run(model.complete(REQUEST)).text == "hi"
    assert len(upstream.bodies) == 3


@pytest.mark.parametrize("is_served", [False, True])
def test_the_key_is_sent_and_never_shown(served, caplog, is_served):
    upstream = Upstream(error(401, f"Incorrect API key provided: {KEY}"))
    transport = ServedTransport() if is_served else None
    model = connect(
        served(upstream), KEY, model="m", price=PRICE, timeout_seconds=10, transport=transport
    )

    async def ask():
        try:
            await model.complete(REQUEST)
        finally:
            await model.close()

    with caplog.at_level(logging.DEBUG), pytest.raises(UpstreamRejectedError) as raised:
        asyncio.run(ask())
    shown = "".join(traceback.format_exception(raised.value)) + repr(model) + caplog.text
    assert upstream.headers[0]["authorization"] == f"Bearer {KEY}"
    assert "Incorrect API key provided: ***" in str(raised.value)
    assert KEY not in shown
    assert raised.value.__context__ is None


def test_nothing_of_openais_environment_reaches_another_server(served, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    upstream = Upstream()
    model = connect(served(upstream), None, model="m", price=PRICE, timeout_seconds=10)
    asyncio.run(model.complete(REQUEST))
    sent = str(upstream.headers)
    assert KEY not in sent
    assert "org-1" not in sent
    assert "proj-1" not in sent


async def test_the_most_likely_tokens_are_kept_as_they_came_and_survive_the_cache():
    tops = [
        {"token": "h\ud83d", "bytes": [104, 240], "logprob": -0.1234567890123},
        {"token": "j", "bytes": None, "logprob": -9999.0},
    ]
    tokens = [{**tops[0], "top_logprobs": tops}]
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "hi"},
        "logprobs": {"content": tokens, "refusal": None},
    }
    body = json.dumps(make_answer(choices=[choice]))
    upstream = Upstream(Response(body, media_type="application/json"))
    model = replace(model_over(upstream), top_logprobs=2)
    completion = await model.complete(REQUEST)
    assert (upstream.bodies[0]["logprobs"], upstream.bodies[0]["top_logprobs"]) == (True, 2)
    assert completion.logprobs == [{**tops[0], "top": tops}]
    kept = json.dumps(asdict(completion), ensure_ascii=True)
    assert Completion(**json.loads(kept)) == completion


async def test_logprobs_that_were_asked_for_and_did_not_come_are_a_wrong_setting():
    with pytest.raises(InvalidInputError, match="top_logprobs to 0"):
        await replace(model_over(Upstream()), top_logprobs=2).complete(REQUEST)


async def test_an_empty_answer_has_no_tokens_to_have_logprobs():
    message = {"role": "assistant", "content": ""}
    choice = {"index": 0, "finish_reason": "length", "message": message}
    upstream = Upstream(JSONResponse(make_answer(choices=[choice])))
    completion = await replace(model_over(upstream), top_logprobs=2).complete(REQUEST)
    assert (completion.text, completion.logprobs) == ("", None)
