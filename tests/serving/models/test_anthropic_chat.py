"""The Messages API client against a server of this process that speaks its wire format."""

import asyncio
import json
import traceback

import httpx2
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from serving.errors import (
    DeadlineExceededError,
    InvalidInputError,
    RateLimitedError,
    UpstreamError,
    UpstreamRejectedError,
)
from serving.models.anthropic_chat import AnthropicChatModel, connect_anthropic
from serving.models.protocols import ChatModel, ChatRequest, Price, StreamingChatModel

PRICE = Price(input_usd_per_mtok=3.0, output_usd_per_mtok=15.0)
KEY = "sk-ant-very-secret"
MODEL = "claude-test-1-20260101"
SCHEMA = {"type": "object", "properties": {"score": {"type": "integer"}}}
REQUEST = ChatRequest(
    messages=(
        {"role": "system", "content": "Answer from the sources."},
        {"role": "user", "content": "hello"},
    ),
    max_tokens=7,
    seed=11,
)
JSON_REQUEST = ChatRequest(
    messages=REQUEST.messages,
    response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
)


def make_message(**changes: object) -> dict[str, object]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "hi"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 1000, "output_tokens": 100},
        **changes,
    }


def refuse(status: int, message: str = "no", kind: str = "api_error", **headers: str) -> Response:
    body = {"type": "error", "error": {"type": kind, "message": message}}
    return JSONResponse(body, status_code=status, headers=headers)


class Upstream:
    """Gives the planned responses one after another, then good ones; keeps what it was sent."""

    def __init__(self, *planned: Response, delay_seconds: float = 0.0) -> None:
        self.planned = list(planned)
        self.bodies: list[dict[str, object]] = []
        self.headers: list[dict[str, str]] = []
        self.app = FastAPI()

        @self.app.post("/v1/messages")
        async def create(request: Request) -> Response:
            self.bodies.append(await request.json())
            self.headers.append(dict(request.headers))
            await asyncio.sleep(delay_seconds)
            return self.planned.pop(0) if self.planned else JSONResponse(make_message())


def model_over(upstream: Upstream, **changes: object) -> AnthropicChatModel:
    transport = httpx2.ASGITransport(app=upstream.app, raise_app_exceptions=False)
    model = connect_anthropic(
        "http://messages.invalid", KEY, model=MODEL, price=PRICE, transport=transport, **changes
    )
    object.__setattr__(model, "retry_wait_seconds", 0.0)
    return model


async def test_a_request_is_mapped_and_its_answer_measured_and_priced():
    upstream = Upstream()
    model = model_over(upstream)
    completion = await model.complete(REQUEST)
    assert isinstance(model, ChatModel)
    assert upstream.bodies == [
        {
            "model": MODEL,
            "system": "Answer from the sources.",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 7,
            "temperature": 0.0,
        }
    ]
    assert upstream.headers[0]["authorization"] == f"Bearer {KEY}"
    assert upstream.headers[0]["anthropic-version"]  # the SDK names the one it was made for
    assert (completion.text, completion.model, completion.finish_reason) == ("hi", MODEL, "stop")
    assert (completion.prompt_tokens, completion.completion_tokens) == (1000, 100)
    assert completion.cost_usd == pytest.approx(0.0045)
    assert completion.latency_ms > 0
    assert completion.logprobs is None


async def test_what_the_providers_own_cache_read_and_wrote_is_counted_as_prompt():
    usage = {
        "input_tokens": 10,
        "cache_creation_input_tokens": 300,
        "cache_read_input_tokens": 40,
        "output_tokens": 2,
    }
    completion = await model_over(Upstream(JSONResponse(make_message(usage=usage)))).complete(
        REQUEST
    )
    assert completion.prompt_tokens == 350
    assert completion.cost_usd == PRICE.cost_usd(350, 2)


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "pause_turn"),
    ],
)
async def test_stop_reasons_become_the_pipelines_words(stop_reason, finish_reason):
    upstream = Upstream(JSONResponse(make_message(stop_reason=stop_reason)))
    assert (await model_over(upstream).complete(REQUEST)).finish_reason == finish_reason


@pytest.mark.parametrize(
    "answer",
    [
        make_message(stop_reason="refusal"),
        make_message(content=[]),
        make_message(content=[{"type": "thinking", "thinking": "hm", "signature": "s"}]),
    ],
)
async def test_a_refusal_or_a_message_without_text_is_no_answer(answer):
    with pytest.raises(UpstreamRejectedError, match="no text") as raised:
        await model_over(Upstream(JSONResponse(answer))).complete(REQUEST)
    assert raised.value.may_be_billed


async def test_text_blocks_are_joined_and_thinking_is_left_out():
    content = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "Put it "},
        {"type": "text", "text": "in .env. [1]"},
    ]
    upstream = Upstream(JSONResponse(make_message(content=content)))
    assert (await model_over(upstream).complete(REQUEST)).text == "Put it in .env. [1]"


@pytest.mark.parametrize("status", [429, 500, 503, 529])
async def test_what_can_pass_is_tried_once_more_or_left_to_the_caller(status):
    upstream = Upstream(refuse(status, "busy", "overloaded_error"))
    assert (await model_over(upstream).complete(REQUEST)).text == "hi"
    upstream = Upstream(refuse(status, "busy", "overloaded_error"))
    with pytest.raises(UpstreamError, match=f"status {status}") as raised:
        await model_over(upstream, retries=0).complete(REQUEST)
    assert raised.value.is_retryable
    assert len(upstream.bodies) == 1


async def test_a_rate_limit_says_when_to_come_back():
    upstream = Upstream(refuse(429, "slow down", "rate_limit_error", **{"retry-after": "7"}))
    with pytest.raises(RateLimitedError) as raised:
        await model_over(upstream, retries=0).complete(REQUEST)
    assert raised.value.retry_after_seconds == 7.0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
async def test_a_refused_request_is_not_sent_again_and_shows_no_key(status):
    upstream = Upstream(refuse(status, f"invalid x-api-key {KEY}", "invalid_request_error"))
    with pytest.raises(UpstreamRejectedError, match=r"invalid x-api-key \*\*\*") as raised:
        await model_over(upstream).complete(REQUEST)
    assert len(upstream.bodies) == 1
    assert KEY not in "".join(traceback.format_exception(raised.value))
    assert KEY not in repr(model_over(upstream))
    assert raised.value.__context__ is None


async def test_the_deadline_covers_the_call():
    with pytest.raises(DeadlineExceededError, match=r"within 0\.1 s"):
        await model_over(Upstream(delay_seconds=5), timeout_seconds=0.1).complete(REQUEST)


@pytest.mark.parametrize(
    ("content", "media_type"),
    [("<html>welcome</html>", "text/html"), ("{}", "application/json"), ("[]", "application/json")],
)
async def test_what_is_no_message_is_an_upstream_failure(content, media_type):
    pages = [Response(content, media_type=media_type) for _ in range(2)]
    with pytest.raises(UpstreamError):
        await model_over(Upstream(*pages)).complete(REQUEST)


async def test_a_schema_is_sent_as_output_config():
    upstream = Upstream()
    await model_over(upstream).complete(JSON_REQUEST)
    assert upstream.bodies[0]["output_config"] == {
        "format": {"type": "json_schema", "schema": SCHEMA}
    }


async def test_what_a_model_refuses_by_name_is_left_out_from_then_on():
    upstream = Upstream(
        refuse(400, "output_config: Extra inputs are not permitted", "invalid_request_error"),
        refuse(400, "`temperature` is deprecated for this model", "invalid_request_error"),
    )
    model = model_over(upstream)
    assert (await model.complete(JSON_REQUEST)).text == "hi"
    assert ["output_config" in body for body in upstream.bodies] == [True, False, False]
    assert ["temperature" in body for body in upstream.bodies] == [True, True, False]
    await model.complete(JSON_REQUEST)
    assert len(upstream.bodies) == 4
    assert not {"output_config", "temperature"} & set(upstream.bodies[3])


@pytest.mark.parametrize("base_url", ["api.example", "https://host/v1"])
def test_a_base_url_that_would_not_work_is_refused_at_once(base_url):
    with pytest.raises(InvalidInputError, match="base_url"):
        connect_anthropic(base_url, KEY, model=MODEL, price=PRICE)


async def test_nothing_of_anthropics_environment_reaches_another_server(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "token-1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://elsewhere.invalid")
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "x-team: team-1")
    upstream = Upstream()
    model = connect_anthropic(
        "http://messages.invalid", None, model=MODEL, price=PRICE,
        transport=httpx2.ASGITransport(app=upstream.app),
    )  # fmt: skip
    await model.complete(REQUEST)
    sent = json.dumps(upstream.headers)
    assert not any(secret in sent for secret in (KEY, "token-1", "team-1"))


def stream_message(*texts: str, is_whole: bool = True) -> Response:
    """A message as server-sent events, one for each text."""
    start = make_message(
        content=[], stop_reason=None, usage={"input_tokens": 9, "output_tokens": 1}
    )
    block = {"index": 0, "content_block": {"type": "text", "text": ""}}
    events: list[tuple[str, dict[str, object]]] = [
        ("message_start", {"message": start}),
        ("content_block_start", block),
        *(
            ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": text}})
            for text in texts
        ),
    ]
    if is_whole:
        ended = {"delta": {"stop_reason": "end_turn", "stop_sequence": None}}
        events += [
            ("content_block_stop", {"index": 0}),
            ("message_delta", ended | {"usage": {"output_tokens": 5}}),
            ("message_stop", {}),
        ]
    lines = [
        f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n" for kind, data in events
    ]
    return Response("".join(lines), media_type="text/event-stream")


async def test_a_streamed_answer_is_handed_on_in_pieces_and_counted_as_a_whole_one():
    upstream = Upstream(stream_message("Put it ", "in .env. ", "[1]"))
    model = model_over(upstream)
    pieces: list[str] = []
    completion = await model.stream(JSON_REQUEST, pieces.append)
    assert isinstance(model, StreamingChatModel)
    assert pieces == ["Put it ", "in .env. ", "[1]"]
    assert upstream.bodies[0]["stream"] is True
    assert upstream.bodies[0]["output_config"]["format"]["schema"] == SCHEMA
    assert (completion.text, completion.finish_reason) == ("Put it in .env. [1]", "stop")
    assert (completion.prompt_tokens, completion.completion_tokens) == (9, 5)
    assert 0 < completion.first_token_ms <= completion.latency_ms


async def test_a_stream_that_breaks_off_is_a_failure_and_not_asked_again():
    upstream = Upstream(stream_message("Put it ", is_whole=False), stream_message("whole"))
    pieces: list[str] = []
    with pytest.raises(UpstreamError, match="ended before"):
        await model_over(upstream, retries=3).stream(REQUEST, pieces.append)
    assert pieces == ["Put it "]
    assert len(upstream.bodies) == 1


async def test_a_stream_refused_before_its_first_piece_is_asked_again():
    upstream = Upstream(refuse(529, "busy", "overloaded_error"), stream_message("hi"))
    pieces: list[str] = []
    completion = await model_over(upstream).stream(REQUEST, pieces.append)
    assert (completion.text, pieces, len(upstream.bodies)) == ("hi", ["hi"], 2)


async def test_an_empty_stream_is_a_failure_too():
    upstream = Upstream(*[Response("", media_type="text/event-stream") for _ in range(2)])
    with pytest.raises(UpstreamError, match="ended before"):
        await model_over(upstream).stream(REQUEST, print)


@pytest.mark.parametrize(
    "said",
    [
        *({"input_tokens": tokens} for tokens in ("12", -1, 1.5, None, True)),
        {"output_tokens": True},
        {"cache_creation_input_tokens": -1},
        {"cache_read_input_tokens": "many"},
    ],
)
async def test_a_usage_that_is_no_number_of_tokens_is_no_usage(said):
    message = make_message(usage={"input_tokens": 12, "output_tokens": 3} | said)
    with pytest.raises(UpstreamRejectedError, match="no usage"):
        await model_over(Upstream(JSONResponse(message))).complete(REQUEST)
