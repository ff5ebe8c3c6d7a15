"""What was read lately of something that never changes, kept in memory.

Belongs here: keeping and forgetting. Does not belong here: what is read, and from where.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Kept(Generic[Result]):
    """The results last used of `read`, at most `limit` of them. For one event loop."""

    def __init__(
        self, read: Callable[[Sequence[int]], Awaitable[list[Result]]], *, limit: int
    ) -> None:
        self._read = read
        self._limit = limit
        self._results: OrderedDict[int, Result] = OrderedDict()

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._results)

    async def get(self, keys: Sequence[int]) -> list[Result]:
        """Return the result of each key, after reading those not kept; old ones are forgotten."""
        kept = self._results
        found = {key: kept[key] for key in keys if key in kept}
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        if missing:
            found.update(zip(missing, await self._read(missing), strict=True))
        for key in keys:
            kept[key] = found[key]
            kept.move_to_end(key)
        while len(kept) > self._limit:
            kept.popitem(last=False)
        return [found[key] for key in keys]
