"""A code location with the real sensor and a job that lasts as long as a test says it does."""

import time

import dagster as dg

from assets.partitions import RECIPES
from orchestration.config import load_config
from orchestration.jobs import RETRAIN_STUDENT
from orchestration.lost_runs import MACHINE_TAG, name_machine
from orchestration.sensors.retraining import build_retraining_sensor


@dg.op
def train(context: dg.OpExecutionContext) -> None:
    """Leave a line per run, then take as long as the file `endless` is there."""
    home = load_config().home
    with (home / "trained.txt").open("a", encoding="utf-8") as file:
        file.write(f"{context.run_id}\n")
    while (home / "endless").exists():
        time.sleep(0.1)


@dg.job(
    name=RETRAIN_STUDENT,
    partitions_def=RECIPES,
    executor_def=dg.in_process_executor,
    tags={MACHINE_TAG: name_machine()},
)
def retrain_student() -> None:
    """Stand in for the chain."""
    train()


@dg.definitions
def defs() -> dg.Definitions:
    """Return sensor and job over the home that the environment names."""
    return dg.Definitions(
        jobs=[retrain_student],
        sensors=[build_retraining_sensor(load_config(), interval_seconds=1)],
    )
