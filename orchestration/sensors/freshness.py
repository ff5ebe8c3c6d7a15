"""Sensors of freshness: a verdict that has aged, and monitors that alarm.

Belongs here: turning decisions into what Dagster understands. Does not belong here: how old is too
old (`deciding`), what a monitor computes (`assets/monitoring`).
"""

from datetime import UTC, datetime, timedelta

import dagster as dg

from orchestration.config import Config
from orchestration.jobs import MEASURE_PARITY, NIGHTLY_TRACES, WHOLE_CHAIN
from orchestration.lost_runs import end_lost_runs
from orchestration.sensors.deciding import (
    Decision,
    Launch,
    decide_aged_report,
    decide_new_golden,
)
from orchestration.sensors.facts import find_alarms, read_eval_facts
from orchestration.sensors.retraining import answer_tick, choose_status, prepare_run
from serving.hashing import content_hash
from serving.home import Home

INTERVAL_SECONDS = 600


def build_golden_sensor(config: Config) -> dg.SensorDefinition:
    """Return the sensor that runs the chain again after the golden set was replaced."""

    @dg.sensor(
        name="golden_set_was_replaced",
        job_name=WHOLE_CHAIN,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=choose_status(config),
        description="The verdict stands on another golden set than today's: run the whole chain.",
    )
    def golden_set_was_replaced(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        end_lost_runs(context.instance)
        facts = read_eval_facts(config, context.instance, config.default_recipe)
        decision = decide_new_golden(facts, maximum_attempts=config.loop.maximum_attempts)
        _prepare(decision, config, context)
        return answer_tick(decision, job_name=WHOLE_CHAIN)

    return golden_set_was_replaced


def build_report_sensor(config: Config) -> dg.SensorDefinition:
    """Return the sensor that measures parity again when the report has aged."""

    @dg.sensor(
        name="parity_report_has_aged",
        job_name=MEASURE_PARITY,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="The parity report is too old to go by: measure again.",
    )
    def parity_report_has_aged(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        end_lost_runs(context.instance)
        decision = decide_aged_report(
            read_eval_facts(config, context.instance, config.default_recipe),
            now=datetime.now(UTC),
            maximum_age=timedelta(days=config.loop.maximum_eval_age_days),
            maximum_attempts=config.loop.maximum_attempts,
        )
        _prepare(decision, config, context)
        return answer_tick(decision, job_name=MEASURE_PARITY)

    return parity_report_has_aged


def build_alarm_sensor(config: Config) -> dg.SensorDefinition:
    """Return the sensor that brings the traces up to date when a monitor begins to alarm.

    One run per set of alarming monitors and day: what is behind an alarm is then in the marts and
    in the queue of candidates when somebody looks. Drift also lowers the number of curated
    questions that `enough_teacher_traces` waits for.
    """

    @dg.sensor(
        name="a_monitor_alarms",
        job_name=NIGHTLY_TRACES,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="A monitor alarms: the marts and the candidates are brought up to date.",
    )
    def a_monitor_alarms(context: dg.SensorEvaluationContext) -> dg.SensorResult:  # noqa: ARG001
        names = sorted(set(find_alarms(Home(config.home))["monitor"].to_list()))
        if not names:
            return dg.SensorResult(skip_reason="waits for an alarm: no monitor alarms")
        today = datetime.now(UTC).date().isoformat()
        return dg.SensorResult(
            run_requests=[dg.RunRequest(run_key=f"{today}:{content_hash(names, digits=16)}")]
        )

    return a_monitor_alarms


def _prepare(decision: Decision, config: Config, context: dg.SensorEvaluationContext) -> None:
    if isinstance(decision, Launch):
        prepare_run(config, context)
