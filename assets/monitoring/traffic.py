"""Traffic: what was asked in the window, what was asked before it, and what the shadow answered.

Windows end at a whole hour and have whole days, so that an hour of the day and a weekday weigh the
same in both. Belongs here: reading the hours of traces, and saying when there is too little to
judge. Does not belong here: statistics.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path

import polars as pl

from assets.monitoring.measurements import MonitoringPlan
from assets.parity.suitability import PAGE_PATTERN
from assets.releases.pairing import name_conversation
from assets.releases.shadow import MINIMUM_HOURS
from assets.traces.hours import find_folder, list_hours, read_hour, scan_hours
from serving.home import Home

MINIMUM_CONVERSATIONS = 300
MINIMUM_REFERENCE_DAYS = 7


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Asks and shadow answers of one environment; `end` and `before_end` are exclusive.

    `asks` and `before` have one row per question that reached the pipeline; `shadows` and
    `shadows_before` one per answer of the other model, whose `parent_trace_id` is the ask.
    """

    start: datetime
    end: datetime
    before_start: datetime
    asks: pl.DataFrame
    before: pl.DataFrame
    shadows: pl.DataFrame
    shadows_before: pl.DataFrame


def gather_traffic(home: Home, plan: MonitoringPlan) -> Traffic:
    """Return the window of the plan and the time before it from the hourly files.

    Monitors that one process makes one after the other share what was read.
    """
    until = plan.until or datetime.now(UTC)
    end = until.replace(minute=0, second=0, microsecond=0)
    start = end - timedelta(days=plan.window_days)
    before_start = start - timedelta(days=plan.reference_days)
    paths = [p for p in list_hours(find_folder(home)) if before_start <= read_hour(p) < end]
    hours = tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in paths)
    return _read_traffic(hours, plan.env, start, end, before_start)


@lru_cache(maxsize=1)  # one window in memory at a time; hours that were rewritten are read anew
def _read_traffic(
    hours: tuple[tuple[Path, int, int], ...],
    env: str,
    start: datetime,
    end: datetime,
    before_start: datetime,
) -> Traffic:
    records = scan_hours([path for path, _, _ in hours]).filter(pl.col("env") == env)
    return collect_traffic(records, start=start, end=end, before_start=before_start)


def collect_traffic(
    records: pl.LazyFrame, *, start: datetime, end: datetime, before_start: datetime
) -> Traffic:
    """Return a window of stored traces, whatever environment and clock they were chosen by."""
    return split_traffic(
        add_columns(records).collect(), start=start, end=end, before_start=before_start
    )


def add_columns(records: pl.LazyFrame) -> pl.LazyFrame:
    """Add what every monitor groups by: `conversation` and `topic` (the best chunk's page)."""
    best = pl.col("retrieved").list.first().struct.field("chunk_id")
    return records.filter(pl.col("asked_at").is_not_null()).with_columns(
        name_conversation(),
        best.str.extract(PAGE_PATTERN).fill_null("").alias("topic"),
    )


def split_traffic(
    records: pl.DataFrame, *, start: datetime, end: datetime, before_start: datetime
) -> Traffic:
    """Return records by window and kind. What was asked before is cut to whole weeks.

    A reference of ten days would hold some weekdays twice and drift by that alone.
    """
    ordered = records.sort("asked_at", "trace_id")
    is_shadow = pl.col("selection_mode").eq_missing("shadow")
    now = ordered.filter(pl.col("asked_at").is_between(start, end, closed="left"))
    before = ordered.filter(pl.col("asked_at").is_between(before_start, start, closed="left"))
    first = before["asked_at"].min()
    if isinstance(first, datetime):
        # A first day that began within the hour is a whole day.
        days = (start - first + timedelta(hours=1)) // timedelta(days=1)
        whole = start - timedelta(days=days - days % 7)
        before = before.filter(pl.col("asked_at") >= whole) if days >= 7 else before
    return Traffic(
        start=start,
        end=end,
        before_start=before_start,
        asks=now.filter(~is_shadow),
        before=before.filter(~is_shadow),
        shadows=now.filter(is_shadow),
        shadows_before=before.filter(is_shadow),
    )


def take_first_asks(asks: pl.DataFrame) -> pl.DataFrame:
    """Return the first question of each conversation: the rest of it is no independent evidence."""
    return asks.sort("asked_at", "trace_id").unique(
        "conversation", keep="first", maintain_order=True
    )


def find_gap(asks: pl.DataFrame, *, minimum: int, unit: str = "conversations") -> str | None:
    """Say why so little traffic judges nothing; None where it does.

    Args:
        asks: rows of the window, one per unit.
        minimum: how many rows a statistic needs.
        unit: what a row is, in words.
    """
    if asks.is_empty():
        return "no traffic in the window"
    hours = asks["asked_at"].dt.truncate("1h").n_unique()
    if hours < MINIMUM_HOURS:
        return f"traffic of {hours} different hours, {MINIMUM_HOURS} are needed: part of a day"
    if asks.height < minimum:
        return f"{asks.height} {unit}, {minimum} are needed"
    return None


def find_reference_gap(traffic: Traffic) -> str | None:
    """Say why the time before the window is no yardstick; None where it is."""
    first = take_first_asks(traffic.before)
    if first.is_empty():
        return "no traffic before the window to compare with"
    oldest = first["asked_at"].min()
    if isinstance(oldest, datetime):
        days = (traffic.start - oldest) / timedelta(days=1)
        if days < MINIMUM_REFERENCE_DAYS - 1:
            return f"traffic of {days:.1f} days before the window, a whole week is needed"
    if gap := find_gap(first, minimum=MINIMUM_CONVERSATIONS):
        return f"before the window: {gap}"
    return None
