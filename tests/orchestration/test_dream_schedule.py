"""When questions are written by night: in one phase, on its evidence, once."""

from datetime import UTC, datetime

import dagster as dg
import pytest

from orchestration.config import load_config, read_config
from orchestration.dreaming import build_dream_schedule, decide_dreaming, name_night
from orchestration.phases import ORDER, PhaseFacts, assess_phases
from tests.product import write_product

EARNED = PhaseFacts(has_student=True, verdict="PROMOTE", is_monitored=True, alarms=(), ask_count=9)


@pytest.mark.parametrize("phase", [phase for phase in ORDER if phase != "dreamer"])
def test_nothing_is_written_in_any_other_phase_whatever_is_earned(phase):
    waiting = decide_dreaming(phase, assess_phases(EARNED))
    assert waiting is not None
    assert f"{phase} is released" in waiting.reason


def test_the_phase_writes_once_its_evidence_is_there_and_says_what_lacks_before():
    assert decide_dreaming("dreamer", assess_phases(EARNED)) is None
    facts = PhaseFacts(
        has_student=True, verdict="HOLD", is_monitored=True, alarms=("traffic_drift",), ask_count=9
    )
    waiting = decide_dreaming("dreamer", assess_phases(facts))
    assert waiting is not None
    assert "the verdict PROMOTE" in waiting.reason
    assert "traffic_drift" in waiting.reason


def test_the_hours_are_the_configured_ones_and_a_night_has_one_name():
    config = load_config({})
    loop = config.loop.model_copy(update={"dream_hours": (23, 2, 2)})
    schedule = build_dream_schedule(config.model_copy(update={"loop": loop}))
    assert schedule.cron_schedule == "30 2,23 * * *"
    night = [datetime(2026, 3, 3, hour, 30, tzinfo=UTC) for hour in (1, 4)]
    assert len({name_night(at) for at in night}) == 1


def test_a_tick_over_a_home_without_a_release_says_what_it_waits_for(tmp_path):
    schedule = build_dream_schedule(read_config(write_product(tmp_path)))
    with (
        dg.instance_for_test() as instance,
        dg.build_schedule_context(
            instance=instance, scheduled_execution_time=datetime(2026, 3, 3, 1, 30, tzinfo=UTC)
        ) as context,
    ):
        told = schedule.evaluate_tick(context)
    assert told.run_requests == []
    assert told.skip_message == "waits for a first release: `understudy run`"
