"""Decisions of the sensors: facts in, decision out, no clock, no disk, no Dagster.

Every way of not running says what it waits for. Belongs here: the rules. Does not belong here:
reading the facts (`facts`), asking for the run (`retraining`, `freshness`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from serving.hashing import content_hash

DATASET_TAG = "understudy/dataset"
RECIPE_TAG = "understudy/recipe"
ATTEMPT_TAG = "understudy/attempt"
PURPOSE_TAG = "understudy/purpose"
DATASET_DIGITS = 16

RunState = Literal["requested", "active", "succeeded", "failed"]
"""`requested`: recorded and never launched, as when the daemon died between the two."""

Purpose = Literal["retraining", "new_golden", "aged_report"]
"""Which decision asks for a run: an attempt of one is none of another."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One run that was asked for: what for, the how-manieth, and what became of it."""

    purpose: str
    dataset: str
    recipe_fingerprint: str
    number: int
    state: RunState
    run_id: str = ""


@dataclass(frozen=True, kw_only=True)
class LoopPolicy:
    """When a student is trained again."""

    minimum_teacher_traces: int
    minimum_after_drift: int
    maximum_attempts: int


@dataclass(frozen=True, kw_only=True)
class RetrainingFacts:
    """What is known when somebody asks whether to train again."""

    recipe: str
    recipe_fingerprint: str
    has_student: bool
    teacher_traces: Sequence[str]
    """Ids of the admitted traces that the teacher answered, one for each question that no student
    has learnt from, in order of decision."""
    drifting: Sequence[str] = ()
    """Monitors of drift that alarm."""
    attempts: Sequence[Attempt] = ()


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Nothing to do; `reason` says what it waits for."""

    reason: str
    run_id: str = ""
    """The run it waits for, if that is all."""


@dataclass(frozen=True, kw_only=True)
class GiveUp:
    """Tried as often as may be: a person must look."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A run is due. Equal facts give the equal key, and a key is launched once ever."""

    purpose: Purpose
    dataset: str
    recipe: str
    recipe_fingerprint: str
    attempt: int
    reason: str

    @property
    def run_key(self) -> str:
        """The identity of this run among all that are ever asked for."""
        return f"{self.dataset}:{self.recipe_fingerprint}:{self.attempt}"

    @property
    def tags(self) -> Mapping[str, str]:
        """What the run is found again by."""
        return {
            PURPOSE_TAG: self.purpose,
            DATASET_TAG: self.dataset,
            RECIPE_TAG: self.recipe_fingerprint,
            ATTEMPT_TAG: str(self.attempt),
        }


Decision: TypeAlias = Wait | GiveUp | Launch


def decide_retraining(facts: RetrainingFacts, policy: LoopPolicy) -> Decision:
    """Decide whether the student is trained again.

    The dataset is counted in whole batches of the minimum: it stays the same while further
    questions trickle in, so a failing one cannot be tried for ever under changing names.
    """
    if not facts.has_student:
        return Wait(
            reason=f"waits for a first student of the recipe {facts.recipe}: `understudy run`"
        )
    blocked = _find_unfinished(facts)
    if blocked is not None:
        return blocked
    minimum = policy.minimum_after_drift if facts.drifting else policy.minimum_teacher_traces
    count = len(facts.teacher_traces)
    why = f"drift ({', '.join(facts.drifting)})" if facts.drifting else "no drift"
    told = f"{count} of {minimum} curated teacher traces since the last student, {why}"
    if count < minimum:
        return Wait(reason=f"waits for {minimum - count} more: {told}")
    batch = facts.teacher_traces[: count // minimum * minimum]
    dataset = content_hash(sorted(batch), digits=DATASET_DIGITS)
    return decide_attempt(
        facts.attempts,
        purpose="retraining",
        dataset=dataset,
        recipe=facts.recipe,
        recipe_fingerprint=facts.recipe_fingerprint,
        maximum_attempts=policy.maximum_attempts,
        reason=told,
    )


def decide_attempt(
    attempts: Sequence[Attempt],
    *,
    purpose: Purpose,
    dataset: str,
    recipe: str,
    recipe_fingerprint: str,
    maximum_attempts: int,
    reason: str,
) -> Decision:
    """Decide whether a run for this dataset is still due, and as which attempt."""
    identity = (purpose, dataset, recipe_fingerprint)
    own = [a for a in attempts if (a.purpose, a.dataset, a.recipe_fingerprint) == identity]
    if any(attempt.state == "succeeded" for attempt in own):
        return Wait(reason=f"waits for something new: a run for {dataset} has succeeded")
    failed = [attempt for attempt in own if attempt.state == "failed"]
    tried = max((attempt.number for attempt in failed), default=0)
    if tried >= maximum_attempts:
        return GiveUp(
            reason=f"{tried} of {maximum_attempts} attempts for {dataset} have failed, the last as "
            f"run {failed[0].run_id or 'unknown'}; mend the cause, then `understudy run`"
        )
    return Launch(
        purpose=purpose,
        dataset=dataset,
        recipe=recipe,
        recipe_fingerprint=recipe_fingerprint,
        attempt=tried + 1,
        reason=reason,
    )


def _find_unfinished(facts: RetrainingFacts) -> Decision | None:
    """Wait for any run under way; ask again for an own one that was recorded, never launched."""
    waiting = _wait_for_active(facts.attempts)
    if waiting is not None:
        return waiting
    for attempt in facts.attempts:
        if (attempt.purpose, attempt.state) == ("retraining", "requested"):
            return Launch(
                purpose="retraining",
                dataset=attempt.dataset,
                recipe=facts.recipe,
                recipe_fingerprint=attempt.recipe_fingerprint,
                attempt=attempt.number,
                reason=f"run {attempt.run_id} was recorded and never launched",
            )
    return None


def _wait_for_active(attempts: Sequence[Attempt]) -> Wait | None:
    """Wait for a run under way, whatever it is for: two would make the same assets."""
    for attempt in attempts:
        if attempt.state == "active":
            return Wait(reason=f"waits for run {attempt.run_id} to end", run_id=attempt.run_id)
    return None


@dataclass(frozen=True, kw_only=True)
class EvalFacts:
    """What is known of the last measurement of a recipe."""

    recipe: str
    recipe_fingerprint: str
    golden_fingerprint: str
    measured_at: datetime | None
    """When parity was last reported; None: never."""
    measured_golden: str | None
    """The identity of the golden file it was measured on."""
    measured_golden_at: datetime | None = None
    """When those cases were read: a set that comes back later is due again."""
    attempts: Sequence[Attempt] = ()


def decide_new_golden(facts: EvalFacts, *, maximum_attempts: int) -> Decision:
    """Decide whether the verdict stands on another golden set than today's.

    Another golden set guards other training questions, so all of the chain is due.
    """
    if facts.measured_at is None:
        return Wait(reason=f"waits for a first parity report of the recipe {facts.recipe}")
    if facts.golden_fingerprint == facts.measured_golden:
        return Wait(reason="waits for another golden set: the last report stands on this one")
    since = facts.measured_golden_at.isoformat() if facts.measured_golden_at else None
    return _decide_measurement(
        facts,
        purpose="new_golden",
        dataset=content_hash("golden", facts.golden_fingerprint, since, digits=DATASET_DIGITS),
        reason="the last report stands on another golden set",
        maximum_attempts=maximum_attempts,
    )


def decide_aged_report(
    facts: EvalFacts, *, now: datetime, maximum_age: timedelta, maximum_attempts: int
) -> Decision:
    """Decide whether the parity report is too old to go by."""
    if facts.measured_at is None:
        return Wait(reason=f"waits for a first parity report of the recipe {facts.recipe}")
    due_at = facts.measured_at + maximum_age
    if now < due_at:
        return Wait(reason=f"waits for {due_at:%Y-%m-%d %H:%M} UTC, when the report has aged")
    return _decide_measurement(
        facts,
        purpose="aged_report",
        dataset=content_hash("aged", facts.measured_at.isoformat(), digits=DATASET_DIGITS),
        reason=f"the last report is of {facts.measured_at:%Y-%m-%d}",
        maximum_attempts=maximum_attempts,
    )


def _decide_measurement(
    facts: EvalFacts, *, purpose: Purpose, dataset: str, reason: str, maximum_attempts: int
) -> Decision:
    waiting = _wait_for_active(facts.attempts)
    if waiting is not None:
        return waiting
    return decide_attempt(
        facts.attempts,
        purpose=purpose,
        dataset=dataset,
        recipe=facts.recipe,
        recipe_fingerprint=facts.recipe_fingerprint,
        maximum_attempts=maximum_attempts,
        reason=reason,
    )
