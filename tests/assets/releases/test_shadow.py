"""The agreement gate: what monitoring measures in shadow, read by the gate it never imports."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from assets import tables
from assets.monitoring import agreement
from assets.monitoring.measurements import tabulate_measurements
from assets.releases.shadow import (
    AGREEMENT_RATIO,
    MINIMUM_PAIRS,
    TABLE,
    check_shadow_agreement,
    read_shadow,
)
from serving.home import Home

ADAPTER = "compact@0123456789ab"
END = datetime(2026, 11, 20, tzinfo=UTC)


def measure(hits: int, n: int) -> pl.DataFrame:
    """Return what monitoring writes of so many pairs, by its own function."""
    rows = [
        {
            "parent_trace_id": f"t{number}",
            "conversation": f"c{number}",
            "asked_at": END - timedelta(hours=number % 160),
            "question": f"q{number}",
            "question_hash": f"h{number}",
            "model": ADAPTER,
            "topic": "",
            "agrees": number < hits,
        }
        for number in range(n)
    ]
    bound = agreement._bound(pl.DataFrame(rows, schema=agreement.PAIRS))
    return tabulate_measurements(
        "shadow_agreement", [bound], start=END - timedelta(days=7), end=END
    )


def test_the_limits_are_those_of_monitoring():
    assert (AGREEMENT_RATIO, MINIMUM_PAIRS) == (
        agreement.AGREEMENT_RATIO,
        agreement.MINIMUM_PAIRS,
    )


@pytest.mark.parametrize(("hits", "outcome"), [(590, "PASS"), (500, "FAIL"), (575, "INCONCLUSIVE")])
def test_the_lower_bound_of_this_student_is_gated(hits, outcome):
    gate = check_shadow_agreement(measure(hits, 600), adapter=ADAPTER)
    assert (gate.outcome, gate.is_gating, gate.n) == (outcome, True, 600)
    assert gate.number is not None
    assert (gate.number >= AGREEMENT_RATIO) == (outcome == "PASS")
    assert "until 2026-11-20" in gate.detail


@pytest.mark.parametrize(
    ("measured", "adapter", "told"),
    [
        (tables.MEASUREMENTS.to_frame(), ADAPTER, "no shadow run yet"),
        (measure(90, 90), ADAPTER, "500 pairs are needed"),
        (measure(600, 600), "compact@ffffffffffff", "measured of another student"),
    ],
)
def test_without_enough_pairs_of_this_student_the_gate_is_open_and_not_counted(
    measured, adapter, told
):
    gate = check_shadow_agreement(measured, adapter=adapter)
    assert (gate.outcome, gate.is_gating, gate.number) == ("INCONCLUSIVE", False, None)
    assert told in gate.detail


def test_the_table_is_read_where_monitoring_left_it(tmp_path):
    home = Home(tmp_path)
    assert read_shadow(home).is_empty()
    path = home.table(TABLE)
    path.parent.mkdir(parents=True)
    measure(600, 600).write_parquet(path)
    assert read_shadow(home).height == 1
