"""Shortages: which buckets of a frozen set hold too few cases to decide what is read from them.

A bucket is short where its slice is too small to be gated, where its interval holds the floor so
that nobody knows on which side it lies, and where a gate that counts its cases stands open. Belongs
here: finding them, with the reason in words. Does not belong here: which questions to add
(`proposals`), the gates (`assets/releases/gates`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import polars as pl

from assets.parity.arms import CANDIDATE
from assets.statistics import wilson_interval

Bucket = Literal["answerable", "boundary", "out_of_scope"]
SetName = Literal["golden", "refusal", "over_refusal"]

REFUSED: tuple[Bucket, ...] = ("boundary", "out_of_scope")
BUCKETS: Mapping[SetName, tuple[Bucket, ...]] = {
    "golden": ("answerable", *REFUSED),
    "refusal": REFUSED,
    "over_refusal": ("answerable",),
}
ENOUGH = 30  # cases: no more are proposed at once, however many a gate would need


@dataclass(frozen=True, kw_only=True)
class Shortage:
    """How many cases of a bucket are proposed, and why."""

    count: int
    reason: str


def find_thin_slices(
    report: pl.DataFrame,
    buckets: Iterable[Bucket],
    *,
    minimum_cases: int,
    floor_ratio: float,
    alpha: float,
) -> dict[Bucket, Shortage]:
    """Return the buckets whose slice is too small to be gated, or too small to be told apart.

    Args:
        report: the parity table.
        buckets: those that the set holds.
        minimum_cases: a slice of fewer is never gated.
        floor_ratio: what the gate on slices holds a slice against.
        alpha: one-sided, of that gate's bound.
    """
    rows = report.filter(kind="arm", arm=CANDIDATE, metric="exact_match")
    counts = {row["slice"]: (row["n"], row["numerator"] or 0.0) for row in rows.to_dicts()}
    found: dict[Bucket, Shortage] = {}
    for bucket in buckets:
        n, right = counts.get(bucket, (0, 0.0))
        if n < minimum_cases:
            found[bucket] = Shortage(
                count=minimum_cases - n,
                reason=f"the slice {bucket} lacks {minimum_cases - n} cases to be gated",
            )
        elif _is_open(right, n, floor_ratio, alpha):
            found[bucket] = Shortage(
                count=_find_need(right / n, n, floor_ratio, alpha),
                reason=f"{right:.0f} of {n} right in the slice {bucket} leave open on which side "
                f"of the floor {floor_ratio:.0%} it lies",
            )
    return found


def _is_open(right: float, n: int, floor_ratio: float, alpha: float) -> bool:
    bounds = wilson_interval(round(right), n, alpha=2 * alpha)
    return bounds.lower < floor_ratio <= bounds.upper


def _find_need(rate: float, n: int, floor_ratio: float, alpha: float) -> int:
    """Return how many more cases at this rate would decide, up to what is proposed at once."""
    more = (k for k in range(1, ENOUGH) if not _is_open(rate * (n + k), n + k, floor_ratio, alpha))
    return next(more, ENOUGH)


def find_open_gates(verdict: pl.DataFrame, name: SetName) -> dict[Bucket, Shortage]:
    """Return the buckets of a set that an open gate counts, by the last verdict.

    A gate that nothing was measured for is no shortage of cases, and one that is not counted asks
    for none.

    Args:
        verdict: the table gate_verdict of the recipe.
        name: of the set.
    """
    rows = verdict.filter(pl.col("is_gating"), pl.col("n") > 0, outcome="INCONCLUSIVE")
    found: dict[Bucket, Shortage] = {}
    for row in rows.iter_rows(named=True):
        counted = _list_counted(row["gate"], name)
        count = min(row["needed_cases"] or ENOUGH, ENOUGH)
        for bucket in counted:
            shortage = Shortage(
                count=-(-count // len(counted)),
                reason=f"the gate {row['gate']} stands open on {row['n']} cases",
            )
            found = merge_shortages(found, {bucket: shortage})
    return found


def _list_counted(gate: str, name: SetName) -> tuple[Bucket, ...]:
    if name != "golden":
        is_own = gate.startswith(f"{name}_") and gate != "refusal_recall"
        return BUCKETS[name] if is_own else ()
    if gate == "pooled_non_inferiority":
        return BUCKETS[name]
    return REFUSED if gate == "refusal_recall" else ()


def merge_shortages(*parts: Mapping[Bucket, Shortage]) -> dict[Bucket, Shortage]:
    """Return each bucket's larger count, with all that is said of it."""
    return {
        bucket: Shortage(
            count=max(part[bucket].count for part in parts if bucket in part),
            reason="; ".join(part[bucket].reason for part in parts if bucket in part),
        )
        for bucket in BUCKETS["golden"]
        if any(bucket in part for part in parts)
    }
