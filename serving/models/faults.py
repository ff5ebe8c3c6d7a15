"""Which failures of a chat server pass by themselves, and which may have cost money.

Belongs here: the one table of statuses that every client and every retry goes by, and the reading
of how long a server asks to wait. Does not belong here: waiting and asking again (`asking` for a
user's request, `resources/pacing` for thousands).
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

from serving.errors import RateLimitedError, UpstreamError, UpstreamRejectedError

Fault = Literal["throttled", "transient", "permanent"]
"""`throttled`: all callers should ask less; `transient`: this call may be asked again at once;
`permanent`: the same request fails again."""

OUT_OF_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
"""Codes of a 429 that no wait mends: the account is empty."""

TOO_MANY_REQUESTS, OVERLOADED, UNAVAILABLE = 429, 529, 503
PASSING = frozenset({408, 409, 425})
"""Timeout, conflict and too early. An idempotent gateway answers 409 while the first request with
the same key, perhaps of a killed run, is still being answered."""
SERVER_ERROR = 500

ERRORS: Mapping[Fault, type[UpstreamError]] = {
    "throttled": RateLimitedError,
    "transient": UpstreamError,
    "permanent": UpstreamRejectedError,
}
NEXT_STEPS: Mapping[Fault, str] = {
    "throttled": "try again later, or lower the concurrency",
    "transient": "try again later: the server failed, not the request",
    "permanent": "correct the model, the key or the request: the same request fails again",
}


def classify_status(status: int, *, code: str | None, retry_after_seconds: float | None) -> Fault:
    """Return what an HTTP status other than 200 means for the next attempt.

    Args:
        status: of the response.
        code: the body's `error.code`, if it has one.
        retry_after_seconds: a 503 that says when to come back asks for less; one that does not is a
            server that is down.
    """
    if status in (TOO_MANY_REQUESTS, OVERLOADED):
        return "permanent" if code in OUT_OF_MONEY else "throttled"
    if status == UNAVAILABLE and retry_after_seconds is not None:
        return "throttled"
    return "transient" if status in PASSING or status >= SERVER_ERROR else "permanent"


def may_be_billed(status: int) -> bool:
    """Say whether a failed call can stand on the bill: the server broke while it answered.

    Refusals and overload come before any token is made. Providers say that 5xx are free; a budget
    that must hold does not rely on it.
    """
    return status >= SERVER_ERROR and status not in (UNAVAILABLE, OVERLOADED)


def read_retry_after(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """Return the seconds a server asks to wait, or None when it does not say (RFC 9110, 10.2.3).

    Reads `retry-after-ms` (OpenAI, Azure), and `retry-after` as seconds or as an HTTP date. A date
    in the past is 0.
    """
    milliseconds = _read_seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    header = headers.get("retry-after")
    seconds = _read_seconds(header)
    if seconds is not None or not header:
        return seconds
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


def _read_seconds(header: str | None) -> float | None:
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
