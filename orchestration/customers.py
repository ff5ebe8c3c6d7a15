"""Simulated customers of a real server: their keys, their questions, what they cost.

Belongs here: giving and taking keys, asking, what one release did with the traffic. Does not belong
here: what is asked (`traffic`), the server (`live_server`), what follows from it (`flywheel`).
"""

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from assets.traces.deciding import is_asked
from assets.traces.hours import find_folder, list_hours, scan_hours
from orchestration.live_server import LiveServer
from orchestration.traffic import PlannedAsk, TrafficReport, send_traffic
from serving.access.keys import create_key, read_keys, remove_keys, revoke_key
from serving.errors import UnderstudyError
from serving.home import Home
from serving.models.protocols import Progress

CUSTOMERS = 24
CONCURRENCY = 4
LEAST_ANSWERED_RATIO = 0.9


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Who was sent the plan, and when, as JSON holds it: what a failed try sent is not of it."""

    release_id: str
    began_at: str
    ended_at: str


@dataclass(frozen=True, kw_only=True)
class Leg:
    """What one release did with the traffic."""

    release_id: str
    ask_count: int
    teacher_ratio: float
    cost_usd: float
    teacher_only_cost_usd: float

    @property
    def saved_ratio(self) -> float:
        """The share of the teacher's price that was not paid."""
        if not self.teacher_only_cost_usd:
            return 0.0
        return 1 - self.cost_usd / self.teacher_only_cost_usd


@contextmanager
def customers(home: Home, count: int = CUSTOMERS, *, env: str = "prod") -> Iterator[list[str]]:
    """Give so many customers a key each, and take them back.

    A home that was open to its machine is so again afterwards, unless somebody else made a key
    meanwhile: that one stays. Close the server inside: one that runs on knows these keys still.
    """
    was_open = not read_keys(home.keys)
    made = [
        create_key(
            home.keys, tenant=f"simulated-{number}-{uuid.uuid4().hex[:6]}", scopes=("ask",),
            valid_days=1, env=env, requests_per_minute=100_000,
        )
        for number in range(count)
    ]  # fmt: skip
    try:
        yield [key.text for key in made]
    finally:
        if was_open:
            remove_keys(home.keys, {key.entry.key_id for key in made})
        else:
            for key in made:
                revoke_key(home.keys, key.entry.key_id)


def ask_server(
    server: LiveServer, plan: Sequence[PlannedAsk], keys: Sequence[str], progress: Progress
) -> str:
    """Send the plan and say what came back.

    Raises:
        UnderstudyError: the server answered hardly anything: nothing can be learnt from that.
    """
    import httpx2

    async def send() -> TrafficReport:
        async with httpx2.AsyncClient(base_url=server.url, timeout=120.0) as client:
            return await send_traffic(
                client, plan, pace=0, keys=keys, concurrency=CONCURRENCY, progress=progress
            )

    report = asyncio.run(send())
    if report.by_status["200"] < LEAST_ANSWERED_RATIO * report.asked_count:
        raise UnderstudyError(
            f"asking the server at {server.url}",
            expected=f"an answer to {LEAST_ANSWERED_RATIO:.0%} of the questions",
            found=report.describe(),
            next_step=f"read {server.log}",
        )
    return report.describe()


def measure_leg(home: Home, asking: Asking) -> Leg:
    """Return what a release did with the production traffic of one asking."""
    began, ended = (datetime.fromisoformat(at) for at in (asking.began_at, asking.ended_at))
    row = (
        scan_hours(list_hours(find_folder(home)))
        .filter(
            is_asked(),
            pl.col("env") == "prod",
            pl.col("release_id") == asking.release_id,
            pl.col("asked_at").is_between(began, ended),
            pl.col("outcome") == "answered",
        )
        .select(
            pl.len().alias("ask_count"),
            (pl.col("served_by") == "teacher").mean().fill_null(0.0).alias("teacher_ratio"),
            pl.col("cost_usd").sum(),
            pl.col("counterfactual_cost_usd").sum().alias("teacher_only_cost_usd"),
        )
        .collect()
        .row(0, named=True)
    )
    return Leg(release_id=asking.release_id, **row)
