"""What a caller knows of one request beside its question: its draws, its purse, its reader.

Labelling and evaluation know nothing of the kind, and get the same answer every time. Belongs here:
the shape. Does not belong here: drawing, counting, writing events (the server).
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from serving.pipeline.router import RouteReason

AllowTeacher = Callable[[RouteReason], Awaitable[bool]]
"""Counts a call of the teacher for this reason; False: it may not be made."""


class DraftReader(Protocol):
    """Who reads an answer while it is written."""

    def show(self, text: str) -> None:
        """Take the next piece of a draft."""
        ...

    def start_over(self) -> None:
        """Forget the draft: another model writes the answer."""
        ...


async def _allow(_reason: RouteReason) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """Of one request. The draws are in [0, 1); None: chance has no part in the route."""

    explore_draw: float | None = None
    canary_draw: float | None = None
    allow_teacher: AllowTeacher = _allow
    reader: DraftReader | None = None


ORDINARY = Circumstances()
