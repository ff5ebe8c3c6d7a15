"""What each phase lacks, from what a home can show."""

from dataclasses import replace

from orchestration.phases import ORDER, PhaseFacts, assess_phases

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
