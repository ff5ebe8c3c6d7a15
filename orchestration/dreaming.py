"""When questions are written by night: the schedule of the phase `dreamer`.

Belongs here: the decision and the times. Does not belong here: what is written, and within which
limits (`assets/paraphrases/dreaming`).
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import dagster as dg

from orchestration.config import Config
from orchestration.jobs import DREAM
from orchestration.observing import report_sources
from orchestration.phases import PhaseStep
from orchestration.sensors.deciding import Wait
from orchestration.status import read_phase
from resources.progress import LogProgress
from serving.home import Home

DREAMER = "dreamer"


def build_dream_schedule(config: Config) -> dg.ScheduleDefinition:
    """Return the schedule: each off-peak hour asks, and one run a night is the answer."""
    hours = ",".join(str(hour) for hour in sorted(set(config.loop.dream_hours)))

    @dg.schedule(
        name="off_peak_dreams",
        job_name=DREAM,
        cron_schedule=f"30 {hours} * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="In the phase dreamer: write questions around what the student cannot do.",
    )
    def off_peak_dreams(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        now = context.scheduled_execution_time.astimezone(UTC)
        phase, steps = read_phase(Home(config.home), now=now)
        waiting = decide_dreaming(phase, steps)
        if waiting is not None:
            return dg.SkipReason(waiting.reason)
        progress = LogProgress(context.log)
        report_sources(config, context.instance, progress, config.default_recipe)
        return dg.RunRequest(run_key=name_night(now))

    return off_peak_dreams


def decide_dreaming(phase: str | None, steps: Sequence[PhaseStep]) -> Wait | None:
    """Return what the writing waits for; None: it may begin."""
    if phase is None:
        return Wait(reason="waits for a first release: `understudy run`")
    if phase != DREAMER:
        return Wait(reason=f"waits for the phase {DREAMER} (serving.phase): {phase} is released")
    lacking = next(step.missing for step in steps if step.phase == DREAMER)
    if lacking:
        return Wait(reason=f"waits for what the phase {DREAMER} lacks: {', '.join(lacking)}")
    return None


def name_night(now: datetime) -> str:
    """Return the identity of a night: a run is asked for once under it."""
    return f"dream:{now.astimezone(UTC).date().isoformat()}"
