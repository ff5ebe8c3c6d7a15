"""The extractive teacher and judge behind the OpenAI chat completions API. Embedded; no LLM inside.

The same client code drives it through an in-process transport as drives a paid model over a socket,
so the network path is the tested path. Belongs here: requests, responses, errors in OpenAI's form.
Does not belong here: how answers are found (`answering`, `paraphrasing`, `judging`).
"""

import json
import re
import time
from collections.abc import Callable
from typing import Any, Literal

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from serving.hashing import content_hash
from serving.models.extractive.answering import answer_question
from serving.models.extractive.judging import judge_answer
from serving.models.extractive.paraphrasing import reword
from serving.models.extractive.sources import read_sources
from serving.models.extractive.vectors import SentenceVectors
from serving.models.protocols import Embedder

ANSWER_MODEL = "extractive-v1"
JUDGE_MODEL = "extractive-judge-v1"
OWNER = "understudy (extractive, embedded, no LLM)"

DEFAULT_MAX_TOKENS = 512
DEFAULT_PARAPHRASES = 8

_QUESTION = re.compile(r"<question>\n(?P<text>.*)\n</question>", re.DOTALL)
_JUDGED = re.compile(
    r"<question>\n(?P<question>.*?)\n</question>\s+<sources>\n(?P<sources>.*)\n</sources>\s+"
    r"<answer>\n(?P<answer>.*)\n</answer>",
    re.DOTALL,
)
_COUNT = re.compile(r"\b(?P<count>\d{1,3}) (?:ways|times|rewordings|paraphrases|variants)\b")


class RequestRefusedError(Exception):
    """A request this endpoint does not serve, as OpenAI's error object will say it."""

    def __init__(self, status: int, message: str, *, param: str | None, code: str) -> None:
        """Keep what the error object needs."""
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        super().__init__(message)


class _TextPart(BaseModel):
    type: Literal["text"]
    text: str


class _ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_TextPart]

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class _JsonSchema(BaseModel):
    name: str


class _ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None


class _ChatCompletionRequest(BaseModel):
    """The part of OpenAI's request that matters here; other keys are accepted and ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: list[_ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    seed: int | None = None
    response_format: _ResponseFormat | None = None
    n: int | None = None
    stream: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None

    @property
    def token_limit(self) -> int:
        return self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS

    @property
    def schema_name(self) -> str | None:
        schema = self.response_format.json_schema if self.response_format else None
        return schema.name if schema else None

    def last_text(self, role: str) -> str:
        return next((m.text for m in reversed(self.messages) if m.role == role), "")

    @property
    def system_text(self) -> str:
        return "\n".join(m.text for m in self.messages if m.role in {"system", "developer"})


def create_app(embedder: Embedder) -> FastAPI:
    """Build the ASGI app: `POST /v1/chat/completions` and `GET /v1/models`, nothing stored.

    Args:
        embedder: gives sentence vectors and counts the tokens of the usage report.
    """
    app = FastAPI(title="Understudy extractive teacher (embedded, no LLM)", openapi_url=None)
    vectors = SentenceVectors(embedder)

    @app.post("/v1/chat/completions")
    async def complete(body: _ChatCompletionRequest) -> dict[str, object]:
        _refuse_unsupported(body)
        # Embedding takes milliseconds to seconds of CPU: in a thread the event loop stays free.
        return await anyio.to_thread.run_sync(_complete, body, vectors, embedder.fingerprint)

    @app.get("/v1/models")
    async def list_models() -> dict[str, object]:
        models = [
            {"id": name, "object": "model", "created": 0, "owned_by": OWNER}
            for name in (ANSWER_MODEL, JUDGE_MODEL)
        ]
        return {"object": "list", "data": models}

    app.add_exception_handler(RequestRefusedError, _write_refused)
    app.add_exception_handler(RequestValidationError, _write_malformed)
    return app


def _refuse_unsupported(body: _ChatCompletionRequest) -> None:
    if body.model not in {ANSWER_MODEL, JUDGE_MODEL}:
        raise RequestRefusedError(
            404,
            f"The model `{body.model}` does not exist here; use `{ANSWER_MODEL}` or "
            f"`{JUDGE_MODEL}`.",
            param="model",
            code="model_not_found",
        )
    unsupported = (
        ("logprobs", bool(body.logprobs or body.top_logprobs), "returns no logprobs"),
        ("stream", bool(body.stream), "does not stream"),
        ("n", body.n not in {None, 1}, "returns one choice"),
        ("tools", bool(body.tools), "calls no tools"),
    )
    for param, is_asked, what in unsupported:
        if is_asked:
            raise RequestRefusedError(
                400, f"`{body.model}` {what}.", param=param, code="unsupported_parameter"
            )


def _complete(
    body: _ChatCompletionRequest, vectors: SentenceVectors, fingerprint: str
) -> dict[str, object]:
    text = _task_of(body)(body, vectors)
    prompt_tokens = vectors.count_tokens([message.text for message in body.messages])
    completion_tokens = vectors.count_tokens([text])
    identity = content_hash(body.model_dump(mode="json"), fingerprint)
    return {
        "id": f"chatcmpl-{identity}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": fingerprint,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def _task_of(
    body: _ChatCompletionRequest,
) -> Callable[[_ChatCompletionRequest, SentenceVectors], str]:
    """Recognise the task from the model and the JSON schema asked for."""
    task = (body.model, body.schema_name)
    if task == (ANSWER_MODEL, "paraphrases"):
        return _write_paraphrases
    if task == (JUDGE_MODEL, "judgement"):
        return _write_judgement
    if body.model == ANSWER_MODEL and body.response_format is None:
        return _write_answer
    raise RequestRefusedError(
        400,
        f"`{body.model}` does not know this task: `{ANSWER_MODEL}` answers without a "
        "`response_format` and rewords with the json_schema `paraphrases`, "
        f"`{JUDGE_MODEL}` judges with the json_schema `judgement`.",
        param="response_format",
        code="unknown_task",
    )


def _write_answer(body: _ChatCompletionRequest, vectors: SentenceVectors) -> str:
    quotation = answer_question(
        body.last_text("user"),
        read_sources(body.system_text),
        vectors,
        fits=lambda text: vectors.count_tokens([text]) <= body.token_limit,
    )
    return quotation.text


def _write_paraphrases(body: _ChatCompletionRequest, _: SentenceVectors) -> str:
    asked = body.last_text("user")
    match = _QUESTION.search(asked)
    count = _COUNT.search(asked[: match.start()] if match else body.system_text)
    variants = reword(
        match["text"] if match else asked,
        count=int(count["count"]) if count else DEFAULT_PARAPHRASES,
        temperature=1.0 if body.temperature is None else body.temperature,
        seed=body.seed or 0,
    )
    return json.dumps({"paraphrases": variants}, ensure_ascii=False)


def _write_judgement(body: _ChatCompletionRequest, vectors: SentenceVectors) -> str:
    match = _JUDGED.search(body.last_text("user"))
    if match is None:
        raise RequestRefusedError(
            400,
            "The judge reads <question>, <sources> and <answer> from the user message, each tag on "
            "a line of its own.",
            param="messages",
            code="unreadable_task",
        )
    ratings = judge_answer(
        match["question"], read_sources(match["sources"]), match["answer"], vectors
    )
    rationale = "; ".join(f"{axis} {r.score}: {r.reason}" for axis, r in ratings.items())
    scores = {axis: rating.score for axis, rating in ratings.items()}
    return json.dumps({**scores, "rationale": rationale}, ensure_ascii=False)


async def _write_refused(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestRefusedError):
        raise error
    return _write_error(error.status, error.message, param=error.param, code=error.code)


async def _write_malformed(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    message = f"{place or 'body'}: {first['msg']}"
    return _write_error(422, message, param=place or None, code="invalid_request")


def _write_error(status: int, message: str, *, param: str | None, code: str) -> JSONResponse:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return JSONResponse({"error": error}, status_code=status)
