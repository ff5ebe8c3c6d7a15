"""Asking a server: one deadline, at most a few retries, and failures in words a person can use.

What the remote clients share whatever their wire format. Belongs here: the deadline, the retry, the
round of concessions, the explanation of a failure without the key. Does not belong here: which
failures pass (`faults`), which fields can be given up (`concessions`), requests and answers (the
clients), patience with thousands of calls (`resources/pacing`).
"""

import asyncio
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Set
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx2

from serving.errors import DeadlineExceededError, ModelError, RateLimitedError, UpstreamError
from serving.models.concessions import Concession, adapt_arguments, find_concession
from serving.models.faults import (
    ERRORS,
    NEXT_STEPS,
    classify_status,
    may_be_billed,
    read_retry_after,
)
from serving.models.retry_budget import RetryBudget

Answer = TypeVar("Answer")
OnText = Callable[[str], None]
"""Gets every piece of a text as it comes."""

NO_KEY = "no-key"
"""Sent where a server wants none: given nothing, an SDK would read a key from the environment."""

LONGEST_WAIT_SECONDS = 20.0
CALLER_DEADLINE: ContextVar[float] = ContextVar("caller_deadline", default=math.inf)
"""When, by `time.monotonic`, whoever asks gives up: a wait past it is not begun, so that a server
that only asks for patience is not taken for one that hangs."""
SHOWN_CHARS = 500


async def ask_again(
    ask: Callable[[], Awaitable[Answer | UpstreamError]],
    *,
    attempted: str,
    timeout_seconds: float,
    retries: int,
    retry_wait_seconds: float,
    budget: RetryBudget | None = None,
    may_ask_again: Callable[[], bool] = lambda: True,
) -> Answer:
    """Return the answer of `ask`, asked again while its failure can pass.

    Args:
        ask: one attempt; returns its failure, or raises `TimeoutError`.
        attempted: what is done, for the message ("asking gpt-4o-2024-08-06").
        timeout_seconds: for all attempts and the waits between them.
        retries: attempts after the first.
        retry_wait_seconds: mean wait before a retry, jittered by half so that callers spread out; a
            server that asks for longer is given it. A wait that the deadline cuts off, or that is
            over `LONGEST_WAIT_SECONDS`, is not begun.
        budget: what all calls of this model together may ask again; None: without end.
        may_ask_again: looked at before a retry: nobody can take back what was streamed.

    Raises:
        DeadlineExceededError: no answer within `timeout_seconds`.
        UpstreamError: the last failure.
    """
    outcome: Answer | ModelError
    deadline = min(time.monotonic() + timeout_seconds, CALLER_DEADLINE.get())
    if budget is not None:
        budget.count_call()
    try:
        async with asyncio.timeout(timeout_seconds):
            outcome = await ask()
            for _ in range(retries):
                if not isinstance(outcome, UpstreamError) or not outcome.is_retryable:
                    break
                wait = _find_wait(outcome, retry_wait_seconds)
                is_in_time = time.monotonic() + wait < deadline and wait <= LONGEST_WAIT_SECONDS
                if not (is_in_time and may_ask_again() and (budget is None or budget.take())):
                    break
                await asyncio.sleep(wait)
                outcome = await ask()
    except TimeoutError:
        outcome = explain_timeout(attempted, timeout_seconds)
    # Raised outside the handler, so that no SDK exception (it holds headers) is its context.
    if isinstance(outcome, ModelError):
        raise outcome
    return outcome


@dataclass(frozen=True, kw_only=True)
class Timed(Generic[Answer]):
    """An answer and what it took, retries included."""

    answer: Answer
    latency_ms: float
    first_token_ms: float | None
    """When the first piece came; None: nobody read along, or there was none."""


async def ask_timed(
    ask: Callable[[OnText | None], Awaitable[Answer | UpstreamError]],
    on_text: OnText | None,
    *,
    attempted: str,
    timeout_seconds: float,
    retries: int,
    retry_wait_seconds: float,
    budget: RetryBudget,
) -> Timed[Answer]:
    """Ask as `ask_again` does, and time it; `on_text` gets the pieces of a streamed answer.

    A failure is asked again only before the first piece: the reader has the others already.
    """
    started = time.perf_counter()
    first_at: list[float] = []

    def note(text: str) -> None:
        if not first_at:
            first_at.append(time.perf_counter())
        if on_text is not None:
            on_text(text)

    answer = await ask_again(
        lambda: ask(None if on_text is None else note),
        attempted=attempted,
        timeout_seconds=timeout_seconds,
        retries=retries,
        retry_wait_seconds=retry_wait_seconds,
        budget=budget,
        may_ask_again=lambda: not first_at,
    )
    return Timed(
        answer=answer,
        latency_ms=(time.perf_counter() - started) * 1000,
        first_token_ms=(first_at[0] - started) * 1000 if first_at else None,
    )


async def ask_conceding(
    send: Callable[[dict[str, Any], Set[Concession]], Awaitable[Answer | UpstreamError]],
    arguments: Mapping[str, Any],
    concessions: set[Concession],
) -> Answer | UpstreamError:
    """Ask once, and again without each optional field that the server refuses by name.

    Args:
        send: one call, given the adapted arguments and what was conceded to make them.
        arguments: of an OpenAI-style call, with all its fields.
        concessions: of the model; grows by those with which the server answered.
    """
    conceded = set(concessions)
    while True:
        sent = adapt_arguments(arguments, conceded)
        outcome = await send(sent, conceded)
        if not isinstance(outcome, UpstreamError):
            concessions.update(conceded)  # remembered once they helped
            return outcome
        concession = None if outcome.is_retryable else find_concession(sent, outcome.found)
        if concession is None:
            return outcome
        conceded.add(concession)


def explain_sdk_error(
    error: Exception, *, code: str | None, is_connection: bool, attempted: str, client: Any
) -> UpstreamError:
    """Return the error for a failure of the OpenAI or the Anthropic SDK, which are built alike.

    Args:
        error: with `status_code`, `message` and `response` where the server answered.
        code: what the server calls it; the two APIs keep it in different places.
        is_connection: whether the connection failed.
        attempted: what is done, for the message.
        client: the SDK's, for its `base_url` and `api_key`.
    """
    status = getattr(error, "status_code", None)
    if status is None:
        return explain_failure(
            error,
            is_connection=is_connection,
            attempted=attempted,
            base_url=client.base_url,
            api_key=client.api_key,
        )
    answered: Any = error
    return explain_status(
        status,
        answered.message,
        code=code,
        headers=answered.response.headers,
        attempted=attempted,
        api_key=client.api_key,
    )


def explain_status(
    status: int,
    message: str,
    *,
    code: str | None,
    headers: Mapping[str, str],
    attempted: str,
    api_key: str | None,
) -> UpstreamError:
    """Return the error for an HTTP status other than 200, with what the server says of it."""
    wait = read_retry_after(headers)
    fault = classify_status(status, code=code, retry_after_seconds=wait)
    said = f": {mask_key(message, api_key)[:SHOWN_CHARS]}" if message else " without a message"
    failure = ERRORS[fault](
        attempted,
        expected="status 200",
        found=f"status {status}{said}",
        next_step=NEXT_STEPS[fault],
    )
    failure.may_be_billed, failure.status = may_be_billed(status), status
    if isinstance(failure, RateLimitedError):
        failure.retry_after_seconds = wait
    return failure


def explain_failure(
    error: Exception, *, is_connection: bool, attempted: str, base_url: object, api_key: str | None
) -> UpstreamError:
    """Return the error for a lost connection, or for a reply that nobody can read.

    Only a connection that was never opened is surely free of charge.
    """
    # Of an SDK's error the client's is the cause; below that one lies the library of its sockets.
    cause = error if isinstance(error, httpx2.RequestError) else error.__cause__ or error
    unread = mask_key(f"{type(error).__name__}: {error}", api_key)[:SHOWN_CHARS]
    failure = UpstreamError(
        attempted,
        expected=f"an answer from {base_url}",
        found=f"no connection ({type(cause).__name__})" if is_connection else unread,
        next_step="check that the server runs and that base_url is right, then try again",
    )
    failure.may_be_billed = not isinstance(cause, httpx2.ConnectError)
    return failure


def explain_timeout(attempted: str, timeout_seconds: float) -> DeadlineExceededError:
    """Return the error for a call without an answer in time."""
    return DeadlineExceededError(
        attempted,
        expected=f"an answer within {timeout_seconds:g} s",
        found="none yet",
        next_step="try again, or raise timeout_seconds if this model is always that slow",
    )


def mask_key(text: str, api_key: str | None) -> str:
    """Return the text without the key: some servers quote the one they refuse."""
    return text.replace(api_key, "***") if api_key else text


def _find_wait(failure: UpstreamError, mean_seconds: float) -> float:
    jitter = secrets.SystemRandom().uniform(0.5, 1.5)
    asked = getattr(failure, "retry_after_seconds", None) or 0.0
    return float(max(asked, mean_seconds * jitter))
