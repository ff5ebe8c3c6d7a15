"""Which assets the jobs of the loop make, and that a sensor can ask for them by recipe."""

import logging

import dagster as dg
import pytest

from assets import keys
from assets.partitions import RECIPES
from orchestration.config import load_config
from orchestration.definitions import build_defs
from orchestration.jobs import (
    MEASURE_PARITY,
    RETRAIN_STUDENT,
    WHOLE_CHAIN,
    build_jobs,
    build_nightly_job,
    tell_failure,
)
from orchestration.lost_runs import MACHINE_TAG, name_machine
from orchestration.schedules import build_sensors


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    definitions = build_defs(load_config({"UNDERSTUDY_HOME": str(home)}))
    names = (WHOLE_CHAIN, RETRAIN_STUDENT, MEASURE_PARITY)
    return {name: definitions.resolve_job_def(name) for name in names}


def made_by(job) -> set:
    return set(job.asset_layer.selected_asset_keys)


def test_every_job_that_a_sensor_asks_for_takes_a_recipe(jobs):
    assert [job.partitions_def for job in jobs.values()] == [RECIPES] * len(jobs)


def test_no_job_makes_what_is_made_on_demand(jobs):
    assert [name for name, job in jobs.items() if made_by(job) & keys.ON_DEMAND] == []


def test_training_again_goes_from_the_seeds_to_a_release_and_leaves_the_eval_set_alone(jobs):
    made = made_by(jobs[RETRAIN_STUDENT])
    assert {keys.SEED_QUESTIONS, keys.STUDENT_ADAPTER, keys.RELEASE_BUNDLE} <= made
    assert not {keys.GOLDEN_CASES, keys.VECTOR_INDEX, keys.EVAL_EMBEDDINGS} & made
    assert {key.path[0] for key in made_by(jobs[MEASURE_PARITY])} == {"parity"}


def test_every_job_says_on_which_machine_it_runs(jobs):
    declared = [*build_jobs(), build_nightly_job()]
    assert [job.tags[MACHINE_TAG] for job in declared] == [name_machine()] * len(declared)
    assert {job.tags[MACHINE_TAG] for job in jobs.values()} == {name_machine()}
    sensors = build_sensors(load_config({}))
    (nightly,) = [s for s in sensors if isinstance(s, dg.AutomationConditionSensorDefinition)]
    assert nightly.run_tags[MACHINE_TAG] == name_machine()


def test_no_limit_of_time_ends_what_trains(jobs):
    unlimited = {name for name, job in jobs.items() if job.tags.get("dagster/max_runtime") == "0"}
    assert unlimited == {WHOLE_CHAIN, RETRAIN_STUDENT} & set(jobs)
    assert RETRAIN_STUDENT in unlimited


def test_a_step_that_fails_is_told_in_one_line_and_one_that_does_not_is_silent(caplog):
    @dg.asset
    def sound() -> None: ...

    @dg.asset(deps=[sound])
    def broken() -> None:
        raise ValueError("no kiln")

    job = dg.define_asset_job("firing", selection="*", hooks={tell_failure})
    made = dg.Definitions(assets=[sound, broken], jobs=[job]).resolve_job_def("firing")
    with caplog.at_level(logging.ERROR, logger="understudy.jobs"), dg.instance_for_test() as here:
        result = made.execute_in_process(instance=here, raise_on_error=False)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "understudy.jobs"]
    assert line.startswith(f"run {result.run_id} of firing: step broken failed: ")
    assert "no kiln" in line


def test_the_jobs_of_the_loop_tell_their_failures(jobs):
    for job in jobs.values():
        assert {hook.name for hook in job.hook_defs} == {"tell_failure"}
