"""What each phase lacks, from what a home can show."""

from dataclasses import replace

import pytest

from assets.releases.bundling import choose_phase
from orchestration.phases import ORDER, PhaseFacts, assess_phases
from tests.serving.fakes import make_manifest

EARNED = PhaseFacts(has_student=True, verdict="PROMOTE", is_monitored=True, alarms=(), ask_count=9)


def lacks(**changes) -> dict[str, tuple[str, ...]]:
    steps = assess_phases(replace(EARNED, **changes))
    assert tuple(step.phase for step in steps) == ORDER
    return {step.phase: step.missing for step in steps}


def test_what_is_earned_lacks_nothing_and_the_first_phase_never_does():
    assert set(lacks().values()) == {()}
    assert lacks(has_student=False, verdict=None, ask_count=0)["hitchhiker"] == ()


def test_each_piece_of_evidence_holds_back_its_phase_and_the_later_ones():
    for changes, first in (
        ({"has_student": False}, "imposter"),
        ({"verdict": "HOLD"}, "switch"),
        ({"is_monitored": False}, "dreamer"),
        ({"alarms": ("traffic_drift",)}, "dreamer"),
    ):
        missing = lacks(**changes)
        assert [p for p in ORDER if missing[p]] == list(ORDER[ORDER.index(first) :]), changes
    assert not any(lacks(ask_count=0, is_monitored=False).values())  # there is nothing to monitor
    assert "traffic_drift" in lacks(alarms=("traffic_drift",))["dreamer"][0]


@pytest.mark.parametrize(
    ("configured", "verdict", "published"),
    [
        ("switch", "PROMOTE", "switch"),
        ("imposter", "PROMOTE", "imposter"),
        ("imposter", "HOLD", "imposter"),
        ("imposter", "INCONCLUSIVE", "imposter"),
        ("switch", "HOLD", "hitchhiker"),
        ("dreamer", "INCONCLUSIVE", "hitchhiker"),
    ],
)
def test_what_a_phase_needs_is_what_a_release_in_it_must_show(configured, verdict, published):
    """The publisher, the manifest and the status agree on who may answer."""
    phase = choose_phase(configured, verdict)
    assert phase == published
    assert make_manifest(phase=phase, gate={"verdict": verdict}).phase == phase
    assert lacks(verdict=verdict)[phase] == ()
