"""Cold starts: do loads of a model hide in the 99th percentile that users were promised?

Belongs here: the percentiles with and without cold answers, and their share. Does not belong here:
readiness and warming up (`serving`), which keep a cold model from users in the first place.
"""

import numpy as np
import numpy.typing as npt
import polars as pl

from assets.monitoring.comparing import SEED, Floats
from assets.monitoring.measurements import (
    BOUND_ALPHA,
    Measurement,
    MonitoringPlan,
    compare_interval,
    leave_open,
)
from assets.monitoring.traffic import Traffic, find_gap
from assets.statistics import Interval, clopper_pearson_interval

LARGEST_GAP_RATIO = 0.20  # of the promise
LARGEST_COLD_RATIO = 0.01
MINIMUM_ASKS = 300  # a 99th percentile of fewer rests on less than three answers
MINIMUM_WARM = 100  # a 99th percentile of fewer is their maximum
Flags = npt.NDArray[np.bool_]
RESAMPLES = 2000  # a tail of BOUND_ALPHA holds one of them
LARGEST_RESAMPLED = 20_000


def measure_cold_starts(traffic: Traffic, plan: MonitoringPlan) -> list[Measurement]:
    """Return what cold answers add to the 99th percentile, and how many there are."""
    limit_ms = LARGEST_GAP_RATIO * plan.slo_ms
    cold = pl.col("attempts").list.eval(pl.element().struct.field("cold_start"))
    told = traffic.asks.with_columns(cold.list.any().alias("is_cold"), cold.alias("said")).filter(
        pl.col("said").list.drop_nulls().list.len() > 0
    )
    gap = find_gap(told, minimum=MINIMUM_ASKS, unit="asks that say whether they were cold")
    if gap:
        if not traffic.asks.is_empty() and told.is_empty():
            gap = "no attempt says whether it was cold: `cold_start` is missing in every trace"
        return [
            leave_open("p99_gap_ms", gap, n=told.height, relation="at most", limit=limit_ms),
            leave_open("cold_ratio", gap, n=told.height, relation="at most",
                       limit=LARGEST_COLD_RATIO),
        ]  # fmt: skip
    is_cold = told["is_cold"].to_numpy().astype(bool)
    return [_measure_gap(told, is_cold, limit_ms), _measure_share(is_cold)]


def _measure_gap(told: pl.DataFrame, is_cold: Flags, limit_ms: float) -> Measurement:
    warm_count = int((~is_cold).sum())
    if warm_count < MINIMUM_WARM:
        reason = f"{warm_count} of {len(is_cold)} asks met a warm model, {MINIMUM_WARM} are needed"
        return leave_open("p99_gap_ms", reason, n=warm_count, relation="at most", limit=limit_ms)
    latency = told["total_latency_ms"].to_numpy()
    all_ms, warm_ms = np.percentile(latency, 99), np.percentile(latency[~is_cold], 99)
    interval = _bootstrap_gap(latency[-LARGEST_RESAMPLED:], is_cold[-LARGEST_RESAMPLED:])
    return compare_interval(
        "p99_gap_ms",
        Interval(
            value=float(all_ms - warm_ms),
            lower=interval[0],
            upper=interval[1],
            n=len(latency),
        ),
        relation="at most",
        limit=limit_ms,
        detail=f"p99 {all_ms:.0f} ms of all, {warm_ms:.0f} ms of warm answers",
    )


def _bootstrap_gap(latency: Floats, is_cold: Flags) -> tuple[float, float]:
    if not is_cold.any():  # every resample's gap is zero
        return 0.0, 0.0
    chance = np.random.default_rng(SEED)
    gaps = []
    for _ in range(RESAMPLES):
        rows = chance.integers(len(latency), size=len(latency))
        some, cold = latency[rows], is_cold[rows]
        gaps.append(np.percentile(some, 99) - np.percentile(some[~cold], 99))
    lower, upper = np.quantile(gaps, [BOUND_ALPHA, 1 - BOUND_ALPHA])
    return float(lower), float(upper)


def _measure_share(is_cold: Flags) -> Measurement:
    from scipy.stats import binomtest

    count, n = int(is_cold.sum()), len(is_cold)
    return compare_interval(
        "cold_ratio",
        clopper_pearson_interval(count, n, alpha=0.10),
        relation="at most",
        limit=LARGEST_COLD_RATIO,
        p_value=float(binomtest(count, n, LARGEST_COLD_RATIO, alternative="greater").pvalue),
        detail=f"{count} of {n} asks met a cold model",
    )
