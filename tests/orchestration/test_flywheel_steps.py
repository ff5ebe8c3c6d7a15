"""Single steps of a turn over traces of the real server: what is repeated, what is counted."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import polars as pl
import pytest

from assets import tables
from assets.traces.deciding import decide_trace, open_decisions
from orchestration.customers import Asking, measure_leg
from orchestration.drill import DriftAlarm
from orchestration.flywheel import (
    CURATE,
    CURVE,
    RUBRIC,
    SERVE,
    _Steps,
    count_accepted,
)
from orchestration.turning import open_turn
from serving.errors import InvalidInputError
from serving.home import Home
from serving.models.protocols import NoProgress
from tests.orchestration.sensors.curated import (
    BOT,
    choose_rows,
    read_records,
    report_student,
    write_curated,
)

DRIFT = DriftAlarm(monitor="traffic_drift", metric="m", number=2.0, limit=1.0, detail="")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_curated(tmp_path_factory.mktemp("steps"))


def open_steps(config) -> _Steps:
    home = Home(config.home)
    return _Steps(
        config=config, home=home, recipe="tiny", plan=(), progress=NoProgress(), settings={},
        turn=open_turn(home, "tiny", (), lambda _line: None),
    )  # fmt: skip


def test_a_turn_that_is_not_due_asks_and_curates_again_and_names_its_memory(config):
    home = Home(config.home)
    curve = home.table(CURVE, "tiny")
    curve.parent.mkdir(parents=True)
    tables.BY_KEY["parity", "router_curve"].to_frame().write_parquet(curve)
    steps = open_steps(config)
    for name in ("1/6 drill", SERVE, CURATE):
        steps.turn.do(name, "", lambda: {})
    with dg.instance_for_test() as instance:
        report_student(instance)
        with pytest.raises(InvalidInputError, match=r"turn\.json") as caught:
            steps.decide(10**6, DRIFT)
    assert "of 1000000 curated teacher traces" in str(caught.value)
    assert set(open_steps(config).turn.found) == {"1/6 drill"}


def test_a_leg_counts_what_its_own_asking_sent(config):
    """What an earlier try sent to the same release before it failed is not of the leg."""
    records = read_records(config).filter(
        pl.col("selection_mode").ne_missing("shadow"), outcome="answered"
    )
    times = records["asked_at"].sort()
    middle, last = times[len(times) // 2], times[-1]
    release = records["release_id"][0]
    asking = Asking(release_id=release, began_at=middle.isoformat(), ended_at=last.isoformat())
    own = records.filter(pl.col("asked_at") >= middle)
    leg = measure_leg(Home(config.home), asking)
    assert leg.ask_count == own.height < records.height
    assert leg.cost_usd == pytest.approx(own["cost_usd"].sum())
    assert (
        measure_leg(Home(config.home), Asking(**vars(asking) | {"release_id": "r"})).ask_count == 0
    )


def test_accepted_answers_are_counted_over_every_try_of_the_turn_and_no_other(config):
    home, began = Home(config.home), datetime.now(UTC)
    rows = choose_rows(config, "teacher")
    for row, reviewer, minutes in (
        (rows[0], RUBRIC, -1),  # of the turn before
        (rows[1], RUBRIC, 1),
        (rows[2], RUBRIC, 5),  # of a second try
        (rows[3], BOT, 1),
    ):
        accepted = decide_trace(
            row, verdict="accepted", reason_code="weak_spot", reviewer=reviewer, shown_at=None,
            decided_at=began + timedelta(minutes=minutes),
        )  # fmt: skip
        open_decisions(home).append(accepted)
    assert count_accepted(home, since=began) == 2
