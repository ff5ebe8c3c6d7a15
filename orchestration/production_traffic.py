"""What production did: who asked, who answered, what it cost, and which traces cannot be read.

Belongs here: reading stored traces. Does not belong here: the judgement on them (`status`), sending
questions (`traffic`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from assets.traces.deciding import is_asked
from assets.traces.frames import TORN_TAIL
from assets.traces.hours import find_folder, list_hours, read_hour, scan_hours
from assets.traces.ledger import read_quarantine
from assets.traces.mending import find_unsettled
from orchestration.traffic import DRILL_ENV
from serving.errors import TraceError
from serving.home import Home
from serving.tracing.segments import OPEN_SUFFIX, read_frames


@dataclass(frozen=True, kw_only=True)
class TrafficStatus:
    """What production did in the window; ratios are None where nobody asked."""

    ask_count: int
    failed_ratio: float | None
    teacher_ratio: float | None
    refused_ratio: float | None
    cost_usd: float
    """Of answered asks, as `teacher_only_cost_usd` is: an ask that failed has no such price."""
    teacher_only_cost_usd: float
    last_asked_at: datetime | None
    failed_cost_usd: float = 0.0
    """What asks that ended without an answer have cost."""
    elsewhere: tuple[str, ...] = ()
    """Other environments in which somebody asked, such as a server that was not told it is prod."""
    unsealed_count: int = 0
    """Traces of any kind that a server still holds open: they count for all else once sealed."""
    damaged: tuple[str, ...] = ()
    """Open segments that cannot be read to their end, in words."""

    @property
    def saved_ratio(self) -> float | None:
        """The share of the teacher's price that was not paid."""
        if not self.teacher_only_cost_usd:
            return None
        return 1 - self.cost_usd / self.teacher_only_cost_usd


def read_traffic(home: Home, *, since: datetime) -> TrafficStatus:
    """Return what production did since a moment; shadows and other environments do not count."""
    first = since.replace(minute=0, second=0, microsecond=0)
    paths = [path for path in list_hours(find_folder(home)) if read_hour(path) >= first]
    everywhere = scan_hours(paths).filter(is_asked(), pl.col("asked_at") >= since)
    asked = everywhere.filter(pl.col("env") == "prod")
    environments = everywhere.select(pl.col("env").unique().sort()).collect()["env"].drop_nulls()
    answered = pl.col("outcome") == "answered"
    row = (
        asked.select(
            pl.len().alias("ask_count"),
            (~answered).mean().alias("failed_ratio"),
            (pl.col("served_by") == "teacher").filter(answered).mean().alias("teacher_ratio"),
            pl.col("refused").filter(answered).mean().alias("refused_ratio"),
            pl.col("cost_usd").filter(answered).sum(),
            pl.col("counterfactual_cost_usd").filter(answered).sum().alias("teacher_only_cost_usd"),
            pl.col("cost_usd").filter(~answered).sum().alias("failed_cost_usd"),
            pl.col("asked_at").max().alias("last_asked_at"),
        )
        .collect()
        .row(0, named=True)
    )
    unsealed_count, damaged = count_unsealed(home)
    return TrafficStatus(
        **row,
        elsewhere=tuple(env for env in environments if env not in {"prod", DRILL_ENV}),
        unsealed_count=unsealed_count,
        damaged=damaged,
    )


def count_unsealed(home: Home) -> tuple[int, tuple[str, ...]]:
    """Return how many traces lie in segments that a server is still writing, and what is damaged.

    A segment that is sealed meanwhile has another name, and is passed over.
    """
    count, damaged = 0, []
    for path in sorted(home.traces.glob(f"*{OPEN_SUFFIX}")):
        try:
            for _ in read_frames(path):
                count += 1
        except FileNotFoundError:
            continue
        except TraceError as error:
            damaged.append(f"a trace segment is damaged: {error}")
    return count, tuple(damaged)


def find_quarantined(home: Home, *, since: datetime) -> tuple[str, ...]:
    """Return which segments begun since could not be read whole, torn tails of kills aside.

    And which hours were found damaged since. A name that tells no time is always among them, and so
    is a damaged hour that waits for its segments, whenever it was found.
    """
    began = pl.col("segment").str.extract(r"-(\d{8}T\d{12})-").str.to_datetime("%Y%m%dT%H%M%S%6f")
    is_old = (began.dt.replace_time_zone("UTC") < since).fill_null(value=False)
    lost = read_quarantine(find_folder(home)).filter(pl.col("reason") != TORN_TAIL, ~is_old)
    waiting = _describe_waiting(find_unsettled(find_folder(home)))
    if lost.is_empty():
        return waiting
    names = lost["segment"].unique().sort().to_list()
    count = f"{lost.height} stretch{'es' if lost.height > 1 else ''}"
    return (
        f"{count} of the trace files {', '.join(names[:3])}{' …' if len(names) > 3 else ''} "
        "cannot be read: read traces/quarantined_frames",
        *waiting,
    )


def _describe_waiting(names: Sequence[str]) -> tuple[str, ...]:
    """Say which damaged hours no compaction could make again yet."""
    if not names:
        return ()
    is_one = len(names) == 1
    return (
        f"{len(names)} damaged {'hour waits' if is_one else 'hours wait'} for segments: "
        f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''}: bring back the segments or "
        "make them readable, then run understudy curate refresh",
    )
