"""The retraining sensor over a curated home: what it counts, what it asks for, when it gives up."""

import json
from datetime import UTC, datetime, timedelta

import dagster as dg
import polars as pl
import pytest

from assets import keys
from assets.traces.curating import find_candidates
from assets.traces.deciding import decide_trace, open_decisions
from orchestration.sensors.deciding import ATTEMPT_TAG, DATASET_TAG, RECIPE_TAG
from orchestration.sensors.facts import find_drifting, read_retraining_facts
from orchestration.sensors.freshness import build_report_sensor
from orchestration.sensors.retraining import (
    AttemptsExhaustedError,
    build_retraining_sensor,
)
from serving.home import Home
from tests.orchestration.sensors.curated import (
    BOT,
    accept,
    choose_rows,
    read_records,
    report_student,
    write_curated,
)
from tests.orchestration.sensors.location import retrain_student


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """Ten questions that the teacher answered and two of the student, each from another key."""
    config = write_curated(
        tmp_path_factory.mktemp("loop"), minimum_teacher_traces=8, maximum_attempts=2
    )
    taught = choose_rows(config, "teacher")[:10]
    others = [r for r in choose_rows(config, "student") if r["key_id"] not in
              {row["key_id"] for row in taught}][:2]  # fmt: skip
    assert (len(taught), len(others)) == (10, 2)
    accept(config, [*others, *taught])
    return config, [row["trace_id"] for row in taught]


@pytest.fixture
def instance():
    with dg.instance_for_test() as made:
        report_student(made)
        yield made


def tick(config, instance) -> dg.SensorResult:
    sensor = build_retraining_sensor(config)
    with dg.build_sensor_context(instance=instance) as context:
        return sensor(context)


def record_run(instance, request: dg.RunRequest, status: dg.DagsterRunStatus) -> None:
    instance.create_run_for_job(
        job_def=retrain_student,
        tags=request.tags | {"dagster/run_key": request.run_key}, status=status,
    )  # fmt: skip


def test_what_counts_is_admitted_answered_by_the_teacher_and_not_learnt(curated, instance):
    config, taught = curated
    facts = read_retraining_facts(config, instance, "tiny")
    assert list(facts.teacher_traces) == taught
    assert facts.has_student
    assert not read_retraining_facts(config, instance, "tiny").attempts


def test_a_question_that_is_asked_again_is_no_candidate_and_counts_once(instance, tmp_path):
    config = write_curated(tmp_path, minimum_teacher_traces=8)
    home = Home(config.home)
    records = read_records(config).filter(
        pl.col("served_by") == "teacher", pl.col("trainable"), ~pl.col("is_injection")
    )
    (first, again, *_), *_ = (
        rows.to_dicts() for _, rows in records.group_by("question_hash", maintain_order=True)
        if rows.height > 1
    )  # fmt: skip
    others = [row for row in choose_rows(config, "teacher") if
              row["question_hash"] != first["question_hash"]]  # fmt: skip
    accept(config, [first, *others])
    counted = read_retraining_facts(config, instance, "tiny").teacher_traces
    decisions = open_decisions(home).read()
    assert first["trace_id"] in counted
    waiting = find_candidates(read_records(config).lazy(), decisions)["trace_id"].to_list()
    asked = read_records(config).filter(pl.col("trace_id").is_in(waiting))["question_hash"]
    assert not asked.is_empty()
    assert first["question_hash"] not in asked
    accept(config, [again], at=datetime.now(UTC) + timedelta(hours=2))
    assert read_retraining_facts(config, instance, "tiny").teacher_traces == counted
    seeds = config.seeds.path
    known = {"question_id": "s-known", "text": f"{others[0]['question'].upper()} !"}
    seeds.write_text(seeds.read_text() + json.dumps(known) + "\n")
    assert set(counted) - set(read_retraining_facts(config, instance, "tiny").teacher_traces) == {
        others[0]["trace_id"]
    }


def test_an_answer_that_was_rejected_says_nothing_of_the_next_one(tmp_path):
    config = write_curated(tmp_path)
    records = read_records(config)
    found = find_candidates(records.lazy(), open_decisions(Home(config.home)).read())
    often = found.filter(pl.col("asked_count") > 1)["trace_id"][0]
    row = records.filter(trace_id=often).row(0, named=True)
    for reason, is_candidate in (("wrong_answer", True), ("unclear", False)):
        line = decide_trace(
            row, verdict="rejected", reason_code=reason, reviewer=BOT, shown_at=None,
            decided_at=datetime.now(UTC),
        )  # fmt: skip
        open_decisions(Home(config.home)).append(line)
        left = find_candidates(records.lazy(), open_decisions(Home(config.home)).read())
        assert often not in left["trace_id"]
        assert (row["question"] in left["question"]) == is_candidate


def test_a_run_that_another_sensor_asked_for_is_not_taken_for_an_own_one(curated, instance):
    """The daemon died before it submitted what `parity_report_has_aged` had asked for."""
    config, _ = curated
    report = dg.AssetMaterialization(asset_key=keys.PARITY_REPORT, partition="tiny")
    instance.report_runless_asset_event(report)
    aged = config.model_copy(
        update={"loop": config.loop.model_copy(update={"maximum_eval_age_days": 0})}
    )
    with dg.build_sensor_context(instance=instance) as context:
        (other,) = build_report_sensor(aged)(context).run_requests
    record_run(instance, other, dg.DagsterRunStatus.NOT_STARTED)
    (own,) = tick(config, instance).run_requests
    assert own.tags[DATASET_TAG] != other.tags[DATASET_TAG]
    more = config.loop.model_copy(update={"minimum_teacher_traces": 1000})
    quiet = config.model_copy(update={"loop": more})
    assert tick(quiet, instance).skip_reason.skip_message.startswith("waits for")


def test_decisions_before_the_last_students_seeds_are_learnt(instance, tmp_path):
    config = write_curated(tmp_path, minimum_teacher_traces=8)
    accept(config, choose_rows(config, "teacher"), at=datetime.now(UTC) - timedelta(days=1))
    assert read_retraining_facts(config, instance, "tiny").teacher_traces == ()
    reason = tick(config, instance).skip_reason.skip_message
    assert reason.startswith("waits for 8 more: 0 of 8 curated teacher traces")


def test_without_a_judged_student_it_waits_for_the_first(curated):
    config, _ = curated
    with dg.instance_for_test() as empty:
        assert "first student" in tick(config, empty).skip_reason.skip_message


def test_equal_ticks_ask_for_the_equal_run_and_report_the_inputs(curated, instance):
    config, _ = curated
    first, second = tick(config, instance), tick(config, instance)
    (request,) = first.run_requests
    assert request.run_key == second.run_requests[0].run_key
    assert set(request.tags) >= {DATASET_TAG, RECIPE_TAG, ATTEMPT_TAG}
    assert request.partition_key == "tiny"
    observed = instance.fetch_observations(
        dg.AssetKey(["seeds", "harvested_file"]), limit=1
    ).records
    assert observed


def test_a_failed_attempt_is_followed_by_the_next_until_the_cap_then_the_tick_fails(
    curated, instance
):
    config, _ = curated
    numbers = []
    for _ in range(2):
        (request,) = tick(config, instance).run_requests
        numbers.append(request.tags[ATTEMPT_TAG])
        record_run(instance, request, dg.DagsterRunStatus.FAILURE)
    assert numbers == ["1", "2"]
    with pytest.raises(AttemptsExhaustedError, match="2 of 2 attempts"):
        tick(config, instance)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (dg.DagsterRunStatus.STARTING, "to end"),
        (dg.DagsterRunStatus.STARTED, "to end"),
        (dg.DagsterRunStatus.SUCCESS, "has succeeded"),
    ],
)
def test_a_run_that_is_under_way_or_done_is_not_asked_for_again(
    curated, instance, status, expected
):
    config, _ = curated
    (request,) = tick(config, instance).run_requests
    record_run(instance, request, status)
    assert expected in tick(config, instance).skip_reason.skip_message


def test_only_monitors_of_drift_lower_the_minimum(tmp_path):
    home = Home(tmp_path)
    path = home.table("monitoring/alarms")
    path.parent.mkdir(parents=True)
    pl.DataFrame(
        {
            "monitor": ["traffic_drift", "cold_start_report", "embedding_drift"],
            "status": ["alarm", "alarm", "ok"],
        }
    ).write_parquet(path)
    assert find_drifting(home) == ("traffic_drift",)
    assert find_drifting(Home(tmp_path / "none")) == ()
