"""The sensor `servers_are_warm`: asks every configured server whether it can answer at once.

One request for each server and tick, never repeated: a server that is down is not helped by more.
Belongs here: asking, and when a cold server is one too long. Does not belong here: warming up,
which a server does by itself (`serving/server`), the cost of cold starts (`assets/monitoring`).
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg

from orchestration.config import Config
from serving.errors import UnderstudyError

INTERVAL_SECONDS = 60
TIMEOUT_SECONDS = 5.0


class ServerColdError(UnderstudyError):
    """A server has been cold for too long: the tick fails, so that the sensor shows red."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a server said to one request."""

    url: str
    is_warm: bool
    told: str


@dataclass(frozen=True, kw_only=True)
class Warmth:
    """What a round of probes means."""

    cold_since: Mapping[str, datetime]
    """When each cold server was first found cold; to be handed to the next round."""
    overdue: tuple[str, ...]
    """Servers that were cold for too long, in words."""
    reason: str


def judge_warmth(
    probes: Sequence[Probe],
    *,
    cold_since: Mapping[str, datetime],
    now: datetime,
    maximum: timedelta,
) -> Warmth:
    """Decide which servers are cold for too long; a lost memory only begins the wait anew."""
    if not probes:
        return Warmth(
            cold_since={}, overdue=(), reason="waits for a server: loop.servers names none"
        )
    cold = [probe for probe in probes if not probe.is_warm]
    since = {probe.url: cold_since.get(probe.url, now) for probe in cold}
    overdue = tuple(
        f"{probe.url} since {since[probe.url]:%Y-%m-%d %H:%M:%S} UTC ({probe.told})"
        for probe in cold
        if now - since[probe.url] > maximum
    )
    if not cold:
        reason = f"waits for a cold server: all {len(probes)} are warm"
    else:
        told = "; ".join(f"{probe.url}: {probe.told}" for probe in cold)
        reason = f"waits for {len(cold)} of {len(probes)} servers to become warm: {told}"
    return Warmth(cold_since=since, overdue=overdue, reason=reason)


async def probe_servers(urls: Sequence[str]) -> list[Probe]:
    """Ask every server once and at once whether it is ready."""
    import httpx2

    async with httpx2.AsyncClient(timeout=TIMEOUT_SECONDS) as client:

        async def ask(url: str) -> Probe:
            try:
                reply = await client.get(f"{url.rstrip('/')}/readyz")
            except httpx2.HTTPError as error:
                return Probe(url=url, is_warm=False, told=type(error).__name__)
            return Probe(
                url=url, is_warm=reply.status_code == 200, told=f"status {reply.status_code}"
            )

        return list(await asyncio.gather(*(ask(url) for url in urls)))


def build_warmth_sensor(config: Config) -> dg.SensorDefinition:
    """Return the sensor over the servers that `loop.servers` names; it starts no run."""
    maximum = timedelta(seconds=config.loop.maximum_cold_seconds)

    @dg.sensor(
        name="servers_are_warm",
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Asks /readyz of every server in loop.servers; one cold too long alarms.",
    )
    def servers_are_warm(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        warmth = judge_warmth(
            asyncio.run(probe_servers(config.loop.servers)) if config.loop.servers else (),
            cold_since=read_memory(context.cursor),
            now=datetime.now(UTC),
            maximum=maximum,
        )
        if warmth.overdue:
            raise ServerColdError(
                "looking after the servers",
                expected=f"none cold for longer than {maximum.total_seconds():.0f} s",
                found="; ".join(warmth.overdue),
                next_step="ask /healthz of it and read its log: a warm-up that failed says why",
            )
        return dg.SensorResult(skip_reason=warmth.reason, cursor=write_memory(warmth.cold_since))

    return servers_are_warm


def read_memory(cursor: str | None) -> dict[str, datetime]:
    """Return since when each server is cold, as the last round remembered it."""
    return {url: datetime.fromisoformat(at) for url, at in json.loads(cursor or "{}").items()}


def write_memory(cold_since: Mapping[str, datetime]) -> str:
    """Return the memory as the text of a cursor."""
    return json.dumps({url: at.isoformat() for url, at in sorted(cold_since.items())})
