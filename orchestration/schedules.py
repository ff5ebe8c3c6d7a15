"""Times and observations: everything that starts a run without a person.

The nights and weeks themselves are conditions of the assets (`assets/automation`); the sensor here
evaluates them. Belongs here: the list of what a daemon evaluates. Does not belong here: decisions
(`sensors/deciding`).
"""

import dagster as dg

from orchestration.config import Config
from orchestration.dreaming import build_dream_schedule
from orchestration.lost_runs import MACHINE_TAG, name_machine
from orchestration.sensors.freshness import (
    build_alarm_sensor,
    build_golden_sensor,
    build_report_sensor,
)
from orchestration.sensors.keep_warm import build_warmth_sensor
from orchestration.sensors.retraining import build_retraining_sensor


def build_sensors(config: Config) -> list[dg.SensorDefinition]:
    """Return the sensors of one configuration. They run as soon as a daemon does, as in the UI.

    Except those that train: `loop.retrain` decides, or a person who turns them on there.
    """
    return [
        build_retraining_sensor(config),
        build_golden_sensor(config),
        build_report_sensor(config),
        build_alarm_sensor(config),
        build_warmth_sensor(config),
        dg.AutomationConditionSensorDefinition(
            "every_night_and_week",
            target=dg.AssetSelection.all(),
            run_tags={MACHINE_TAG: name_machine()},
            default_status=dg.DefaultSensorStatus.RUNNING,
        ),
    ]


def build_schedules(config: Config) -> list[dg.ScheduleDefinition]:
    """Return the schedules of one configuration."""
    return [build_dream_schedule(config)]
