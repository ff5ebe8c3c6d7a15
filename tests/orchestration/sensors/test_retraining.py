"""The retraining sensor over a curated home: what it counts, what it asks for, when it gives up."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import polars as pl
import pytest

from orchestration.sensors.deciding import ATTEMPT_TAG, DATASET_TAG, RECIPE_TAG
from orchestration.sensors.facts import find_drifting, read_retraining_facts
from orchestration.sensors.retraining import (
    AttemptsExhaustedError,
    build_retraining_sensor,
)
from serving.home import Home
from tests.orchestration.sensors.curated import (
    accept,
    choose_rows,
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
