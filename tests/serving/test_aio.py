"""Bounded concurrency: order, limit, and what is paid for is awaited."""

import asyncio

import pytest

from serving.aio import map_bounded, run_blocking
from serving.models.protocols import NoProgress


async def run(work, items, concurrency=2):
    return await map_bounded(
        work, items, concurrency=concurrency, progress=NoProgress(), description="working"
    )


async def test_results_come_in_order_and_no_more_than_allowed_run_at_once():
    running, most = 0, 0

    async def work(item: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01 / item)
        running -= 1
        return item * 10

    assert await run(work, [1, 2, 3, 4, 5]) == [10, 20, 30, 40, 50]
    assert most == 2
    assert await run(work, []) == []


async def test_after_a_failure_nothing_starts_and_what_is_in_flight_is_finished():
    started, finished = [], []

    async def work(item: int) -> None:
        started.append(item)
        if item == 1:
            raise ValueError("one")
        await asyncio.sleep(0.02)
        finished.append(item)

    with pytest.raises(ValueError, match="one"):
        await run(work, [0, 1, 2, 3, 4])
    assert started == [0, 1]
    assert finished == [0]


async def test_the_first_failure_is_raised_also_when_another_follows():
    async def work(item: int) -> None:
        await asyncio.sleep(0.02 if item == 0 else 0)
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 1"):
        await run(work, [0, 1, 2])


async def test_cancelling_the_caller_cancels_what_is_in_flight():
    cancelled = []

    async def work(item: int) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(item)
            raise

    task = asyncio.create_task(run(work, [0, 1, 2, 3]))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(cancelled) == [0, 1]


def test_synchronous_callers_share_one_loop():
    async def loop_id() -> int:
        return id(asyncio.get_running_loop())

    assert run_blocking(loop_id()) == run_blocking(loop_id())
