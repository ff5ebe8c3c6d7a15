"""The sensor `enough_teacher_traces`: trains again once curation has admitted enough.

Belongs here: turning a decision into what Dagster understands. Does not belong here: the decision
(`deciding`), its facts (`facts`).
"""

import dagster as dg

from orchestration.config import Config
from orchestration.jobs import RETRAIN_STUDENT
from orchestration.lost_runs import end_lost_runs
from orchestration.observing import report_sources
from orchestration.sensors.deciding import Decision, GiveUp, Launch, Wait, decide_retraining
from orchestration.sensors.facts import read_policy, read_retraining_facts
from resources.progress import LogProgress
from serving.errors import UnderstudyError

INTERVAL_SECONDS = 60
PARTITIONS = "recipes"


class AttemptsExhaustedError(UnderstudyError):
    """A run has failed as often as it may: the tick fails, so that the sensor shows red."""


def build_retraining_sensor(
    config: Config,
    *,
    job_name: str = RETRAIN_STUDENT,
    interval_seconds: int = INTERVAL_SECONDS,
) -> dg.SensorDefinition:
    """Return the sensor over one configuration's home; a code location has at most one."""
    recipe = config.default_recipe

    @dg.sensor(
        name="enough_teacher_traces",
        job_name=job_name,
        minimum_interval_seconds=interval_seconds,
        default_status=choose_status(config),
        description="Enough curated questions that only the teacher could answer: train again.",
    )
    def enough_teacher_traces(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        end_lost_runs(context.instance)
        facts = read_retraining_facts(config, context.instance, recipe)
        decision = decide_retraining(facts, read_policy(config))
        if isinstance(decision, Launch):
            prepare_run(config, context)
        return answer_tick(decision, job_name=job_name)

    return enough_teacher_traces


def choose_status(config: Config) -> dg.DefaultSensorStatus:
    """Return whether a sensor that trains starts by itself: a person turns it on otherwise."""
    is_automatic = config.loop.retrain == "automatic"
    return dg.DefaultSensorStatus.RUNNING if is_automatic else dg.DefaultSensorStatus.STOPPED


def prepare_run(config: Config, context: dg.SensorEvaluationContext) -> None:
    """Register the recipe and report the inputs, as every run needs it."""
    context.instance.add_dynamic_partitions(PARTITIONS, [config.default_recipe])
    report_sources(config, context.instance, LogProgress(context.log), config.default_recipe)


def answer_tick(decision: Decision, *, job_name: str) -> dg.SensorResult:
    """Return what a tick says.

    Raises:
        AttemptsExhaustedError: the attempts are used up.
    """
    if isinstance(decision, Wait):
        return dg.SensorResult(skip_reason=decision.reason)
    if isinstance(decision, GiveUp):
        raise AttemptsExhaustedError(
            f"asking for another run of {job_name}",
            expected="an attempt left",
            found=decision.reason,
            next_step="read the failed runs in `understudy ui`; a change of the recipe, or another "
            "batch of curated questions, opens new attempts",
        )
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                run_key=decision.run_key,
                job_name=job_name,
                partition_key=decision.recipe,
                tags=dict(decision.tags),
            )
        ]
    )
