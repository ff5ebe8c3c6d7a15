"""Agreement in shadow: how often student and teacher answer alike, on real questions.

Alike means what confidence was calibrated for: a valid student answer with the teacher's decision
to refuse and, where both answer, its citations. Belongs here: pairing, the bound, the sequential
test, the fall since before. Does not belong here: what the disagreements are about (`clusters`).
"""

import math
from typing import Any

import polars as pl

from assets.monitoring.measurements import (
    BOUND_ALPHA,
    Measurement,
    compare_interval,
    compare_number,
    leave_open,
    show_share,
)
from assets.monitoring.traffic import Traffic, find_gap
from assets.statistics import wilson_interval
from assets.students.agreement import compare_row

AGREEMENT_RATIO = 0.95  # lower bound at or above: the student may stand in
MINIMUM_PAIRS = 500
LOST_RATIO = 0.90  # what the sequential test tells the target from
SEQUENTIAL_BETA = 0.05
LARGEST_FALL = 0.03  # against the weeks before

COMPARED = (
    "served_by", "attempts", "refused", "citations", "answer", "conversation", "asked_at",
    "question", "question_hash", "model", "topic",
)  # fmt: skip
"""What is read of both sides of a pair."""

PAIRS = pl.Schema(
    {
        "parent_trace_id": pl.String(),
        "conversation": pl.String(),
        "asked_at": pl.Datetime("us", "UTC"),
        "question": pl.String(),
        "question_hash": pl.String(),
        "model": pl.String(),
        "topic": pl.String(),
        "agrees": pl.Boolean(),
    }
)


def pair_answers(asks: pl.DataFrame, shadows: pl.DataFrame) -> pl.DataFrame:
    """Return one row per question that both models answered, oldest first.

    `model` is the student's, from whichever side of the pair it stands on. A question that was
    answered by the same role twice (a fallback in between) is no pair.
    """
    joined = shadows.select("parent_trace_id", *COMPARED).join(
        asks.select("trace_id", *COMPARED),
        left_on="parent_trace_id",
        right_on="trace_id",
        suffix="_served",
    )
    rows = []
    for row in joined.sort("asked_at_served").iter_rows(named=True):
        sides = {row["served_by"]: "", row["served_by_served"]: "_served"}
        if set(sides) == {"student", "teacher"}:
            rows.append(_compare(row, student=sides["student"], teacher=sides["teacher"]))
    return pl.DataFrame(rows, schema=PAIRS)


def _compare(row: dict[str, Any], *, student: str, teacher: str) -> dict[str, Any]:
    attempts = row[f"attempts{student}"] or []
    compared = compare_row(
        {
            "verdict": attempts[-1]["verdict"] if attempts else None,
            "refused": bool(row[f"refused{student}"]),
            "label_refused": bool(row[f"refused{teacher}"]),
            "citations": row[f"citations{student}"] or [],
            "label_citations": row[f"citations{teacher}"] or [],
            "answer": row[f"answer{student}"] or "",
            "label_answer": row[f"answer{teacher}"] or "",
        }
    )
    return {
        "parent_trace_id": row["parent_trace_id"],
        "conversation": row["conversation_served"],
        "asked_at": row["asked_at_served"],
        "question": row["question_served"],
        "question_hash": row["question_hash_served"],
        "model": row[f"model{student}"],
        "topic": row["topic_served"],
        "agrees": compared["agrees"],
    }


def measure_agreement(traffic: Traffic) -> list[Measurement]:
    """Return the bound, the sequential test, the fall since before, and the share by topic.

    Only the newest student is measured: another one's answers say nothing of it.
    """
    pairs = _keep_newest(_take_first(pair_answers(traffic.asks, traffic.shadows)))
    before = _take_first(pair_answers(traffic.before, traffic.shadows_before))
    if pairs.is_empty():
        reason = (
            "no traffic in the window"
            if traffic.asks.is_empty()
            else "no question was answered by both models: the shadow is off, or it failed"
        )
        return [leave_open("agreement", reason, relation="at least", limit=AGREEMENT_RATIO)]
    before = before.filter(model=pairs["model"][0])
    return [
        _bound(pairs),
        _test_in_sequence(pl.concat([before, pairs])),
        _compare_with_before(pairs, before),
        *_show_topics(pairs),
    ]


def _take_first(pairs: pl.DataFrame) -> pl.DataFrame:
    """Return one pair per conversation: who asks again asks about the same."""
    return pairs.unique("conversation", keep="first", maintain_order=True)


def _keep_newest(pairs: pl.DataFrame) -> pl.DataFrame:
    return pairs if pairs.is_empty() else pairs.filter(pl.col("model") == pairs["model"][-1])


def _bound(pairs: pl.DataFrame) -> Measurement:
    hits, n = int(pairs["agrees"].sum()), pairs.height
    if gap := find_gap(pairs, minimum=MINIMUM_PAIRS, unit="pairs"):
        return leave_open("agreement", gap, n=n, relation="at least", limit=AGREEMENT_RATIO)
    from scipy.stats import binomtest

    # One-sided at 5 %: the two-sided interval at 10 %.
    interval = wilson_interval(hits, n, alpha=0.10)
    return compare_interval(
        "agreement",
        interval,
        relation="at least",
        limit=AGREEMENT_RATIO,
        p_value=float(binomtest(hits, n, AGREEMENT_RATIO, alternative="less").pvalue),
        detail=f"{hits} of {n} pairs of {pairs['model'][0]}, Wilson bound",
    )


def _test_in_sequence(pairs: pl.DataFrame) -> Measurement:
    """Wald's sequential test of the target against a lost one, stopped at its first decision.

    It runs from the student's first pair on and may be read after each: a student that never was
    good enough is found within few pairs. Its level is that of one look all the same, since the
    pairs of weeks long past leave the sequence from night to night.
    """
    reject = math.log((1 - SEQUENTIAL_BETA) / BOUND_ALPHA)
    accept = math.log(SEQUENTIAL_BETA / (1 - BOUND_ALPHA))
    hit = math.log(LOST_RATIO / AGREEMENT_RATIO)
    miss = math.log((1 - LOST_RATIO) / (1 - AGREEMENT_RATIO))
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


def _compare_with_before(pairs: pl.DataFrame, before: pl.DataFrame) -> Measurement:
    from statsmodels.stats.proportion import proportions_ztest

    n, m = pairs.height, before.height
    if min(n, m) < MINIMUM_PAIRS:
        reason = f"{n} pairs now and {m} before of {pairs['model'][0]}, {MINIMUM_PAIRS} are needed"
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
