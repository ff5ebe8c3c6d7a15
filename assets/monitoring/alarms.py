"""Alarms: one row per monitor, after Holm's correction over everything tested in one night.

A week has seven nights, and each looks at the same traffic again, so a night may spend a seventh of
the week's 5 %: on the bounds that decide without a p-value, and on the family of all the others.
However looks depend on each other, their sum bounds the week (Bonferroni). Belongs here: that
decision. Does not belong here: measuring, telling people (`orchestration/sensors`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from assets import tables
from assets.monitoring.measurements import BOUND_ALPHA
from assets.statistics import adjust_by_holm

Status = Literal["ok", "alarm", "inconclusive"]

WEEKLY_ALPHA = 0.05  # weeks of quiet traffic that may have any alarm at all
LOOKS_PER_WEEK = 7
BOUND_COUNT = 3  # agreement_sprt, p99_gap_ms and p99_ratio
FAMILY_ALPHA = WEEKLY_ALPHA / LOOKS_PER_WEEK - BOUND_COUNT * BOUND_ALPHA

MONITORS = (
    "shadow_agreement", "disagreement_clusters", "traffic_drift", "served_by_slices",
    "embedder_probe", "assignment_audit", "cold_start_report", "sample_audit", "pool_separation",
    "curation_audit",
)  # fmt: skip
RANK: Mapping[Status, int] = {"alarm": 0, "inconclusive": 1, "ok": 2}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A measurement with what it means once all others are known."""

    row: Mapping[str, Any]
    adjusted_p_value: float | None
    status: Status
    remark: str = ""


def raise_alarms(measurements: pl.DataFrame) -> pl.DataFrame:
    """Return one row per monitor: alarm, else inconclusive, else ok.

    Args:
        measurements: rows of `tables.MEASUREMENTS` of all monitors.
    """
    judged = judge_measurements(measurements)
    rows = []
    for monitor in MONITORS:
        mine = [one for one in judged if one.row["monitor"] == monitor]
        rows.append(_tabulate(monitor, mine))
    return pl.DataFrame(rows, schema=tables.ALARMS)


def judge_measurements(measurements: pl.DataFrame) -> list[Judged]:
    """Return every measurement that decides something, with its status.

    Past its limit is an alarm at once where it is a count or a bound; with a p-value it has to
    remain so after Holm's correction.
    """
    deciding = measurements.filter(pl.col("outcome") != "shown").to_dicts()
    tested = [r for r in deciding if r["p_value"] is not None and r["outcome"] != "inconclusive"]
    adjusted = adjust_by_holm([r["p_value"] for r in tested]) if tested else ()
    by_row = {id(row): p for row, p in zip(tested, adjusted, strict=True)}
    return [_judge(row, by_row.get(id(row)), len(tested)) for row in deciding]


def _judge(row: Mapping[str, Any], p: float | None, family: int) -> Judged:
    if row["outcome"] == "inconclusive":
        return Judged(row=row, adjusted_p_value=None, status="inconclusive")
    if row["outcome"] == "within":
        return Judged(row=row, adjusted_p_value=p, status="ok")
    if p is None or p < FAMILY_ALPHA:
        return Judged(row=row, adjusted_p_value=p, status="alarm")
    # An estimate whose interval lies past the limit is not fine, only not certain enough.
    status: Status = "ok" if row["lower"] is None else "inconclusive"
    remark = f"past its limit, but chance may do that in one of {family} tests (adjusted p {p:.3g})"
    return Judged(row=row, adjusted_p_value=p, status=status, remark=remark)


def _tabulate(monitor: str, judged: list[Judged]) -> dict[str, Any]:
    if not judged:
        return {"monitor": monitor, "status": "inconclusive", "detail": "nothing was measured"}
    worst = min(judged, key=lambda one: (RANK[one.status], _order(one)))
    copied = {name: worst.row[name] for name in tables.ALARMS.names() if name in worst.row}
    also = [one for one in judged if one.status == worst.status and one is not worst]
    more = f"also {', '.join(sorted({_name(one) for one in also})[:5])}" if also else ""
    is_told = worst.status != "ok"
    parts = (worst.row["detail"], worst.remark, more if is_told else "")
    return copied | {
        "monitor": monitor,
        "status": worst.status,
        "adjusted_p_value": worst.adjusted_p_value,
        "detail": "; ".join(part for part in parts if part),
    }


def _order(judged: Judged) -> float:
    return 0.0 if judged.adjusted_p_value is None else judged.adjusted_p_value


def _name(judged: Judged) -> str:
    return f"{judged.row['metric']} of {judged.row['slice']}"
