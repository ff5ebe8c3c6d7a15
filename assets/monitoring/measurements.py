"""Measurements: one number against its limit, and whether there was enough to say so.

Every monitor writes rows of this one form, so that one place decides what is an alarm (`alarms`).
Too little traffic is `inconclusive` with its reason, never within a limit and never a zero. Belongs
here: the form and the comparisons. Does not belong here: what is measured, Holm's correction.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Literal

import polars as pl

from assets import tables
from assets.releases.gates import GatePolicy
from assets.statistics import Interval

Outcome = Literal["within", "past", "inconclusive", "shown"]
Relation = Literal["at least", "at most"]

BOUND_ALPHA = 0.0005  # of one look: a bound that decides without a p-value may err so often
"""So decide the bootstraps of the two latencies and the sequential test of agreement; what is left
of a week's errors is the family's (`alarms`)."""


@dataclass(frozen=True, kw_only=True)
class MonitoringPlan:
    """What the configuration says of monitoring.

    `until` ends the window; None: now. `slo_ms` is what users were promised at the 99th percentile.
    The devices are those that the operator gives to serving and to training. What agreement must
    reach, on how many pairs, and how many questions of one kind may disagree are the gate's limits.
    """

    slo_ms: float = 10_000.0
    window_days: int = 7
    reference_days: int = 28
    env: str = "prod"
    until: datetime | None = None
    serving_devices: tuple[str, ...] = ("cpu",)
    training_devices: tuple[str, ...] = ("cpu",)
    embedder_place: Literal["local", "hosted"] = "local"
    minimum_agreement_ratio: float = GatePolicy.minimum_agreement_ratio
    minimum_agreement_pairs: int = GatePolicy.minimum_agreement_pairs
    unregistered_cluster_cases: int = GatePolicy.unregistered_cluster_cases


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number of a monitor. One with a p-value needs Holm's correction before it alarms."""

    metric: str
    outcome: Outcome
    slice: str = "all"
    number: float | None = None
    lower: float | None = None
    upper: float | None = None
    relation: Relation | None = None
    limit: float | None = None
    p_value: float | None = None
    n: int = 0
    detail: str = ""


def compare_number(
    metric: str,
    number: float,
    *,
    relation: Relation,
    limit: float,
    n: int,
    p_value: float | None = None,
    detail: str = "",
    slice_name: str = "all",
) -> Measurement:
    """Return a number against its limit."""
    is_within = number >= limit if relation == "at least" else number <= limit
    return Measurement(
        metric=metric,
        slice=slice_name,
        outcome="within" if is_within else "past",
        number=float(number),
        relation=relation,
        limit=limit,
        p_value=None if p_value is None else float(p_value),
        n=n,
        detail=detail,
    )


def compare_interval(
    metric: str,
    interval: Interval,
    *,
    relation: Relation,
    limit: float,
    p_value: float | None = None,
    detail: str = "",
    slice_name: str = "all",
) -> Measurement:
    """Return an estimate against its limit: within or past only where the whole interval is.

    Where the limit lies inside the interval, more traffic decides.
    """
    worst, best = (
        (interval.lower, interval.upper)
        if relation == "at least"
        else (-interval.upper, -interval.lower)
    )
    signed = limit if relation == "at least" else -limit
    outcome: Outcome = "within" if worst >= signed else "past" if best < signed else "inconclusive"
    if outcome == "inconclusive":
        detail = f"{detail}; " if detail else ""
        detail += f"the interval of {interval.n} holds the limit, more traffic decides"
    return Measurement(
        metric=metric,
        slice=slice_name,
        outcome=outcome,
        number=interval.value,
        lower=interval.lower,
        upper=interval.upper,
        relation=relation,
        limit=limit,
        p_value=None if p_value is None else float(p_value),
        n=interval.n,
        detail=detail,
    )


def show_share(
    metric: str, interval: Interval, *, slice_name: str, detail: str = ""
) -> Measurement:
    """Return a share that nothing is decided on."""
    return Measurement(
        metric=metric,
        slice=slice_name,
        outcome="shown",
        number=interval.value,
        lower=interval.lower,
        upper=interval.upper,
        n=interval.n,
        detail=detail,
    )


def leave_open(
    metric: str,
    reason: str,
    *,
    n: int = 0,
    relation: Relation | None = None,
    limit: float | None = None,
    slice_name: str = "all",
) -> Measurement:
    """Return a measurement that could not be taken, and why."""
    return Measurement(
        metric=metric,
        slice=slice_name,
        outcome="inconclusive",
        relation=relation,
        limit=limit,
        n=n,
        detail=reason,
    )


def add_detail(measurement: Measurement, detail: str) -> Measurement:
    """Return the measurement with one more remark."""
    joined = f"{measurement.detail}; {detail}" if measurement.detail else detail
    return replace(measurement, detail=joined)


def tabulate_measurements(
    monitor: str, measurements: Iterable[Measurement], *, start: datetime, end: datetime
) -> pl.DataFrame:
    """Return the rows of one monitor."""
    of_all = {"monitor": monitor, "window_start": start, "window_end": end}
    return pl.DataFrame(
        [asdict(measurement) | of_all for measurement in measurements],
        schema=tables.MEASUREMENTS,
    )
