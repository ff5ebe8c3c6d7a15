"""When questions are written by night: in one phase, on its evidence, once."""

from datetime import UTC, datetime

import dagster as dg
import pytest

from orchestration.config import load_config, read_config
from orchestration.dreaming import build_dream_schedule, decide_dreaming, name_night
from orchestration.jobs import DREAM
from orchestration.phases import ORDER, PhaseFacts, assess_phases
from serving.home import Home
from tests.assets.releases.test_publishing import publish
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


@pytest.fixture
def dreaming(tmp_path):
    """A product whose current, signed release is in the phase dreamer, and nobody asked yet."""
    config = read_config(write_product(tmp_path))
    publish(Home(config.home), "student", phase="dreamer")
    return config


def tick(config, instance, at: datetime):
    schedule = build_dream_schedule(config)
    with dg.build_schedule_context(instance=instance, scheduled_execution_time=at) as context:
        return schedule.evaluate_tick(context)


def test_a_tick_in_the_phase_asks_for_one_run_a_night_and_reports_the_inputs(dreaming):
    ticks = [datetime(2026, 3, day, hour, 30, tzinfo=UTC) for day, hour in ((3, 1), (3, 2), (4, 1))]
    with dg.instance_for_test() as instance:
        requests = [tick(dreaming, instance, at).run_requests for at in ticks]
        seeds = dg.AssetKey(["seeds", "seed_file"])
        assert instance.fetch_observations(seeds, limit=1).records
    assert [len(asked) for asked in requests] == [1, 1, 1]
    first, again, next_night = (asked[0].run_key for asked in requests)
    assert first == again == "dream:2026-03-03"
    assert next_night == "dream:2026-03-04"
    assert build_dream_schedule(dreaming).job_name == DREAM


def test_a_release_of_another_phase_is_named(tmp_path):
    config = read_config(write_product(tmp_path))
    publish(Home(config.home), "student", phase="imposter", gate={"verdict": "HOLD"})
    with dg.instance_for_test() as instance:
        told = tick(config, instance, datetime(2026, 3, 3, 1, 30, tzinfo=UTC))
    assert "imposter is released" in told.skip_message
