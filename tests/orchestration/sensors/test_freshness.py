"""One tick of each sensor of freshness over Dagster's storage: what it asks for, and why not."""

import hashlib
from contextlib import contextmanager
from datetime import UTC, datetime

import dagster as dg
import pytest

import orchestration.sensors.freshness as freshness
from assets import keys, tables
from orchestration.config import read_config
from orchestration.jobs import MEASURE_PARITY, NIGHTLY_TRACES, WHOLE_CHAIN
from orchestration.sensors.deciding import ATTEMPT_TAG, PURPOSE_TAG
from orchestration.sensors.freshness import (
    build_alarm_sensor,
    build_golden_sensor,
    build_report_sensor,
)
from resources.input_files import GoldenFile
from serving.home import Home
from tests.orchestration.sensors.location import retrain_student
from tests.product import write_product


@pytest.fixture
def config(tmp_path):
    return read_config(write_product(tmp_path))


@pytest.fixture
def instance():
    with dg.instance_for_test() as made:
        made.add_dynamic_partitions("recipes", ["tiny"])
        yield made


def measure(config, instance) -> None:
    """Report what the chain does: the golden cases were read, then parity was measured on them."""
    version = GoldenFile(config.eval.golden).fingerprint()
    tag = f"dagster/input_data_version/{keys.GOLDEN_FILE.to_user_string()}"
    instance.report_runless_asset_event(
        dg.AssetMaterialization(asset_key=keys.GOLDEN_CASES, tags={tag: version})
    )
    instance.report_runless_asset_event(
        dg.AssetMaterialization(asset_key=keys.PARITY_REPORT, partition="tiny")
    )


def change_golden(config, text: str) -> None:
    """Replace the golden set by one whose first note differs, with its lock."""
    path = config.eval.golden
    first, rest = path.read_text(encoding="utf-8").split("\n", 1)
    body = first[: first.rindex("}")].split(', "note"')[0]
    path.write_text(f'{body}, "note": "{text}"}}\n{rest}', encoding="utf-8")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".lock").write_text(f"{digest}  {path.name}\n", encoding="utf-8")


def tick(sensor, instance) -> dg.SensorResult:
    with dg.build_sensor_context(instance=instance) as context:
        return sensor(context)


def record_success(instance, request: dg.RunRequest) -> None:
    instance.create_run_for_job(
        job_def=retrain_student, tags=request.tags, status=dg.DagsterRunStatus.SUCCESS
    )


def test_a_replaced_golden_set_asks_for_the_whole_chain_once_and_again_when_it_comes_back(
    config, instance
):
    sensor = build_golden_sensor(config)
    assert "first parity report" in tick(sensor, instance).skip_reason.skip_message
    measure(config, instance)
    assert "another golden set" in tick(sensor, instance).skip_reason.skip_message
    for text in ("B", "A", "B"):
        change_golden(config, text)
        (request,) = tick(sensor, instance).run_requests
        assert (request.job_name, request.partition_key) == (WHOLE_CHAIN, "tiny")
        assert (request.tags[PURPOSE_TAG], request.tags[ATTEMPT_TAG]) == ("new_golden", "1")
        record_success(instance, request)
        assert "has succeeded" in tick(sensor, instance).skip_reason.skip_message
        measure(config, instance)
        assert "another golden set" in tick(sensor, instance).skip_reason.skip_message


def test_an_aged_report_asks_for_a_measurement(config, instance):
    measure(config, instance)
    waiting = tick(build_report_sensor(config), instance).skip_reason.skip_message
    assert waiting.endswith("when the report has aged")
    loop = config.loop.model_copy(update={"maximum_eval_age_days": 0})
    sensor = build_report_sensor(config.model_copy(update={"loop": loop}))
    (request,) = tick(sensor, instance).run_requests
    assert (request.job_name, request.partition_key) == (MEASURE_PARITY, "tiny")
    assert request.tags[PURPOSE_TAG] == "aged_report"
    record_success(instance, request)
    assert "has succeeded" in tick(sensor, instance).skip_reason.skip_message


def write_alarms(config, *named: tuple[str, str]) -> None:
    path = Home(config.home).table("monitoring/alarms")
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = tables.BY_KEY["monitoring", "alarms"]
    rows = [dict.fromkeys(schema) | {"monitor": m, "status": s} for m, s in named]
    tables.BY_KEY["monitoring", "alarms"].to_frame().vstack(
        type(schema.to_frame())(rows, schema=schema)
    ).write_parquet(path)


@contextmanager
def at(moment: datetime):
    class Simulated(datetime):
        @classmethod
        def now(cls, tz=None):
            return moment.astimezone(tz)

    real, freshness.datetime = freshness.datetime, Simulated
    try:
        yield
    finally:
        freshness.datetime = real


def test_alarms_bring_the_traces_up_to_date_once_a_day_and_set(config, instance):
    sensor = build_alarm_sensor(config)
    assert sensor.job_name == NIGHTLY_TRACES
    assert "no monitor alarms" in tick(sensor, instance).skip_reason.skip_message
    write_alarms(config, ("traffic_drift", "ok"), ("cold_start_report", "inconclusive"))
    assert "no monitor alarms" in tick(sensor, instance).skip_reason.skip_message
    monday, tuesday = (datetime(2026, 3, day, 12, tzinfo=UTC) for day in (2, 3))
    seen = []
    for moment, names in (
        (monday, ("traffic_drift",)),
        (monday, ("traffic_drift",)),
        (monday, ("traffic_drift", "embedder_probe")),
        (tuesday, ("traffic_drift",)),
    ):
        write_alarms(config, *((name, "alarm") for name in names))
        with at(moment):
            (request,) = tick(sensor, instance).run_requests
        seen.append(request.run_key)
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3
