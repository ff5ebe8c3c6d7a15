"""Pool separation: does training slow the answers down that users get meanwhile?

Belongs here: when training ran (adapters say so), and the 99th percentile then against quiet hours.
Does not belong here: keeping runs apart (Dagster's pools), devices of a machine.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import polars as pl

from assets.monitoring.comparing import SEED, Floats
from assets.monitoring.measurements import (
    BOUND_ALPHA,
    Measurement,
    MonitoringPlan,
    compare_interval,
    compare_number,
    leave_open,
)
from assets.monitoring.traffic import Traffic, find_gap
from assets.statistics import Interval
from serving.home import Home

LARGEST_RATIO = 1.10
MINIMUM_ASKS = 100  # on each side: a 99th percentile of fewer is the maximum
SHOWN_ASKS = 20
PERCENTILE = 0.99
RESAMPLES = 20_000


@dataclass(frozen=True, kw_only=True)
class TrainingSpan:
    """When one adapter was trained."""

    adapter: str
    start: datetime
    end: datetime


def find_training(home: Home) -> list[TrainingSpan]:
    """Return when each adapter was trained, as its provenance says."""
    spans = []
    for path in sorted(home.adapters.glob("*/provenance.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        ended, seconds = facts.get("trained_at"), facts.get("training_seconds")
        if ended and seconds:
            end = datetime.fromisoformat(ended)
            spans.append(
                TrainingSpan(
                    adapter=path.parent.name, start=end - timedelta(seconds=seconds), end=end
                )
            )
    return spans


def measure_separation(
    traffic: Traffic, spans: Sequence[TrainingSpan], plan: MonitoringPlan
) -> list[Measurement]:
    """Return whether devices are shared, and the 99th percentile while training over quiet."""
    return [_compare_devices(plan), *_compare_latency(traffic, spans)]


def _compare_devices(plan: MonitoringPlan) -> Measurement:
    shared = sorted({*plan.serving_devices} & {*plan.training_devices})
    accelerators = [device for device in shared if not device.startswith("cpu")]
    told = f"serving on {', '.join(plan.serving_devices)}; "
    told += f"training on {', '.join(plan.training_devices)}"
    if shared and not accelerators:
        told += "; a processor is shared by every program: the ratio of the percentiles decides"
    return compare_number(
        "shared_accelerators",
        len(accelerators),
        relation="at most",
        limit=0,
        n=len(plan.serving_devices),
        detail=told,
    )


def _compare_latency(traffic: Traffic, spans: Sequence[TrainingSpan]) -> list[Measurement]:
    asks = pl.concat([traffic.before, traffic.asks]).filter(pl.col("total_latency_ms") > 0)
    if gap := find_gap(asks, minimum=2 * MINIMUM_ASKS, unit="asks"):
        return [_leave_open(gap, asks.height)]
    is_training = pl.any_horizontal(
        pl.lit(value=False),
        *(pl.col("asked_at").is_between(span.start, span.end) for span in spans),
    )
    asks = asks.with_columns(pl.col("asked_at").dt.hour().alias("hour"))
    while_training, quiet = asks.filter(is_training), asks.filter(~is_training)
    if while_training.is_empty():
        return [_leave_open("nothing was trained while questions came in", 0)]
    quiet = quiet.join(while_training.select("hour").unique(), on="hour", how="semi")
    while_training = while_training.join(quiet.select("hour").unique(), on="hour", how="semi")
    if min(while_training.height, quiet.height) < MINIMUM_ASKS:
        reason = f"{while_training.height} asks while training and {quiet.height} in the same "
        reason += f"hours of quiet days, {MINIMUM_ASKS} of each are needed"
        return [_leave_open(reason, while_training.height)]
    return [_compare_percentiles(while_training, quiet), *_show_hours(while_training, quiet)]


def _compare_percentiles(while_training: pl.DataFrame, quiet: pl.DataFrame) -> Measurement:
    """Compare percentiles with quiet asks weighed to have the same hours of the day."""
    chance = np.random.default_rng(SEED)
    busy = while_training["total_latency_ms"].to_numpy()
    shares = dict(while_training["hour"].value_counts(normalize=True, name="s").iter_rows())
    counts = dict(quiet["hour"].value_counts().iter_rows())
    rows = quiet["total_latency_ms"].to_numpy()
    weights = np.array([shares[hour] / counts[hour] for hour in quiet["hour"]])
    weights /= weights.sum()
    calm_p99 = float(np.quantile(rows, PERCENTILE, weights=weights, method="inverted_cdf"))
    busy_p99 = float(np.quantile(busy, PERCENTILE, method="inverted_cdf"))
    even = np.full(len(busy), 1 / len(busy))
    ratios = _resample(busy, even, chance) / _resample(rows, weights, chance)
    lower, upper = (float(x) for x in np.quantile(ratios, [BOUND_ALPHA, 1 - BOUND_ALPHA]))
    return compare_interval(
        "p99_ratio",
        Interval(value=busy_p99 / calm_p99, lower=lower, upper=upper, n=len(busy)),
        relation="at most",
        limit=LARGEST_RATIO,
        detail=f"p99 {busy_p99:.0f} ms while training, {calm_p99:.0f} ms in the same quiet hours",
    )


def _resample(rows: Floats, weights: Floats, chance: np.random.Generator) -> Floats:
    """Return the percentile of each of RESAMPLES bootstrap samples, without drawing their rows.

    The k-th smallest of n draws lies where the weights, summed over the sorted rows, reach a
    Beta(k, n - k + 1) variable: it is the k-th smallest of n uniform ones.
    """
    k = math.ceil(PERCENTILE * len(rows))
    levels = chance.beta(k, len(rows) - k + 1, size=RESAMPLES)
    order = np.argsort(rows)
    places = np.searchsorted(np.cumsum(weights[order]), levels)
    drawn: Floats = rows[order][np.minimum(places, len(rows) - 1)]
    return drawn


def _show_hours(while_training: pl.DataFrame, quiet: pl.DataFrame) -> list[Measurement]:
    def summarise(asks: pl.DataFrame) -> pl.DataFrame:
        p99 = pl.col("total_latency_ms").quantile(0.99).alias("p99")
        return asks.group_by("hour").agg(p99, pl.len().alias("n"))

    joined = summarise(while_training).join(summarise(quiet), on="hour", suffix="_quiet")
    return [
        Measurement(
            metric="p99_ratio",
            slice=f"hour={row['hour']:02d}",
            outcome="shown",
            number=row["p99"] / row["p99_quiet"],
            n=row["n"],
        )
        for row in joined.sort("hour").iter_rows(named=True)
        if min(row["n"], row["n_quiet"]) >= SHOWN_ASKS
    ]


def _leave_open(reason: str, n: int) -> Measurement:
    return leave_open("p99_ratio", reason, n=n, relation="at most", limit=LARGEST_RATIO)
