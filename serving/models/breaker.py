"""The circuit breaker of one model: it stops calls to what fails, and lets one through to see.

Closed, it counts; open, it refuses for a while; then one probe decides. Belongs here: the counting,
with a clock from outside. Does not belong here: which failures count and calling (`guarded`).
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "probing"]


@dataclass(frozen=True, kw_only=True)
class BreakerPolicy:
    """When a breaker opens: so many failures in a row, or a share of the calls in a window."""

    consecutive_failures: int = 5
    failure_ratio: float = 0.5
    minimum_calls: int = 20
    window_seconds: float = 10.0
    open_seconds: float = 5.0


@dataclass(frozen=True)
class Pass:
    """A call that was let in. `is_probe`: its outcome decides whether others are."""

    is_probe: bool


class CircuitBreaker:
    """The state of one model's calls. For one event loop; `clock` never goes back."""

    def __init__(
        self, policy: BreakerPolicy | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.policy = policy or BreakerPolicy()
        self.opened_count = 0
        self._clock = clock
        self._recent: deque[tuple[float, bool]] = deque()
        self._failed_recently = 0
        self._failed_in_row = 0
        self._opened_at: float | None = None
        self._is_probing = False

    @property
    def state(self) -> State:
        """Where it stands; an open one turns to probing once its time is over."""
        if self._opened_at is None:
            return "closed"
        return "probing" if self.retry_after_seconds == 0 else "open"

    @property
    def is_stopped(self) -> bool:
        """Whether a call made now would be refused."""
        return self.state == "open" or (self.state == "probing" and self._is_probing)

    @property
    def retry_after_seconds(self) -> float:
        """How long it stays open; 0 when it is not."""
        if self._opened_at is None:
            return 0.0
        return max(0.0, self._opened_at + self.policy.open_seconds - self._clock())

    def enter(self) -> Pass | None:
        """Return a pass for one call, or None when none may be made; every pass is handed back."""
        if self.is_stopped:
            return None
        self._is_probing = self.state == "probing"
        return Pass(is_probe=self._is_probing)

    def leave(self, entered: Pass, *, has_failed: bool | None) -> None:
        """Count the outcome of a call; None: it says nothing of the model's health."""
        if entered.is_probe:
            self._is_probing = False
            if has_failed is not None:
                self._settle_probe(has_failed=has_failed)
        # What began before it opened and ends while it is open is old news.
        elif has_failed is not None and self._opened_at is None:
            self._count(has_failed=has_failed)
            if self._is_due():
                self._open()

    def _settle_probe(self, *, has_failed: bool) -> None:
        if has_failed:
            self._open()
        else:
            self._opened_at = None
            self._forget()

    def _count(self, *, has_failed: bool) -> None:
        now = self._clock()
        self._recent.append((now, has_failed))
        self._failed_recently += has_failed
        while self._recent[0][0] <= now - self.policy.window_seconds:
            self._failed_recently -= self._recent.popleft()[1]
        self._failed_in_row = self._failed_in_row + 1 if has_failed else 0

    def _is_due(self) -> bool:
        if self._failed_in_row >= self.policy.consecutive_failures:
            return True
        calls = len(self._recent)
        is_share = self._failed_recently >= self.policy.failure_ratio * calls
        return calls >= self.policy.minimum_calls and is_share

    def _open(self) -> None:
        self._opened_at = self._clock()
        self.opened_count += 1
        self._forget()

    def _forget(self) -> None:
        self._recent.clear()
        self._failed_recently = self._failed_in_row = 0
