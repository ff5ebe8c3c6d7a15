"""Which assets the jobs of the loop make, and that a sensor can ask for them by recipe."""

import pytest

from assets import keys
from assets.partitions import RECIPES
from orchestration.config import load_config
from orchestration.definitions import build_defs
from orchestration.jobs import MEASURE_PARITY, RETRAIN_STUDENT, WHOLE_CHAIN


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
