"""What a caller knows of one request beside its question: its draws, its purse, its reader.

Labelling and evaluation know nothing of the kind, and get the same answer every time. Belongs here:
the shape. Does not belong here: drawing, counting, writing events (the server).
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from serving.pipeline.router import RouteReason

AllowTeacher = Callable[[RouteReason], Awaitable[int | None]]
"""Counts a call of the teacher for this reason. Where it may not be made: after how many seconds
there may be room for it again."""


class DraftReader(Protocol):
    """Who reads an answer while it is written."""

    def show(self, text: str) -> None:
        """Take the next piece of a draft."""
        ...

    def start_over(self) -> None:
        """Forget the draft: another model writes the answer."""
        ...


async def _allow(_reason: RouteReason) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """Of one request. The draws are in [0, 1); None: chance has no part in the route.

    `insists_on_teacher`: who was granted the teacher is told where it cannot answer, and gets no
    answer of the student instead.
    """

    explore_draw: float | None = None
    canary_draw: float | None = None
    allow_teacher: AllowTeacher = _allow
    insists_on_teacher: bool = False
    reader: DraftReader | None = None


ORDINARY = Circumstances()
