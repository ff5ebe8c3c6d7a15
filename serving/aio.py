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
    note: Callable[[], str] = str,
) -> list[T]:
    """Return `[await work(item) for item in items]` with at most `concurrency` in flight.

    After a failure nothing new is started, what is in flight may finish (a call under way is paid
    for, and `work` can still keep its answer), then the first failure is raised as itself.
    Cancelling the caller cancels what is in flight. `note` says what the progress shows beside the
    count.
    """
    results: dict[int, T] = {}
    failures: list[BaseException] = []
    queue = iter(enumerate(items))
    progress.advance(description, 0, len(items))

    async def worker() -> None:
        for position, item in queue:
            if failures:
                return
            try:
                results[position] = await work(item)
                progress.advance(description, len(results), len(items), note())
            except BaseException as failure:
                failures.append(failure)
                raise

    workers = (worker() for _ in range(min(concurrency, len(items))))
    await asyncio.gather(*workers, return_exceptions=True)
    if failures:
        raise failures[0]
    return [results[position] for position in range(len(items))]
