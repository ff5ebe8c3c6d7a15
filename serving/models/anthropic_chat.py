"""The chat client for servers that speak Anthropic's Messages API: text only, no logprobs.

Belongs here: mapping requests, answers and the SDK's failures. Does not belong here: the deadline
and the retry (`asking`); caching, budgets, patience (`resources`); prompts.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anthropic
import httpx2
from anthropic.types import Message, TextBlock

from serving.errors import InvalidInputError, UpstreamError, UpstreamRejectedError
from serving.models.asking import (
    NO_KEY,
    OnText,
    Timed,
    ask_conceding,
    ask_timed,
    explain_sdk_error,
)
from serving.models.concessions import Concession, StructuredOutput, start_concessions
from serving.models.protocols import ChatRequest, Completion, Price
from serving.models.retry_budget import RetryBudget
from serving.models.transports import TransportPerLoop
from serving.models.usage import read_token_count

ANTHROPIC_URL = "https://api.anthropic.com"

FINISH_REASONS: Mapping[str, str] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
}
"""Stop reasons in the words of OpenAI's API, which the pipeline uses; others stay as they are."""


@dataclass(frozen=True, kw_only=True)
class AnthropicChatModel:
    """A pinned model behind the Messages API; one instance serves concurrent callers.

    The API has no seed: requests that differ in their seed alone are asked alike. A reply that
    stops with `refusal` is no answer.

    Args:
        name: the model as the server knows it, and the identity recorded with every answer.
        price: what a token costs; every completion carries its cost.
        client: made with `max_retries=0`, since retries are counted here.
        timeout_seconds: for one call of `complete`, the retry included.
        retries: how often a failure that can pass is asked again here, as in `openai_chat`.
        retry_wait_seconds: mean wait before the retry.
        concessions: what the server does not take of a request; grows with its refusals.
    """

    name: str
    price: Price
    client: anthropic.AsyncAnthropic = field(repr=False, compare=False)
    timeout_seconds: float = 60.0
    retries: int = 1
    retry_wait_seconds: float = 1.0
    concessions: set[Concession] = field(default_factory=set, compare=False)
    retry_budget: RetryBudget = field(default_factory=RetryBudget, repr=False, compare=False)

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer one request.

        Raises:
            DeadlineExceededError: no answer within `timeout_seconds`.
            UpstreamError: rate limited, overloaded, server error or no connection, after `retries`.
            UpstreamRejectedError: the server refused the request or answered without text.
        """
        return await self._answer(request)

    async def stream(self, request: ChatRequest, on_text: OnText) -> Completion:
        """Answer one request as `complete` does, and hand its text on while it comes.

        A failure is asked again only before the first piece: the reader has the others already.
        """
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
        return self._read(timed)

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()

    async def _ask(
        self, request: ChatRequest, on_text: OnText | None = None
    ) -> Message | UpstreamError:
        async def send(sent: dict[str, Any], _: Set[Concession]) -> Message | UpstreamError:
            return await self._send(request, sent, on_text)

        return await ask_conceding(send, _list_optional(request), self.concessions)

    async def _send(
        self,
        request: ChatRequest,
        optional: Mapping[str, Any],
        on_text: OnText | None,
    ) -> Message | UpstreamError:
        arguments: dict[str, Any] = {
            "model": self.name,
            "max_tokens": request.max_tokens,
            "timeout": self.timeout_seconds,
            **_write_messages(request),
            **_write_format(optional.get("response_format")),
            # The SDK has no argument for it any more: newer models refuse it, older take it.
            "extra_body": {k: v for k, v in optional.items() if k == "temperature"},
        }
        try:
            answer: object
            if on_text is None:
                answer = await self.client.messages.create(**arguments)
            else:
                answer = await self._read_stream(arguments, on_text)
        except anthropic.APITimeoutError as error:
            raise TimeoutError from error
        except (anthropic.AnthropicError, httpx2.TransportError, ValueError) as error:
            return self._explain(error)
        # The SDK hands on what a wrong base_url answers: a page as a string, any JSON unchecked.
        if isinstance(answer, Message) and isinstance(getattr(answer, "content", None), list):
            return answer
        return self._explain(ValueError(f"no message: {str(answer)[:200]!r}"))

    async def _read_stream(self, arguments: Mapping[str, Any], on_text: OnText) -> Message:
        """Hand on the text of a streamed message, and return the whole.

        Raises:
            ValueError: the stream ended before the message did.
        """
        has_ended = False
        async with self.client.messages.stream(**arguments) as events:
            async for event in events:
                if event.type == "text":
                    on_text(event.text)
                has_ended = event.type == "message_stop"
            if not has_ended:
                raise ValueError("the stream ended before the message did")
            return await events.get_final_message()

    def _explain(
        self, error: anthropic.AnthropicError | httpx2.TransportError | ValueError
    ) -> UpstreamError:
        return explain_sdk_error(
            error,
            code=error.type if isinstance(error, anthropic.APIStatusError) else None,
            is_connection=isinstance(error, anthropic.APIConnectionError | httpx2.TransportError),
            attempted=f"asking {self.name}",
            client=self.client,
        )

    def _read(self, timed: Timed[Message]) -> Completion:
        answer = timed.answer
        text = "".join(block.text for block in answer.content if isinstance(block, TextBlock))
        usage = getattr(answer, "usage", None)
        stop_reason = getattr(answer, "stop_reason", None) or "none"
        counts = _read_counts(usage)
        if not text or counts is None or stop_reason == "refusal":
            missing = "usage" if text and counts is None else "text"
            rejection = UpstreamRejectedError(
                f"reading the answer of {self.name}",
                expected="text, and token usage",
                found=f"no {missing} (stop_reason {stop_reason})",
                next_step="look at what the model refused, or use one that answers it",
            )
            rejection.may_be_billed = True  # the prompt was read
            raise rejection
        prompt_tokens, completion_tokens = counts
        return Completion(
            text=text,
            model=self.name,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            finish_reason=FINISH_REASONS.get(stop_reason, stop_reason),
            latency_ms=timed.latency_ms,
            first_token_ms=timed.first_token_ms,
            cost_usd=self.price.cost_usd(prompt_tokens, completion_tokens),
        )


def _read_counts(usage: Any) -> tuple[int, int] | None:
    """Return the tokens of prompt and answer; None where one is no whole number.

    `input_tokens` leaves out what was written to or read from the provider's prompt cache, which a
    server without one does not report.
    """
    cached = ("cache_creation_input_tokens", "cache_read_input_tokens")
    said = [getattr(usage, name, None) for name in cached]
    parts = [getattr(usage, "input_tokens", None), *(part for part in said if part is not None)]
    prompt = [count for count in map(read_token_count, parts) if count is not None]
    answer = read_token_count(getattr(usage, "output_tokens", None))
    return None if answer is None or len(prompt) < len(parts) else (sum(prompt), answer)


def connect_anthropic(
    base_url: str | None,
    api_key: str | None,
    *,
    model: str,
    price: Price,
    timeout_seconds: float = 60.0,
    retries: int = 1,
    structured_output: StructuredOutput = "json_schema",
    transport: httpx2.AsyncBaseTransport | None = None,
) -> AnthropicChatModel:
    """Return a model behind `base_url`, by default Anthropic's own.

    Nothing is read from the environment or a profile on disk: no key or header of Anthropic's
    variables is sent to a server they were not meant for.

    Args:
        base_url: root of the API, without `/v1`.
        api_key: sent as a bearer token.
        model: a dated snapshot.
        price: what a token costs.
        timeout_seconds: for one call, the retry included.
        retries: of a failure that can pass.
        structured_output: how JSON is asked for at first.
        transport: how bytes travel; by default over sockets.

    Raises:
        InvalidInputError: `base_url` is no http(s) URL, or ends in /v1.
    """
    root = (base_url or ANTHROPIC_URL).rstrip("/")
    if not root.startswith(("http://", "https://")) or root.endswith("/v1"):
        raise InvalidInputError(
            f"connecting to {model}",
            expected="base_url to be an http(s) URL without /v1, which the client adds",
            found=repr(base_url),
            next_step=f"leave base_url out for {ANTHROPIC_URL}, or set it to the server's root",
        )
    client = anthropic.AsyncAnthropic(
        base_url=root,
        api_key=api_key or NO_KEY,
        webhook_key=NO_KEY,
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=transport or TransportPerLoop()),
    )
    client._custom_headers = {}  # the SDK fills it from ANTHROPIC_CUSTOM_HEADERS
    return AnthropicChatModel(
        name=model,
        price=price,
        client=client,
        timeout_seconds=timeout_seconds,
        retries=retries,
        concessions=start_concessions(structured_output),
    )


def _list_optional(request: ChatRequest) -> dict[str, Any]:
    """Return the optional parts of a request, by OpenAI's names."""
    arguments: dict[str, Any] = {"temperature": request.temperature}
    if request.response_format is not None:
        arguments["response_format"] = request.response_format
    return arguments


def _write_messages(request: ChatRequest) -> dict[str, Any]:
    """Return `system` and `messages`: the API takes the system prompt apart from the turns."""
    system = "\n\n".join(m["content"] for m in request.messages if m["role"] == "system")
    turns = [dict(m) for m in request.messages if m["role"] != "system"]
    return {"messages": turns, **({"system": system} if system else {})}


def _write_format(response_format: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return `output_config` for a JSON schema; JSON without one is left to the prompt."""
    if not response_format or response_format["type"] != "json_schema":
        return {}
    schema = response_format["json_schema"]["schema"]
    return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
