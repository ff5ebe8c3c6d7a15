"""One event loop for synchronous callers: connections outlive a call, ctrl-C cancels it.

Dagster assets and the CLI are synchronous, the request path is not. Starting a loop per call would
close the HTTP connections of the previous one under a live client. Belongs here: the bridge, and
bounded concurrency on it. Does not belong here: retries, budgets, what is run.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import cache
from typing import Any, TypeVar

from serving.models.protocols import Progress

T = TypeVar("T")
Item = TypeVar("Item")


@cache
def _background_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="understudy-loop", daemon=True).start()
    return loop


def run_blocking(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the process-wide loop and wait for it; an interrupt cancels it first."""
    future = asyncio.run_coroutine_threadsafe(work, _background_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def map_bounded(
    work: Callable[[Item], Awaitable[T]],
    items: Sequence[Item],
    *,
    concurrency: int,
    progress: Progress,
    description: str,
) -> list[T]:
    """Return `[await work(item) for item in items]` with at most `concurrency` in flight.

    The first failure cancels the rest and is raised as itself; whatever `work` had stored by then
    stays.
    """
    results: dict[int, T] = {}
    queue = iter(enumerate(items))
    progress.advance(description, 0, len(items))

    async def worker() -> None:
        for position, item in queue:
            results[position] = await work(item)
            progress.advance(description, len(results), len(items))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(items))):
                group.create_task(worker())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [results[position] for position in range(len(items))]
