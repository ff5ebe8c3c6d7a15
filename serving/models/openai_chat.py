"""The one chat client: any server that speaks OpenAI's chat completions, or an app in process.

Belongs here: mapping requests, answers and the SDK's failures. Does not belong here: the deadline
and the retry (`asking`); caching, budgets, patience (`resources`); prompts.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import httpx2
import openai
import orjson

from serving.errors import InvalidInputError, UpstreamError
from serving.models.asking import (
    NO_KEY,
    OnText,
    ask_conceding,
    ask_timed,
    explain_sdk_error,
    explain_status,
)
from serving.models.concessions import Concession, StructuredOutput, start_concessions
from serving.models.openai_answers import Answer, join_chunks, read_completion, read_refusal
from serving.models.protocols import ChatRequest, Completion, Price
from serving.models.retry_budget import RetryBudget
from serving.models.transports import TransportPerLoop

IN_PROCESS_URL = "http://embedded.invalid/v1"
"""`.invalid` is reserved and never resolves: a request that missed the transport cannot leave."""

IDEMPOTENCY_HEADER = "Idempotency-Key"
"""As in the IETF draft of that name; servers that do not know it ignore it."""

STREAMED = {"stream": True, "stream_options": {"include_usage": True}}

ASGIApp = Callable[..., Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class OpenAIChatModel:
    """A pinned model behind a chat completions API; one instance serves concurrent callers.

    Args:
        name: the identity recorded with every answer.
        model: the model as the server knows it.
        price: what a token costs; every completion carries its cost.
        client: made with `max_retries=0`, since retries are counted here. It reads streams, and
            knows the address and the key.
        transport: of the client; whole answers come over it directly.
        timeout_seconds: for one call of `complete`, the retry included.
        retries: how often a failure that can pass is asked again here. A user waits for one retry;
            the factory asks with 0 and retries with more patience (`resources/pacing`). The SDK's
            own retries are always off.
        retry_wait_seconds: mean wait before the retry; jittered by half so that callers spread out.
        top_logprobs: ask for this many per token (1-20), to fill `Completion.logprobs` and
            `mean_logprob`; 0: none.
        concessions: what the server does not take of a request; grows with its refusals.
        retry_budget: what all calls together may ask again.
        can_stream: whether the server hands its text on while it writes.
    """

    name: str
    model: str
    price: Price
    client: openai.AsyncOpenAI = field(repr=False, compare=False)
    transport: httpx2.AsyncBaseTransport = field(repr=False, compare=False)
    timeout_seconds: float = 60.0
    retries: int = 1
    retry_wait_seconds: float = 1.0
    top_logprobs: int = 0
    concessions: set[Concession] = field(default_factory=set, compare=False)
    retry_budget: RetryBudget = field(default_factory=RetryBudget, repr=False, compare=False)
    can_stream: bool = True

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer one request.

        Raises:
            DeadlineExceededError: no answer within `timeout_seconds`.
            UpstreamError: no connection, a server error, or rate limited (`RateLimitedError`),
                after `retries`.
            UpstreamRejectedError: the server refused the request or answered without text or usage.
            InvalidInputError: it sends no logprobs although `top_logprobs` asks for them.
        """
        return await self._answer(request)

    async def stream(self, request: ChatRequest, on_text: OnText) -> Completion:
        """Answer one request as `complete` does, and hand its text on while it comes.

        A failure is asked again only before the first piece: the reader has the others already.
        """
        if not self.can_stream:
            completion = await self.complete(request)
            on_text(completion.text)
            return completion
        return await self._answer(request, on_text)

    async def _answer(self, request: ChatRequest, on_text: OnText | None = None) -> Completion:
        timed = await ask_timed(
            partial(self._ask, request),
            on_text,
            attempted=f"asking {self.name}",
            timeout_seconds=self.timeout_seconds,
            retries=self.retries,
            retry_wait_seconds=self.retry_wait_seconds,
            budget=self.retry_budget,
        )
        return read_completion(
            timed.answer,
            name=self.name,
            price=self.price,
            latency_ms=timed.latency_ms,
            first_token_ms=timed.first_token_ms,
            top_logprobs=self.top_logprobs,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()

    async def _ask(
        self, request: ChatRequest, on_text: OnText | None = None
    ) -> Answer | UpstreamError:
        async def send(sent: dict[str, Any], conceded: Set[Concession]) -> Answer | UpstreamError:
            # The same request has the same key in every run, so that a gateway that honours it
            # answers a call repeated after a crash without making, or billing, a second answer.
            parts = (request.content_key(self.name), *sorted(conceded))
            key = "-".join(parts + ((f"top{self.top_logprobs}",) if self.top_logprobs else ()))
            return await self._send(sent, idempotency_key=key, on_text=on_text)

        return await ask_conceding(send, self._arguments(request), self.concessions)

    async def _send(
        self,
        arguments: dict[str, Any],
        *,
        idempotency_key: str,
        on_text: OnText | None = None,
    ) -> Answer | UpstreamError:
        headers = {IDEMPOTENCY_HEADER: idempotency_key}
        try:
            if on_text is None:
                status, answered, content = await self._post(orjson.dumps(arguments), headers)
                if not httpx2.codes.is_success(status):
                    return self._explain_refusal(status, answered, content)
                answer = json.loads(content)  # a token may be half a character
            else:
                # A whole address is taken as it is; a path would be joined and parsed at each call.
                chunks = await self.client.post(
                    str(self._address),
                    cast_to=object,
                    content=orjson.dumps(arguments | STREAMED),
                    # The SDK's own clock is a net below ours, which also covers the retry.
                    options={"headers": headers, "timeout": self.timeout_seconds},
                    stream=True,
                    stream_cls=openai.AsyncStream[object],
                )
                answer = await join_chunks(chunks, on_text)
        except (openai.APITimeoutError, httpx2.TimeoutException) as error:
            raise TimeoutError from error
        except (openai.OpenAIError, httpx2.RequestError, ValueError) as error:
            return self._explain(error)
        # A wrong base_url answers any JSON.
        if isinstance(answer, dict) and isinstance(answer.get("choices"), list):
            return answer
        return self._explain(ValueError(f"no chat completion: {str(answer)[:200]!r}"))

    async def _post(
        self, content: bytes, headers: Mapping[str, str]
    ) -> tuple[int, httpx2.Headers, bytes]:
        """Send a body and return the status, headers and body of what comes back.

        What the SDK and the client below it do around that is half of a call's CPU, and a server
        makes a call for every question.
        """
        request = httpx2.Request(
            "POST",
            self._address,
            headers={**self._headers, **headers},
            content=content,
            extensions={"timeout": httpx2.Timeout(self.timeout_seconds).as_dict()},
        )
        response = await self.transport.handle_async_request(request)
        try:
            return response.status_code, response.headers, await response.aread()
        finally:
            await response.aclose()

    @cached_property
    def _address(self) -> httpx2.URL:
        return httpx2.URL(f"{self.client.base_url}chat/completions")

    @cached_property
    def _headers(self) -> Mapping[str, str]:
        return {
            "Authorization": f"Bearer {self.client.api_key}",
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "gzip, deflate",
            "User-Agent": "understudy",
        }

    def _arguments(self, request: ChatRequest) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "model": self.model,
            "messages": [dict(message) for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
        }
        if request.response_format is not None:
            arguments["response_format"] = request.response_format
        if self.top_logprobs:
            arguments["logprobs"] = True
            arguments["top_logprobs"] = self.top_logprobs
        return arguments

    def _explain_refusal(
        self, status: int, headers: Mapping[str, str], content: bytes
    ) -> UpstreamError:
        message, code = read_refusal(content)
        return explain_status(
            status,
            message,
            code=code,
            headers=headers,
            attempted=f"asking {self.name}",
            api_key=self.client.api_key,
        )

    def _explain(
        self, error: openai.OpenAIError | httpx2.RequestError | ValueError
    ) -> UpstreamError:
        return explain_sdk_error(
            error,
            code=error.code if isinstance(error, openai.APIStatusError) else None,
            is_connection=isinstance(error, openai.APIConnectionError | httpx2.TransportError),
            attempted=f"asking {self.name}",
            client=self.client,
        )


def connect(
    base_url: str,
    api_key: str | None,
    *,
    model: str,
    price: Price,
    timeout_seconds: float = 60.0,
    retries: int = 1,
    name: str | None = None,
    top_logprobs: int = 0,
    structured_output: StructuredOutput = "json_schema",
    transport: httpx2.AsyncBaseTransport | None = None,
) -> OpenAIChatModel:
    """Return a model behind `base_url`; `name` is `model` unless it is given.

    `transport` is how bytes travel; by default over httpx's connections, one pool a loop.
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
    transport = transport or TransportPerLoop()
    return OpenAIChatModel(
        name=name or model,
        model=model,
        price=price,
        client=_make_client(base_url, api_key or NO_KEY, transport),
        transport=transport,
        timeout_seconds=timeout_seconds,
        retries=retries,
        top_logprobs=top_logprobs,
        concessions=start_concessions(structured_output),
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
    return OpenAIChatModel(
        name=name or model,
        model=model,
        price=price,
        client=_make_client(IN_PROCESS_URL, NO_KEY, transport),
        transport=transport,
        timeout_seconds=timeout_seconds,
        retry_wait_seconds=0.0,
        can_stream=False,  # the transport hands a body on whole
    )


def _make_client(
    base_url: str, api_key: str, transport: httpx2.AsyncBaseTransport
) -> openai.AsyncOpenAI:
    http_client = httpx2.AsyncClient(transport=transport, trust_env=False)
    client = openai.AsyncOpenAI(
        base_url=base_url, api_key=api_key, max_retries=0, http_client=http_client
    )
    client.organization = None
    client.project = None
    return client
