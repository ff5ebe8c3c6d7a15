"""The agreement gate: pairs of this very pipeline in the traces of production, and no others."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from assets import tables
from assets.monitoring.traffic import add_columns
from assets.releases.gates import GatePolicy
from assets.releases.shadow import (
    ShadowedPipeline,
    check_shadow_agreement,
    leave_out_others,
    read_pairs,
)
from assets.traces.hours import find_folder, list_hours, name_hour, scan_hours
from serving.home import Home

PIPELINE = ShadowedPipeline(
    students=("compact@0123456789ab",),
    teacher="extractive-v1",
    index_fingerprint="index-1",
    prompt_version="prompt-1",
)
UNTIL = datetime(2026, 11, 20, tzinfo=UTC)
DAYS = 28


def write_traces(home: Home, rows: list[dict[str, Any]]) -> None:
    """Store traces as the compaction does: a file for each hour."""
    frame = pl.DataFrame(rows, schema=tables.STORED_TRACES)
    for (hour,), part in frame.group_by(pl.col("asked_at").dt.truncate("1h")):
        path = name_hour(find_folder(home), hour)
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_parquet(path)


def answer_twice(
    number: int,
    *,
    agrees: bool = True,
    age: timedelta = timedelta(),
    student: str = PIPELINE.student,
    teacher: str = PIPELINE.teacher,
    env: str = "prod",
    shadow_role: str = "student",
    asked: tuple[str, ...] = (),
    **of_both: str,
) -> list[dict[str, Any]]:
    """Return a question of the teacher's and its shadow by the student, as two traces."""
    both = {
        "env": env,
        "outcome": "answered",
        "index_fingerprint": PIPELINE.index_fingerprint,
        "prompt_version": PIPELINE.prompt_version,
        "citations": ["c1"],
        "refused": False,
        "answer": "It does.",
    } | of_both
    ask = {
        "trace_id": f"t{number}",
        "conversation_id": f"c{number}",
        "asked_at": UNTIL - timedelta(hours=1 + number % 160) - age,
        "selection_mode": "rule",
        "served_by": "teacher",
        "model": teacher,
    }
    shadow = {
        "trace_id": f"s{number}",
        "parent_trace_id": f"t{number}",
        "asked_at": ask["asked_at"],
        "selection_mode": "shadow",
        "served_by": shadow_role,
        "model": student,
        "attempts": [
            {"role": "student", "model": one, "verdict": "valid" if agrees else "invalid"}
            for one in asked or (student,)
        ],
    }
    return [both | ask, both | shadow]


def serve(home: Home, hits: int, n: int, **more: Any) -> pl.DataFrame:
    rows = [row for i in range(n) for row in answer_twice(i, agrees=i < hits, **more)]
    write_traces(home, rows)
    return read_pairs(home, days=DAYS, until=UNTIL)


def check(pairs: pl.DataFrame):
    return check_shadow_agreement(pairs, PIPELINE, GatePolicy(shadow_days=DAYS))


@pytest.mark.parametrize(("hits", "outcome"), [(590, "PASS"), (500, "FAIL"), (575, "INCONCLUSIVE")])
def test_the_lower_bound_of_this_student_is_gated(tmp_path, hits, outcome):
    gate = check(serve(Home(tmp_path), hits, 600))
    assert (gate.outcome, gate.is_gating, gate.n) == (outcome, True, 600)
    assert gate.number is not None
    assert (gate.number >= GatePolicy.minimum_agreement_ratio) == (outcome == "PASS")
    assert "until 2026-11-19" in gate.detail


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"student": "compact@ffffffffffff"}, "another student"),
        ({"teacher": "extractive-v2"}, "another teacher"),
        ({"index_fingerprint": "index-2"}, "another index"),
        ({"prompt_version": "prompt-2"}, "another prompt"),
    ],
)
def test_pairs_of_another_pipeline_are_counted_and_left_out(tmp_path, change, reason):
    pairs = serve(Home(tmp_path), 600, 600, **change)
    own, left_out = leave_out_others(pairs, PIPELINE)
    assert (own.height, left_out) == (0, {reason: 600})
    gate = check(pairs)
    assert (gate.outcome, gate.is_gating, gate.number) == ("INCONCLUSIVE", False, None)
    assert f"left out: 600 of {reason}" in gate.detail


FIRST, THEN = "tiny@ba9876543210", PIPELINE.student
TWO = replace(PIPELINE, students=(FIRST, THEN))


@pytest.mark.parametrize(
    ("asked", "pipeline", "is_own"),
    [
        ((FIRST,), TWO, True), ((FIRST, THEN), TWO, True), ((THEN,), TWO, False),
        ((THEN, FIRST), TWO, False), ((FIRST,), PIPELINE, False), ((FIRST, THEN), PIPELINE, False),
        ((THEN,), PIPELINE, True),
    ],
)  # fmt: skip
def test_a_pair_is_of_students_asked_in_turn_if_the_first_of_them_were_asked(
    tmp_path, asked, pipeline, is_own
):
    pairs = serve(Home(tmp_path), 600, 600, student=asked[-1], asked=asked)
    own, left_out = leave_out_others(pairs, pipeline)
    assert (own.height, left_out) == ((600, {}) if is_own else (0, {"another student": 600}))
    gate = check_shadow_agreement(pairs, pipeline, GatePolicy(shadow_days=DAYS))
    assert (gate.outcome == "PASS") == is_own
    assert f"pairs of {pipeline.student}" in gate.detail


def test_a_release_between_an_ask_and_its_shadow_sets_the_pair_apart(tmp_path):
    ask, shadow = answer_twice(1)
    write_traces(Home(tmp_path), [ask, shadow | {"index_fingerprint": "index-2"}])
    own, left_out = leave_out_others(read_pairs(Home(tmp_path), days=DAYS, until=UNTIL), PIPELINE)
    assert (own.height, left_out) == (0, {"another index": 1})


@pytest.mark.parametrize(
    "change",
    [{"age": timedelta(days=DAYS)}, {"env": "drill"}, {"shadow_role": "teacher"}],
    ids=["too old", "no production", "the same role twice"],
)
def test_what_is_no_pair_of_these_weeks_of_production_is_not_read(tmp_path, change):
    pairs = serve(Home(tmp_path), 600, 600, **change)
    assert pairs.is_empty()
    assert "no shadow run in the last 28 days" in check(pairs).detail


def test_too_few_pairs_or_hours_leave_the_gate_open_and_not_counted(tmp_path):
    few = serve(Home(tmp_path / "few"), 90, 90)
    rows = [row | {"asked_at": UNTIL - timedelta(hours=1)} for i in range(600)
            for row in answer_twice(i)]  # fmt: skip
    write_traces(Home(tmp_path / "burst"), rows)
    burst = read_pairs(Home(tmp_path / "burst"), days=DAYS, until=UNTIL)
    for pairs, told in ((few, "90 pairs of compact@"), (burst, "in 1 different hours")):
        gate = check(pairs)
        assert (gate.outcome, gate.is_gating, gate.number) == ("INCONCLUSIVE", False, None)
        assert told in gate.detail


def test_who_asks_again_is_counted_once(tmp_path):
    rows = [row | {"conversation_id": "c"} for i in range(600) for row in answer_twice(i)]
    write_traces(Home(tmp_path), rows)
    assert check(read_pairs(Home(tmp_path), days=DAYS, until=UNTIL)).n == 1


def test_conversations_of_two_keys_that_chose_one_id_are_two(tmp_path):
    rows = [row | {"conversation_id": "c", "key_id": f"k{i % 2}"} for i in range(600)
            for row in answer_twice(i)]  # fmt: skip
    write_traces(Home(tmp_path), rows)
    pairs = read_pairs(Home(tmp_path), days=DAYS, until=UNTIL)
    assert check(pairs).n == 2
    seen = add_columns(scan_hours(list_hours(find_folder(Home(tmp_path))))).collect()
    assert seen["conversation"].n_unique() == 2


def test_a_home_without_traces_has_no_pairs(tmp_path):
    assert read_pairs(Home(tmp_path), days=DAYS).is_empty()


def test_the_declared_limits_of_agreement_decide(tmp_path):
    pairs = serve(Home(tmp_path), 95, 100)
    policies = [
        GatePolicy(minimum_agreement_ratio=ratio, minimum_agreement_pairs=count)
        for ratio, count in ((0.95, 100), (0.8, 100), (0.95, 101))
    ]
    gates = [check_shadow_agreement(pairs, PIPELINE, policy) for policy in policies]
    assert [gate.outcome for gate in gates] == ["INCONCLUSIVE", "PASS", "INCONCLUSIVE"]
    assert [gate.limit for gate in gates] == [0.95, 0.8, 0.95]
    assert "101 pairs in 24 hours are needed" in gates[2].detail
