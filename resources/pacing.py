"""How one model is asked by many: not faster than it takes, again where that helps, not for ever.

Belongs here: the pace that all callers of a model share, and when a call is asked again. Does not
belong here: which failures pass (`serving/models/faults`), what a call costs (`chat_models`).
"""

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio

from serving.errors import (
    DeadlineExceededError,
    ModelError,
    RateLimitedError,
    UpstreamError,
)

T = TypeVar("T")

MAXIMUM_FAULTS = 5
"""Attempts that may fail on their own, the last included; being throttled counts as none of them,
since it says when to come back."""

JITTER = random.SystemRandom()
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 30.0


class Pace:
    """How many calls to one model may be under way, learned from the model's refusals.

    Additive increase, multiplicative decrease (Chiu and Jain 1989), as in TCP: each answer adds
    1/limit to the limit, so a full round of answers adds one call; a refusal halves it, once for
    all calls that were already under way when it was last halved. A refusal also closes the door to
    all callers until the time the server named: one back-off per model, not one per caller.

    Args:
        concurrency: calls under way at most, and at the start.
        deadline_seconds: for one call with all its attempts and waits.
        draw: returns a number in [0, 1) for the jitter.
    """

    def __init__(
        self,
        concurrency: int,
        *,
        deadline_seconds: float,
        draw: Callable[[], float] = JITTER.random,
    ) -> None:
        self.concurrency = concurrency
        self.deadline_seconds = deadline_seconds
        self._draw = draw
        self._limit = float(concurrency)
        self._slots = anyio.CapacityLimiter(concurrency)
        self._opens_at = 0.0
        self._slowed_at = 0.0
        self._refusal: ModelError | None = None

    @property
    def limit(self) -> int:
        """How many calls may be under way now."""
        return int(self._limit)

    async def insist(self, attempt: Callable[[], Awaitable[T]], *, name: str) -> T:
        """Return what `attempt` returns, asked again while a failure can pass.

        Args:
            attempt: one call; its `ModelError` says whether it can pass.
            name: of the model, for the message.

        Raises:
            ModelError: the last failure: it cannot pass, it happened `MAXIMUM_FAULTS` times, or the
                server asks to come back after the deadline.
            DeadlineExceededError: no answer within `deadline_seconds`, or none to be had because
                the door, closed by another caller's refusal, opens later.
        """
        ends_at = time.monotonic() + self.deadline_seconds
        last: ModelError | None = None
        try:
            with anyio.fail_after(self.deadline_seconds):
                failures = faults = 0
                while True:
                    try:
                        async with self._turn(ends_at) as began:
                            answer = await attempt()
                    except ModelError as failure:
                        last, is_throttled = failure, isinstance(failure, RateLimitedError)
                        wait = self._find_wait(failure, failures)
                        failures, faults = failures + 1, faults + (not is_throttled)
                        if (
                            is_throttled
                        ):  # also when this caller gives up: the others must not knock
                            self._slow_down(began, wait, failure)
                        if not can_pass(failure) or faults >= MAXIMUM_FAULTS:
                            raise
                        if time.monotonic() + wait >= ends_at:
                            raise
                    else:
                        self._speed_up()
                        return answer
                    if not is_throttled:
                        await anyio.sleep(wait)
        except TimeoutError:
            is_closed = self._opens_at > time.monotonic()
            last = last or (self._refusal if is_closed else None)
            raise self._deadline_exceeded(name, last) from None

    def _find_wait(self, failure: ModelError, failures: int) -> float:
        """Return what the server asks for, and at least exponential back-off with full jitter.

        Full jitter (Brooker, "Exponential backoff and jitter", AWS 2015): callers that failed
        together do not come back together. A server that says 0 again and again is not asked
        without a pause.
        """
        asked = getattr(failure, "retry_after_seconds", None) or 0.0
        longest = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0**failures)
        return float(max(asked, self._draw() * longest))

    @asynccontextmanager
    async def _turn(self, ends_at: float) -> AsyncIterator[float]:
        """Wait until the door is open and a slot is free; yield when the call began.

        Raises:
            TimeoutError: the door opens after `ends_at`, so that waiting for it is no use.
        """
        caller = object()
        while True:
            while (closed_for := self._opens_at - time.monotonic()) > 0:
                if self._opens_at >= ends_at:
                    raise TimeoutError
                await anyio.sleep(closed_for)
            await self._slots.acquire_on_behalf_of(caller)
            if self._opens_at <= time.monotonic():
                break
            self._slots.release_on_behalf_of(caller)  # it closed while this one queued
        try:
            yield time.monotonic()
        finally:
            self._slots.release_on_behalf_of(caller)

    def _slow_down(self, began: float, wait: float, refusal: ModelError) -> None:
        now = time.monotonic()
        if now + wait > self._opens_at:
            self._opens_at, self._refusal = now + wait, refusal
        if began > self._slowed_at:
            self._slowed_at = now
            self._set_limit(self._limit / 2)

    def _speed_up(self) -> None:
        self._set_limit(self._limit + 1 / self._limit)

    def _set_limit(self, limit: float) -> None:
        self._limit = min(max(limit, 1.0), float(self.concurrency))
        if self._slots.total_tokens != int(self._limit):
            self._slots.total_tokens = int(self._limit)

    def _deadline_exceeded(self, name: str, last: ModelError | None) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"asking {name}",
            expected=f"an answer within deadline_seconds {self.deadline_seconds:g}, waits included",
            found=last.found if last else "no answer and no failure of the server yet",
            next_step="run again: answers already bought are kept; lower the concurrency or raise "
            "deadline_seconds if the server keeps asking for fewer calls",
        )


def can_pass(failure: ModelError) -> bool:
    """Say whether the same call, made again, can be answered."""
    return isinstance(failure, DeadlineExceededError) or (
        isinstance(failure, UpstreamError) and failure.is_retryable
    )
