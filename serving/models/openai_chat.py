"""The one chat client: any server that speaks OpenAI's chat completions, or an app in process.

Belongs here: mapping requests, answers and failures; one deadline and at most one retry. Does not
belong here: caching, budgets, concurrency (`resources`), prompts.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import httpx2
import openai
from openai.types.chat import ChatCompletion

from serving.errors import (
    DeadlineExceededError,
    InvalidInputError,
    ModelError,
    UpstreamError,
    UpstreamRejectedError,
)
from serving.models.protocols import ChatRequest, Completion, Price

IN_PROCESS_URL = "http://embedded.invalid/v1"
"""`.invalid` is reserved and never resolves: a request that missed the transport cannot leave."""

NO_KEY = "no-key"
"""Sent where a server wants none: given nothing, the SDK would read a key from the environment."""

LONGEST_RETRY_WAIT_SECONDS = 20.0
TOO_MANY_REQUESTS = 429
SERVER_ERROR = 500

ASGIApp = Callable[..., Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class OpenAIChatModel:
    """A pinned model behind a chat completions API; one instance serves concurrent callers.

    Args:
        name: the identity recorded with every answer.
        model: the model as the server knows it.
        price: what a token costs; every completion carries its cost.
        client: made with `max_retries=0`, since retries are counted here.
        timeout_seconds: for one call of `complete`, the retry included.
        retry_wait_seconds: mean wait before the retry; jittered by half so that callers spread out.
        max_tokens_key: newer OpenAI models take `max_completion_tokens` instead.
        wants_logprobs: ask for token logprobs, to fill `Completion.mean_logprob`.
    """

    name: str
    model: str
    price: Price
    client: openai.AsyncOpenAI = field(repr=False, compare=False)
    timeout_seconds: float = 60.0
    retry_wait_seconds: float = 1.0
    max_tokens_key: str = "max_tokens"
    wants_logprobs: bool = False

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer one request.

        Raises:
            DeadlineExceededError: no answer within `timeout_seconds`.
            UpstreamError: rate limited, server error or no connection, twice.
            UpstreamRejectedError: the server refused the request or answered without text or usage.
        """
        started = time.perf_counter()
        error: ModelError | None = None
        try:
            async with asyncio.timeout(self.timeout_seconds):
                answer = await self._ask_twice(request)
        except TimeoutError:
            error = self._deadline_exceeded()
        # Raised outside the handler, so that no SDK exception (it holds headers) is its context.
        if error is not None:
            raise error
        return self._read(answer, latency_ms=(time.perf_counter() - started) * 1000)

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()

    async def _ask_twice(self, request: ChatRequest) -> ChatCompletion:
        outcome = await self._ask(request)
        if isinstance(outcome, _Failure) and outcome.error.is_retryable:
            await asyncio.sleep(self._wait_seconds(outcome))
            outcome = await self._ask(request)
        if isinstance(outcome, _Failure):
            raise outcome.error
        return outcome

    async def _ask(self, request: ChatRequest) -> "ChatCompletion | _Failure":
        try:
            answer: object = await self.client.chat.completions.create(**self._arguments(request))
        except openai.APITimeoutError as error:
            raise TimeoutError from error
        except (openai.OpenAIError, ValueError) as error:
            return self._explain(error)
        # The SDK hands on what a wrong base_url answers: a page as a string, any JSON unchecked.
        if isinstance(answer, ChatCompletion) and isinstance(
            getattr(answer, "choices", None), list
        ):
            return answer
        return self._explain(ValueError(f"no chat completion: {str(answer)[:200]!r}"))

    def _arguments(self, request: ChatRequest) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "model": self.model,
            "messages": [dict(message) for message in request.messages],
            self.max_tokens_key: request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
            # The SDK's own clock is a net below ours, which also covers the retry.
            "timeout": self.timeout_seconds,
        }
        if request.response_format is not None:
            arguments["response_format"] = request.response_format
        if self.wants_logprobs:
            arguments["logprobs"] = True
        return arguments

    def _wait_seconds(self, failure: "_Failure") -> float:
        jitter = secrets.SystemRandom().uniform(0.5, 1.5)
        asked = failure.retry_after_seconds or 0.0
        return min(max(asked, self.retry_wait_seconds * jitter), LONGEST_RETRY_WAIT_SECONDS)

    def _explain(self, error: openai.OpenAIError | ValueError) -> "_Failure":
        if isinstance(error, openai.APIStatusError):
            return self._explain_status(error)
        if isinstance(error, openai.APIConnectionError):
            found = f"no connection ({type(error.__cause__ or error).__name__})"
        else:
            found = self._without_key(f"{type(error).__name__}: {error}")
        return _Failure(
            error=UpstreamError(
                f"asking {self.name}",
                expected=f"an answer from {self.client.base_url}",
                found=found,
                next_step="check that the server runs and that base_url is right, then try again",
            )
        )

    def _explain_status(self, error: openai.APIStatusError) -> "_Failure":
        status = error.status_code
        can_pass = status == TOO_MANY_REQUESTS or status >= SERVER_ERROR
        kind = UpstreamError if can_pass else UpstreamRejectedError
        next_step = (
            "try again later, or lower the concurrency"
            if can_pass
            else "correct the model, the key or the request: the same request fails again"
        )
        return _Failure(
            error=kind(
                f"asking {self.name}",
                expected="status 200",
                found=f"status {status}: {self._without_key(error.message)[:500]}",
                next_step=next_step,
            ),
            retry_after_seconds=_read_retry_after(error.response.headers.get("retry-after")),
        )

    def _deadline_exceeded(self) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"asking {self.name}",
            expected=f"an answer within {self.timeout_seconds:g} s",
            found="none yet",
            next_step="try again, or raise timeout_seconds if this model is always that slow",
        )

    def _without_key(self, text: str) -> str:
        """Some servers quote the key they refuse; it must not reach errors and logs."""
        key = self.client.api_key
        return text.replace(key, "***") if key else text

    def _read(self, answer: ChatCompletion, *, latency_ms: float) -> Completion:
        choice = answer.choices[0] if answer.choices else None
        text = getattr(getattr(choice, "message", None), "content", None)
        usage = getattr(answer, "usage", None)
        if choice is None or not isinstance(text, str) or usage is None:
            missing = "text" if usage is not None else "usage"
            raise UpstreamRejectedError(
                f"reading the answer of {self.name}",
                expected="one choice with text, and token usage",
                found=f"no {missing} (finish_reason {getattr(choice, 'finish_reason', 'none')})",
                next_step="use a server that reports usage, and look at what the model refused",
            )
        return Completion(
            text=text,
            model=self.name,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            finish_reason=choice.finish_reason,
            latency_ms=latency_ms,
            cost_usd=self.price.cost_usd(usage.prompt_tokens, usage.completion_tokens),
            mean_logprob=_mean_logprob(choice.logprobs.content if choice.logprobs else None),
        )


def connect(
    base_url: str,
    api_key: str | None,
    *,
    model: str,
    price: Price,
    timeout_seconds: float = 60.0,
    name: str | None = None,
    max_tokens_key: str = "max_tokens",
    wants_logprobs: bool = False,
) -> OpenAIChatModel:
    """Return a model behind `base_url`; `name` is `model` unless it is given.

    Nothing is read from the environment: no key, organisation or project of OpenAI's variables is
    sent to a server they were not meant for.

    Raises:
        InvalidInputError: `base_url` is no http(s) URL.
    """
    if not base_url.startswith(("http://", "https://")):
        raise InvalidInputError(
            f"connecting to {model}",
            expected="base_url to be an http:// or https:// URL",
            found=repr(base_url),
            next_step="set base_url to the server's OpenAI-compatible root, usually ending in /v1",
        )
    http_client = httpx2.AsyncClient(transport=_TransportPerLoop())
    return OpenAIChatModel(
        name=name or model,
        model=model,
        price=price,
        client=_make_client(base_url, api_key or NO_KEY, http_client),
        timeout_seconds=timeout_seconds,
        max_tokens_key=max_tokens_key,
        wants_logprobs=wants_logprobs,
    )


def connect_in_process(
    app: ASGIApp,
    *,
    model: str,
    price: Price,
    timeout_seconds: float = 60.0,
    name: str | None = None,
) -> OpenAIChatModel:
    """Return a model served by an ASGI app of this process: the same client, no socket."""
    # A crash of the app is a 500, as it would be over a socket.
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    http_client = httpx2.AsyncClient(transport=transport, trust_env=False)
    return OpenAIChatModel(
        name=name or model,
        model=model,
        price=price,
        client=_make_client(IN_PROCESS_URL, NO_KEY, http_client),
        timeout_seconds=timeout_seconds,
        retry_wait_seconds=0.0,
    )


def _make_client(
    base_url: str, api_key: str, http_client: httpx2.AsyncClient
) -> openai.AsyncOpenAI:
    client = openai.AsyncOpenAI(
        base_url=base_url, api_key=api_key, max_retries=0, http_client=http_client
    )
    client.organization = None
    client.project = None
    return client


class _TransportPerLoop(httpx2.AsyncBaseTransport):
    """Connections belong to the event loop that opened them; assets run one loop after another."""

    def __init__(self) -> None:
        self._transports: WeakKeyDictionary[
            asyncio.AbstractEventLoop, httpx2.AsyncHTTPTransport
        ] = WeakKeyDictionary()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        loop = asyncio.get_running_loop()
        if loop not in self._transports:
            self._transports[loop] = httpx2.AsyncHTTPTransport()
        return await self._transports[loop].handle_async_request(request)

    async def aclose(self) -> None:
        transport = self._transports.pop(asyncio.get_running_loop(), None)
        if transport is not None:
            await transport.aclose()


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """A failed call, and how long the server asked to wait."""

    error: UpstreamError
    retry_after_seconds: float | None = None


def _read_retry_after(header: str | None) -> float | None:
    try:
        return float(header) if header else None
    except ValueError:
        return None  # a date: the ordinary wait will do


def _mean_logprob(tokens: "list[Any] | None") -> float | None:
    return sum(token.logprob for token in tokens) / len(tokens) if tokens else None
