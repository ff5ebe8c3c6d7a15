"""A chat model with a breaker and a deadline of its own, for the request path of a server.

Belongs here: which failures count against a model, the deadline of an attempt, what its first
answer says of loading. Does not belong here: the breaker's arithmetic (`breaker`), retries
(`asking`), what follows for the route (`pipeline.router`).
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from serving.errors import (
    CircuitOpenError,
    DeadlineExceededError,
    ModelError,
    RateLimitedError,
    UpstreamError,
    UpstreamRejectedError,
)
from serving.models.asking import CALLER_DEADLINE, explain_timeout
from serving.models.breaker import CircuitBreaker
from serving.models.faults import PASSING
from serving.models.protocols import (
    ChatModel,
    ChatRequest,
    Completion,
    Price,
    StreamingChatModel,
)

SETTLING_SECONDS = 0.05
"""Kept of a question's deadline for what comes after a call: an answer of a model that was asked
before is still shown, where this one took the rest of the time."""


class GuardedChatModel:
    """A `ChatModel` that is not asked while it is known to fail.

    Args:
        model: who answers.
        breaker: of this (upstream, model, adapter); never shared between two of them.
        timeout_seconds: of one call, whatever the model does about its own.
        load_ms: what loading its weights took, where it runs in this process; None: it does not.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        breaker: CircuitBreaker,
        timeout_seconds: float,
        load_ms: float | None = None,
    ) -> None:
        self.inner = model
        self.breaker = breaker
        self.load_ms = load_ms
        self._timeout_seconds = timeout_seconds
        self._is_fresh = True

    @property
    def name(self) -> str:
        """The pinned identity recorded with every answer."""
        return self.inner.name

    @property
    def price(self) -> Price:
        """What a token costs."""
        return self.inner.price

    @property
    def is_stopped(self) -> bool:
        """Whether a call made now would be refused."""
        return self.breaker.is_stopped

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer one request.

        Raises:
            CircuitOpenError: the model failed too often just now.
            DeadlineExceededError: no answer in time.
            ModelError: what the model raises.
        """
        return await self._ask(lambda: self.inner.complete(request))

    async def stream(self, request: ChatRequest, on_text: Callable[[str], None]) -> Completion:
        """Answer one request, and hand the text on as it comes where the model can."""
        inner = self.inner
        if not isinstance(inner, StreamingChatModel):
            return await self.complete(request)
        return await self._ask(lambda: inner.stream(request, on_text))

    async def _ask(self, ask: Callable[[], Awaitable[Completion]]) -> Completion:
        now = time.monotonic()
        ends_at = min(CALLER_DEADLINE.get() - SETTLING_SECONDS, now + self._timeout_seconds)
        seconds = ends_at - now
        if seconds <= 0:  # whoever was asked before took all of it: no failure of this model
            raise _explain_no_time(self.name)
        entered = self.breaker.enter()
        if entered is None:
            raise self._explain_open()
        # Cancelled is what a call is whose caller's deadline passed: it was too slow.
        has_failed: bool | None = True
        deadline_set = CALLER_DEADLINE.set(ends_at)
        try:
            async with asyncio.timeout(seconds) as clock:
                completion = await ask()
            # Without a token nobody was asked: a rule before the model refused.
            has_failed = False if completion.prompt_tokens or completion.completion_tokens else None
        except TimeoutError:
            if not clock.expired():
                raise
        except ModelError as error:
            has_failed = _counts(error)
            raise
        finally:
            CALLER_DEADLINE.reset(deadline_set)
            self.breaker.leave(entered, has_failed=has_failed)
        if has_failed:
            raise explain_timeout(f"asking {self.name}", round(seconds, 3))
        return self._note_load(completion)

    def _note_load(self, completion: Completion) -> Completion:
        """Say of an answer in process whether loading was part of it."""
        if self.load_ms is None or completion.cold_start is not None:
            return completion
        is_first, self._is_fresh = self._is_fresh, False
        return replace(
            completion,
            cold_start=is_first,
            adapter_load_ms=self.load_ms if is_first else 0.0,
        )

    async def close(self) -> None:
        """Close the model's connections, if it has any."""
        if (close := getattr(self.inner, "close", None)) is not None:
            await close()

    def _explain_open(self) -> CircuitOpenError:
        wait = self.breaker.retry_after_seconds
        refused = CircuitOpenError(
            f"asking {self.name}",
            expected="a model that answered of late",
            found=f"too many failures: it is left alone for {wait:.1f} s more",
            next_step="try again then; see the log for what failed",
        )
        refused.retry_after_seconds = math.ceil(wait) or 1
        return refused


def _explain_no_time(name: str) -> DeadlineExceededError:
    return DeadlineExceededError(
        f"asking {name}",
        expected="time left before the question's deadline",
        found="none",
        next_step="ask again, or raise the deadline of a request",
    )


def _counts(error: ModelError) -> bool | None:
    """Say whether a failure is the model's: a request it refuses (4xx) says that it is alive."""
    if isinstance(error, UpstreamError) and error.status in PASSING:
        return None
    if isinstance(error, UpstreamRejectedError | RateLimitedError):
        return False if isinstance(error, UpstreamRejectedError) else None
    if isinstance(error, DeadlineExceededError):
        return True
    return bool(getattr(error, "is_retryable", True))
