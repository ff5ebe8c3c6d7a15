"""The command `understudy traffic`: realistic questions to a running server.

Belongs here: arguments and what is printed. Does not belong here: planning and sending (`traffic`).
"""

import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated

import typer

from orchestration.config import load_config
from orchestration.console import CONSOLE, show_progress
from orchestration.explaining import explain_errors
from orchestration.options import Json
from orchestration.traffic import PlannedAsk, TrafficReport, plan_traffic, send_traffic
from resources.input_files import SeedFile
from serving.errors import InvalidInputError
from serving.models.protocols import Progress

TIMEOUT_SECONDS = 120.0
ROOM = 4  # of one conversation the questions stay in order
ROOM_AT_A_PACE = 32  # what is left out was no load


@explain_errors
def traffic(
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8321",
    days: Annotated[float, typer.Option(help="Simulated days.", min=0.001, max=366.0)] = 1.0,
    asks_per_day: Annotated[int, typer.Option(help="Questions a day.", min=1, max=10**6)] = 200,
    pace: Annotated[
        float,
        typer.Option(
            help="Simulated seconds per second; 0: as fast as it answers.", min=0.0, max=1e6
        ),
    ] = 0.0,
    key: Annotated[
        list[str] | None, typer.Option(help="An API key; repeatable, users share them.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds send equal questions.")] = 1,
    concurrency: Annotated[
        int | None,
        typer.Option(
            help="Questions under way at most: 4, or 32 at a pace, where one more is left out.",
            min=1,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask a running server what its users would: day shape, several kinds of users, abuse."""
    keys = key or []
    questions = read_topics(SeedFile(load_config().seeds.path))
    plan = plan_traffic(
        questions, days=days, asks_per_day=asks_per_day, seed=seed, key_count=max(1, len(keys))
    )
    CONSOLE.print(f"[dim]{len(plan)} questions to {url} …[/]", soft_wrap=True)
    room = concurrency or (ROOM_AT_A_PACE if pace else ROOM)
    with show_progress() as progress:
        report = asyncio.run(_send(url, plan, pace, keys, room, progress))
    if as_json:
        sys.stdout.write(json.dumps(vars(report)) + "\n")
    else:
        _show(report)


def read_topics(seeds: SeedFile) -> dict[str, list[str]]:
    """Return the seed questions by their first tag."""
    by_topic: dict[str, list[str]] = defaultdict(list)
    for seed in seeds.read():
        by_topic[seed.tags[0] if seed.tags else "untagged"].append(seed.text)
    return dict(by_topic)


async def _send(
    url: str,
    plan: Sequence[PlannedAsk],
    pace: float,
    keys: Sequence[str],
    concurrency: int,
    progress: Progress,
) -> TrafficReport:
    import httpx2

    async with httpx2.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS) as client:
        try:
            ready = await client.get("/readyz")
        except httpx2.HTTPError as error:
            raise _unreachable(url, str(error) or type(error).__name__) from error
        if ready.status_code != 200:
            raise _unreachable(url, f"status {ready.status_code} of /readyz")
        return await send_traffic(
            client, plan, pace=pace, keys=keys, concurrency=concurrency, progress=progress
        )


def _unreachable(url: str, found: str) -> InvalidInputError:
    return InvalidInputError(
        f"asking the server at {url}",
        expected="a server that is ready",
        found=found,
        next_step="start one with `understudy serve`, or name another with --url",
    )


def _show(report: TrafficReport) -> None:
    CONSOLE.print(
        f"{report.asked_count} asked in {report.seconds:.0f} s: {report.persisted_count} traces on "
        f"disk, {report.lost_count} declared lost, {report.refused_count} refused, "
        f"{report.failed_count} without an answer"
        + (f", {report.left_out_count} left out" if report.left_out_count else ""),
        soft_wrap=True,
    )
    for label, counts in (
        ("status", report.by_status),
        ("served by", report.by_server),
        ("profile", report.by_profile),
    ):
        told = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        CONSOLE.print(f"  [dim]{label:>9}[/]  {told}", soft_wrap=True)
