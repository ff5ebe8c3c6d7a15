"""Quotas: how often a key may ask, and how often it may make the expensive model answer.

Counted in this process (N servers allow N times as much; a proxy in front can hold one count).
Belongs here: counting against a key's limits. Does not belong here: what follows (`admission`).
"""

import math
import time
from dataclasses import dataclass

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter


@dataclass(frozen=True, kw_only=True)
class Exhausted:
    """A limit that is used up, and the seconds (whole, at least 1) until it takes one more."""

    limit: str
    retry_after_seconds: int


class Quotas:
    """Sliding-window counts per key. Nothing is kept of a key that stays away for its window."""

    def __init__(self) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def count_request(self, key_id: str, per_minute: int) -> Exhausted | None:
        """Count one request; when the limit is used up it is not counted and says until when."""
        return await self._count("requests", key_id, [RateLimitItemPerMinute(per_minute)])

    async def count_teacher_call(
        self, key_id: str, *, per_minute: int, per_day: int
    ) -> Exhausted | None:
        """Count one call of the teacher, unless one of its two limits is used up."""
        if per_minute == 0 or per_day == 0:
            return Exhausted(limit="no teacher calls", retry_after_seconds=86_400)
        items = [RateLimitItemPerMinute(per_minute), RateLimitItemPerDay(per_day)]
        return await self._count("teacher", key_id, items)

    async def count_daily(self, purpose: str, per_day: int) -> Exhausted | None:
        """Count one call of this server against a limit that no key has to itself."""
        if per_day == 0:
            return Exhausted(limit=f"no {purpose} calls", retry_after_seconds=86_400)
        return await self._count(purpose, "server", [RateLimitItemPerDay(per_day)])

    async def _count(
        self, purpose: str, key_id: str, items: list[RateLimitItem]
    ) -> Exhausted | None:
        for item in items:
            # One limit tells by counting; of two none may count before both have room.
            take = self._limiter.hit if len(items) == 1 else self._limiter.test
            if not await take(item, purpose, key_id):
                window = await self._limiter.get_window_stats(item, purpose, key_id)
                wait = max(1, math.ceil(window.reset_time - time.time()))
                return Exhausted(
                    limit=f"{item.amount} {purpose} per {item.GRANULARITY.name}",
                    retry_after_seconds=wait,
                )
        if len(items) > 1:
            for item in items:
                await self._limiter.hit(item, purpose, key_id)
        return None
