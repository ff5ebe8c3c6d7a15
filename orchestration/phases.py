"""What each phase has to have been earned by, and what is missing for the next one.

Belongs here: the evidence. Does not belong here: what a phase does to a request
(`serving/pipeline/router`), choosing one: that is a line of the configuration, and a person's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from serving.pipeline.router import Phase

ORDER: tuple[Phase, ...] = ("hitchhiker", "imposter", "switch", "dreamer")


@dataclass(frozen=True, kw_only=True)
class PhaseFacts:
    """What a home can show."""

    has_student: bool
    """The current release ships one."""
    verdict: str | None
    """Of the gate of the current release."""
    is_monitored: bool
    alarms: Sequence[str]
    ask_count: int
    """Production asks in the window of the status."""


@dataclass(frozen=True, kw_only=True)
class PhaseStep:
    """A phase, and what it still lacks; nothing: it may be configured."""

    phase: Phase
    missing: tuple[str, ...]


def assess_phases(facts: PhaseFacts) -> tuple[PhaseStep, ...]:
    """Return every phase in order; what one lacks, the later ones lack too.

    `hitchhiker` needs nothing. `imposter` needs a student that can answer in shadow. `switch` needs
    the gate's PROMOTE. `dreamer` writes questions for what production shows to be weak, so where
    anybody asked it needs monitors of which none alarms. Before that the validation split shows it.
    """
    needs: dict[Phase, tuple[tuple[bool, str], ...]] = {
        "hitchhiker": (),
        "imposter": ((facts.has_student, "a release with a student"),),
        "switch": ((facts.verdict == "PROMOTE", "the verdict PROMOTE"),),
        "dreamer": (
            (facts.is_monitored or not facts.ask_count, "monitors that have run"),
            (not facts.alarms, f"an end of the alarms ({', '.join(facts.alarms)})"),
        ),
    }
    steps: list[PhaseStep] = []
    missing: tuple[str, ...] = ()
    for phase in ORDER:
        missing += tuple(text for is_met, text in needs[phase] if not is_met)
        steps.append(PhaseStep(phase=phase, missing=missing))
    return tuple(steps)
