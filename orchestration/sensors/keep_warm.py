"""The sensor `servers_are_warm`: asks every configured server whether it can answer at once.

One request for each server and tick, never repeated: a server that is down is not helped by more.
One alarm for each time that a server is cold: which ones were raised lies in the home, because a
tick that fails stores no cursor. Belongs here: asking, and when a cold server is one too long. Does
not belong here: warming up, which a server does by itself (`serving/server`), the cost of cold
starts (`assets/monitoring`).
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from orchestration.config import Config
from serving.errors import UnderstudyError
from serving.files import write_text_atomically

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
class ColdSpell:
    """Since when a server is cold, and whether that was alarmed about."""

    since: datetime
    is_alarmed: bool = False


@dataclass(frozen=True, kw_only=True)
class Warmth:
    """What a round of probes means."""

    spells: Mapping[str, ColdSpell]
    """Of each cold server; to be handed to the next round."""
    overdue: tuple[str, ...]
    """Servers that are cold for too long and were not alarmed about yet, in words."""
    reason: str


def judge_warmth(
    probes: Sequence[Probe],
    *,
    spells: Mapping[str, ColdSpell],
    now: datetime,
    maximum: timedelta,
) -> Warmth:
    """Decide which servers are cold for too long; a lost memory only begins the wait anew."""
    if not probes:
        return Warmth(spells={}, overdue=(), reason="waits for a server: loop.servers names none")
    cold = [probe for probe in probes if not probe.is_warm]
    known = {probe.url: spells.get(probe.url, ColdSpell(since=now)) for probe in cold}
    overdue = [
        probe
        for probe in cold
        if now - known[probe.url].since > maximum and not known[probe.url].is_alarmed
    ]
    alarmed = {probe.url: replace(known[probe.url], is_alarmed=True) for probe in overdue}
    if not cold:
        reason = f"waits for a cold server: all {len(probes)} are warm"
    else:
        told = "; ".join(f"{probe.url}: {probe.told}" for probe in cold)
        reason = f"waits for {len(cold)} of {len(probes)} servers to become warm: {told}"
    return Warmth(
        spells=known | alarmed,
        overdue=tuple(
            f"{probe.url} since {known[probe.url].since:%Y-%m-%d %H:%M:%S} UTC ({probe.told})"
            for probe in overdue
        ),
        reason=reason,
    )


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
    memory = config.home / "sensors" / "servers_are_warm.json"

    @dg.sensor(
        name="servers_are_warm",
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Asks /readyz of every server in loop.servers; one cold too long alarms.",
    )
    def servers_are_warm(context: dg.SensorEvaluationContext) -> dg.SensorResult:  # noqa: ARG001
        warmth = judge_warmth(
            asyncio.run(probe_servers(config.loop.servers)) if config.loop.servers else (),
            spells=read_memory(memory),
            now=datetime.now(UTC),
            maximum=maximum,
        )
        write_memory(memory, warmth.spells)
        if warmth.overdue:
            raise ServerColdError(
                "looking after the servers",
                expected=f"none cold for longer than {maximum.total_seconds():.0f} s",
                found="; ".join(warmth.overdue),
                next_step="ask /healthz of it and read its log: a warm-up that failed says why",
            )
        return dg.SensorResult(skip_reason=warmth.reason)

    return servers_are_warm


def read_memory(path: Path) -> dict[str, ColdSpell]:
    """Return which servers are cold, as the last round remembered it; nothing is there at first."""
    if not path.is_file():
        return {}
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {
        url: ColdSpell(since=datetime.fromisoformat(since), is_alarmed=is_alarmed)
        for url, (since, is_alarmed) in stored.items()
    }


def write_memory(path: Path, spells: Mapping[str, ColdSpell]) -> None:
    """Remember which servers are cold."""
    rows = {url: [spell.since.isoformat(), spell.is_alarmed] for url, spell in spells.items()}
    write_text_atomically(path, json.dumps(rows))
