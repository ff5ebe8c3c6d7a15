"""When an asset is made by itself, and how old it may get: sentences, applied once to all specs.

Only what is cheap or must not age is here: traces every night, and the monitors that read them.
Students are not: they are trained again by a sensor that counts what curation admitted, since
nothing that trains may follow from traffic alone. Belongs here: conditions and freshness by stage.
Does not belong here: sensors and jobs (`orchestration`).
"""

from datetime import timedelta
from typing import Any

import dagster as dg

from assets import keys

EVERY_NIGHT = "0 3 * * *"  # UTC: when most products are quiet
EVERY_WEEK = "0 4 * * 1"

NIGHTLY_STAGES = frozenset({"traces", "monitoring"})
WEEKLY_STAGES = frozenset({"parity"})


def made_at(schedule: str) -> dg.AutomationCondition[Any]:
    """Once per tick of the schedule, if it was ever made before and is not being made now.

    A first time belongs to a person: it may cost hours, or money.
    """
    ticked: dg.AutomationCondition[Any] = dg.AutomationCondition.cron_tick_passed(schedule)
    return (
        ticked.since_last_handled()
        & ~dg.AutomationCondition.missing()
        & ~dg.AutomationCondition.in_progress()
    ).with_label(f"made_at({schedule})")


def choose_condition(key: dg.AssetKey) -> dg.AutomationCondition[Any] | None:
    """Return when an asset is made by itself; None: when a person or a sensor asks for it."""
    if key.path[0] in NIGHTLY_STAGES:
        return made_at(EVERY_NIGHT)
    is_weekly = key.path[0] in WEEKLY_STAGES and key not in keys.ON_DEMAND
    return made_at(EVERY_WEEK) if is_weekly else None


def choose_freshness(key: dg.AssetKey) -> dg.FreshnessPolicy | None:
    """Return how old an asset may get before the UI says so."""
    windows = {
        **dict.fromkeys(NIGHTLY_STAGES, timedelta(hours=36)),
        **dict.fromkeys(WEEKLY_STAGES, timedelta(days=9)),
    }
    window = windows.get(key.path[0]) if choose_condition(key) else None
    return dg.FreshnessPolicy.time_window(fail_window=window) if window else None
