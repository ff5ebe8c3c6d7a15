"""Who served what: the student's share by slice, and whether the router still decides as before.

Topics come and go, so the shares of two windows are compared within each topic (the
Cochran-Mantel-Haenszel test): what is left is the router's doing. Belongs here: shares and that
test. Does not belong here: drift of the traffic itself (`drift`).
"""

import numpy as np
import polars as pl

from assets.monitoring.measurements import Measurement, compare_number, leave_open, show_share
from assets.monitoring.propensity import measure_unbiased
from assets.monitoring.traffic import (
    MINIMUM_CONVERSATIONS,
    Traffic,
    find_gap,
    find_reference_gap,
    take_first_asks,
)
from assets.statistics import wilson_interval

LARGEST_MOVE = 0.05  # of the student's share, topics held fixed
SLICES = ("topic", "route_reason", "phase", "hour_block", "client_kind", "release_id")
HOURS_PER_BLOCK = 3


def measure_slices(traffic: Traffic) -> list[Measurement]:
    """Return the change of the student's share with its test, then what is only shown.

    That is the share of every slice, and each model's figures with the router's choice undone.
    """
    served = _keep_served(traffic.asks)
    return [_compare_shares(traffic), *_show_slices(served), *measure_unbiased(served)]


def _keep_served(asks: pl.DataFrame) -> pl.DataFrame:
    return asks.filter(pl.col("served_by").is_not_null()).with_columns(
        (pl.col("served_by") == "student").alias("is_student"), name_hour_block()
    )


def name_hour_block() -> pl.Expr:
    """Return the three hours of the day in which something was asked, as `hour_block`."""
    first = pl.col("asked_at").dt.hour() // HOURS_PER_BLOCK * HOURS_PER_BLOCK
    return first.cast(pl.String).str.zfill(2).alias("hour_block")


def _compare_shares(traffic: Traffic) -> Measurement:
    from statsmodels.stats.contingency_tables import StratifiedTable

    now, before = (take_first_asks(_keep_served(a)) for a in (traffic.asks, traffic.before))
    gap = find_gap(now, minimum=MINIMUM_CONVERSATIONS) or find_reference_gap(traffic)
    if gap:
        return leave_open(
            "student_share_move", gap, n=now.height, relation="at most", limit=LARGEST_MOVE
        )
    counted = _count(now).join(_count(before), on="topic", suffix="_before")
    tables = [
        np.array(
            [[r["student"], r["n"] - r["student"]],
             [r["student_before"], r["n_before"] - r["student_before"]]], dtype=float,
        )
        for r in counted.iter_rows(named=True)
    ]  # fmt: skip
    weights = np.array([1 / (1 / t[0].sum() + 1 / t[1].sum()) for t in tables])
    moves = np.array([t[0, 0] / t[0].sum() - t[1, 0] / t[1].sum() for t in tables])
    # A topic that one model answers alone in both windows says nothing of the router.
    told = [t for t in tables if t.sum(axis=0).all()]
    p = float(StratifiedTable(told).test_null_odds(correction=False).pvalue) if told else 1.0
    move = float(weights @ moves / weights.sum()) if len(tables) else 0.0
    return compare_number(
        "student_share_move",
        abs(move),
        relation="at most",
        limit=LARGEST_MOVE,
        n=now.height,
        p_value=p,
        detail=f"the student's share moved by {move:+.1%} within {len(tables)} topics",
    )


def _count(asks: pl.DataFrame) -> pl.DataFrame:
    return asks.group_by("topic").agg(
        pl.len().alias("n"), pl.col("is_student").sum().alias("student")
    )


def _show_slices(served: pl.DataFrame) -> list[Measurement]:
    rows = []
    for column in SLICES:
        counts = served.group_by(pl.col(column).fill_null("none")).agg(
            pl.len().alias("n"), pl.col("is_student").sum().alias("student")
        )
        rows += [
            show_share(
                "student_share",
                wilson_interval(row["student"], row["n"]),
                slice_name=f"{column}={row[column] or 'none'}",
            )
            for row in counts.sort("n", column, descending=[True, False]).iter_rows(named=True)
        ]
    return rows
