"""Agreement in shadow: how often student and teacher answer alike, on real questions.

Alike means what the gate of a release means by it, and the limits are the gate's. Belongs here: the
bound, the sequential test, the fall since before. Does not belong here: pairing
(`assets/releases/pairing`), what the disagreements are about (`clusters`).
"""

import math
from collections.abc import Sequence

import polars as pl

from assets.monitoring.measurements import (
    BOUND_ALPHA,
    Measurement,
    MonitoringPlan,
    compare_interval,
    compare_number,
    leave_open,
    show_share,
)
from assets.monitoring.traffic import Traffic, find_gap
from assets.releases.pairing import pair_answers
from assets.releases.shadow import is_of, take_first
from assets.statistics import wilson_interval

LOST_BY = 0.05  # so far under the target is what the sequential test tells it from
SEQUENTIAL_BETA = 0.05
LARGEST_FALL = 0.03  # against the weeks before


def pair_questions(asks: pl.DataFrame, shadows: pl.DataFrame) -> pl.DataFrame:
    """Return the pairs as the gate makes them, each with its topic."""
    topics = asks.select("trace_id", "topic")
    return pair_answers(asks, shadows).join(topics, on="trace_id", maintain_order="left")


def measure_agreement(traffic: Traffic, plan: MonitoringPlan) -> list[Measurement]:
    """Return the bound, the sequential test, the fall since before, and the share by topic.

    Only the newest students asked in turn are measured: another one's answers say nothing of them.
    """
    pairs = pair_questions(traffic.asks, traffic.shadows)
    students = _find_newest(pairs)
    pairs = take_first(pairs.filter(is_of(students)))
    if pairs.is_empty():
        reason = (
            "no traffic in the window"
            if traffic.asks.is_empty()
            else "no question was answered by both models: the shadow is off, or it failed"
        )
        limit = plan.minimum_agreement_ratio
        return [leave_open("agreement", reason, relation="at least", limit=limit)]
    before = pair_questions(traffic.before, traffic.shadows_before)
    before = take_first(before.filter(is_of(students)))
    named = ", then ".join(students)
    return [
        _bound(pairs, plan, named),
        _test_in_sequence(pl.concat([before, pairs]), plan.minimum_agreement_ratio),
        _compare_with_before(pairs, before, named, minimum=plan.minimum_agreement_pairs),
        *_show_topics(pairs),
    ]


def _find_newest(pairs: pl.DataFrame) -> Sequence[str]:
    """Return the students that the last pair asked in turn, and whom others ask after these.

    The first student's answer stands for some questions, so that one pair may not name them all.
    """
    asked: list[list[str]] = [turn for turn in reversed(pairs["asked"].to_list()) if turn]
    if not asked:
        return ()
    return max((turn for turn in asked if turn[: len(asked[0])] == asked[0]), key=len)


def _bound(pairs: pl.DataFrame, plan: MonitoringPlan, named: str) -> Measurement:
    hits, n, limit = int(pairs["agrees"].sum()), pairs.height, plan.minimum_agreement_ratio
    if gap := find_gap(pairs, minimum=plan.minimum_agreement_pairs, unit="pairs"):
        return leave_open("agreement", gap, n=n, relation="at least", limit=limit)
    from scipy.stats import binomtest

    # One-sided at 5 %: the two-sided interval at 10 %.
    interval = wilson_interval(hits, n, alpha=0.10)
    return compare_interval(
        "agreement",
        interval,
        relation="at least",
        limit=limit,
        p_value=float(binomtest(hits, n, limit, alternative="less").pvalue),
        detail=f"{hits} of {n} pairs of {named}, Wilson bound",
    )


def _test_in_sequence(pairs: pl.DataFrame, target: float) -> Measurement:
    """Wald's sequential test of the target against a lost one, stopped at its first decision.

    It runs from the student's first pair on and may be read after each: a student that never was
    good enough is found within few pairs. Its level is that of one look all the same, since the
    pairs of weeks long past leave the sequence from night to night.
    """
    reject = math.log((1 - SEQUENTIAL_BETA) / BOUND_ALPHA)
    accept = math.log(SEQUENTIAL_BETA / (1 - BOUND_ALPHA))
    lost = target - LOST_BY
    if lost <= 0 or target >= 1:
        told = f"a limit of {target:g} and one of {LOST_BY:g} less have no odds to compare"
        return leave_open("agreement_sprt", told, relation="at most", limit=reject)
    hit = math.log(lost / target)
    miss = math.log((1 - lost) / (1 - target))
    evidence, stop = 0.0, pairs.height
    for position, agrees in enumerate(pairs["agrees"], start=1):
        evidence += hit if agrees else miss
        if not accept < evidence < reject:
            stop = position
            break
    told = f"log likelihood ratio {evidence:.2f} after {stop} pairs (alarm at {reject:.2f}, "
    told += f"settled at {accept:.2f})"
    if accept < evidence < reject:
        return leave_open("agreement_sprt", told, n=stop, relation="at most", limit=reject)
    return compare_number(
        "agreement_sprt", evidence, relation="at most", limit=reject - 1e-9, n=stop, detail=told
    )


def _compare_with_before(
    pairs: pl.DataFrame, before: pl.DataFrame, named: str, *, minimum: int
) -> Measurement:
    from statsmodels.stats.proportion import proportions_ztest

    n, m = pairs.height, before.height
    if min(n, m) < minimum:
        reason = f"{n} pairs now and {m} before of {named}, {minimum} are needed"
        return leave_open("agreement_fall", reason, n=n, relation="at most", limit=LARGEST_FALL)
    hits = [int(before["agrees"].sum()), int(pairs["agrees"].sum())]
    fall = hits[0] / m - hits[1] / n
    is_constant = sum(hits) in {0, n + m}
    p = 1.0 if is_constant else float(proportions_ztest(hits, [m, n], alternative="larger")[1])
    return compare_number(
        "agreement_fall",
        fall,
        relation="at most",
        limit=LARGEST_FALL,
        n=n,
        p_value=p,
        detail=f"{hits[0]} of {m} before, {hits[1]} of {n} now",
    )


def _show_topics(pairs: pl.DataFrame) -> list[Measurement]:
    by_topic = pairs.group_by("topic").agg(pl.len().alias("n"), pl.col("agrees").sum())
    return [
        show_share(
            "agreement",
            wilson_interval(row["agrees"], row["n"]),
            slice_name=f"topic={row['topic'] or 'none'}",
        )
        for row in by_topic.sort("n", "topic", descending=[True, False]).iter_rows(named=True)
    ]
