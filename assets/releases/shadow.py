"""The agreement gate: what a shadow run says of this student on real questions.

Monitoring comes after releases, so its table is no input: it is read where it lies, and without one
the gate stays open and is not counted. Belongs here: that reading and the gate. Does not belong
here: pairing answers and the bound (`assets/monitoring/agreement`).
"""

from typing import Any

import polars as pl

from assets import tables
from assets.releases.gates import GateResult, Outcome
from serving.home import Home

TABLE = "monitoring/shadow_agreement"
AGREEMENT_RATIO = 0.95  # lower Wilson bound at or above: the student may stand in
MINIMUM_PAIRS = 500


def read_shadow(home: Home) -> pl.DataFrame:
    """Return what monitoring measured last; no rows where there was no shadow run."""
    path, nothing = home.table(TABLE), tables.MEASUREMENTS.to_frame()
    found = pl.read_parquet(path) if path.exists() else nothing
    return found if found.schema == nothing.schema else nothing


def check_shadow_agreement(measured: pl.DataFrame, *, adapter: str) -> GateResult:
    """Student and teacher answer alike in shadow: the Wilson lower bound is at or above 0.95.

    Fails when the upper bound is below it. With fewer than 500 pairs of this very student, or none,
    the gate is shown and not counted: production has not been asked yet.
    """
    rows = measured.filter(metric="agreement", slice="all").to_dicts()
    row = rows[0] if rows else None
    if row is None:
        return _describe(
            "INCONCLUSIVE", None, 0, "no shadow run yet: the phase `imposter` makes one"
        )
    if row["lower"] is None:
        detail = f"{row['detail']}; {MINIMUM_PAIRS} pairs are needed"
        return _describe("INCONCLUSIVE", None, row["n"], detail)
    if adapter not in row["detail"].replace(",", " ").split():
        detail = f"measured of another student: {row['detail']}"
        return _describe("INCONCLUSIVE", None, 0, detail)
    return _describe(
        _judge(row), row["lower"], row["n"], f"{row['detail']}, until {row['window_end']:%Y-%m-%d}",
        is_gating=True,
    )  # fmt: skip


def _judge(row: dict[str, Any]) -> Outcome:
    if row["lower"] >= AGREEMENT_RATIO:
        return "PASS"
    return "FAIL" if row["upper"] < AGREEMENT_RATIO else "INCONCLUSIVE"


def _describe(
    outcome: Outcome, number: float | None, n: int, detail: str, *, is_gating: bool = False
) -> GateResult:
    return GateResult(
        name="shadow_agreement",
        unit="ratio",
        relation="at least",
        outcome=outcome,
        number=number,
        limit=AGREEMENT_RATIO,
        n=n,
        detail=detail,
        is_gating=is_gating,
    )
