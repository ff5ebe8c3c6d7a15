"""The drift drill: simulated weeks whose topics shift, and whether the monitor of drift alarms.

A real server answers and writes the traces, under an environment of its own, so that nothing of
them is trained on or counted as production. Only the clock is simulated: each conversation is moved
to the time that the plan has for it, since a monitor compares weeks. Belongs here: asking, moving,
judging. Does not belong here: the statistics and their limits (`assets/monitoring`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import polars as pl

from assets.monitoring.alarms import raise_alarms
from assets.monitoring.drift import gather_drift, measure_drift
from assets.monitoring.measurements import tabulate_measurements
from assets.monitoring.traffic import Traffic, collect_traffic
from assets.traces.hours import find_folder, list_hours, scan_hours
from orchestration.bindings import Bindings
from orchestration.config import Config
from orchestration.curate_cli import compact
from orchestration.customers import ask_server, customers
from orchestration.live_server import running_server
from orchestration.traffic import DRILL_ENV, PlannedAsk
from orchestration.turning import Announce
from serving.errors import UnderstudyError
from serving.home import Home
from serving.models.protocols import Embedder, Progress

DRIFT = "traffic_drift"
WEEK = timedelta(days=7)
DAYS, ASKS_PER_DAY = 14, 55
"""Two weeks, each with more conversations than the monitor needs; topics shift between them."""


@dataclass(frozen=True, kw_only=True)
class DriftAlarm:
    """The alarm that the planted drift raised."""

    monitor: str
    metric: str
    number: float
    limit: float
    detail: str

    def describe(self) -> str:
        """Say it in one line."""
        return (
            f"the monitor {self.monitor} alarms on the planted drift: {self.metric} "
            f"{self.number:.2f}, limit {self.limit:.2f} ({self.detail})"
        )


def drill_drift(
    config: Config,
    plan: Sequence[PlannedAsk],
    settings: Mapping[str, str],
    progress: Progress,
    announce: Announce,
) -> DriftAlarm:
    """Let simulated weeks pass through a server of their own; return the alarm they raise.

    The teacher answers them all, since what people ask drifts whoever answers.
    """
    home = Home(config.home)
    began = datetime.now(UTC)
    apart = {"UNDERSTUDY_SERVE_ENV": DRILL_ENV, "UNDERSTUDY_SERVE_PHASE": "hitchhiker"}
    with (
        customers(home, env=DRILL_ENV) as keys,
        running_server(config, {**settings, **apart}) as server,
    ):
        server.wait_until()
        announce(ask_server(server, plan, keys, progress))
    compact(home)
    announce("the monitor of drift compares the weeks")
    traffic = gather_drill(home, plan, since=began, end=datetime.now(UTC))
    return judge_drill(traffic, Bindings(config, progress).embedder)


def gather_drill(
    home: Home, plan: Sequence[PlannedAsk], *, since: datetime, end: datetime
) -> Traffic:
    """Return what was asked `since` then, at the times of the plan, whose last day ends at `end`.

    Every drill asks the same conversations: those of earlier ones must not speak for this one.
    """
    start = end.replace(minute=0, second=0, microsecond=0) - timedelta(days=DAYS)
    times: dict[str, datetime] = {}
    for ask in plan:
        times.setdefault(ask.conversation_id, start + timedelta(seconds=ask.at_seconds))
    clock = pl.DataFrame(
        {"conversation_id": list(times), "moved_at": list(times.values())},
        schema={"conversation_id": pl.String, "moved_at": pl.Datetime("us", "UTC")},
    )
    records = (
        scan_hours(list_hours(find_folder(home)))
        .filter(pl.col("env") == DRILL_ENV, pl.col("asked_at") >= since)
        .join(clock.lazy(), on="conversation_id")
        .with_columns(pl.col("moved_at").alias("asked_at"))
    )
    middle = start + WEEK
    return collect_traffic(records, start=middle, end=start + 2 * WEEK, before_start=start)


def judge_drill(traffic: Traffic, embedder: Embedder) -> DriftAlarm:
    """Return the alarm of the monitor of drift, by its own tests and limits.

    Raises:
        UnderstudyError: it does not alarm, so that drift in production would pass unseen.
    """
    found = tabulate_measurements(
        DRIFT,
        measure_drift(traffic, gather_drift(traffic), embedder),
        start=traffic.start,
        end=traffic.end,
    )
    row = raise_alarms(found).filter(pl.col("monitor") == DRIFT).row(0, named=True)
    if row["status"] == "alarm":
        return DriftAlarm(
            monitor=DRIFT,
            metric=row["metric"],
            number=row["number"],
            limit=row["limit"],
            detail=row["detail"],
        )
    raise UnderstudyError(
        "drilling the monitor of drift with topics that shift",
        expected=f"{DRIFT} to alarm",
        found=f"{row['status']}: {row['detail']} ({traffic.asks.height} asks after the shift, "
        f"{traffic.before.height} before)",
        next_step="ask about several topics that differ; monitoring/traffic_drift says what is "
        "compared",
    )
