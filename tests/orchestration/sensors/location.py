"""A code location with the real sensor and a job that takes no time: what the daemon tests load."""

import dagster as dg

from assets.partitions import RECIPES
from orchestration.config import load_config
from orchestration.jobs import RETRAIN_STUDENT
from orchestration.sensors.retraining import build_retraining_sensor


@dg.op
def train(context: dg.OpExecutionContext) -> None:
    """Leave a line per run."""
    with (load_config().home / "trained.txt").open("a", encoding="utf-8") as file:
        file.write(f"{context.run_id}\n")


@dg.job(name=RETRAIN_STUDENT, partitions_def=RECIPES, executor_def=dg.in_process_executor)
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
