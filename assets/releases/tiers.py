"""A release of several students asked in turn: what it takes beyond the gates on what they answer.

How good they are together is judged like one student: the arm `routed` asks all of them. Belongs
here: whether one that is asked first is sound and sure, and whether a verdict is of those who are
released. Does not belong here: who they are (`assets/parity/tiers`), the gates on answers
(`gates`), skills (`skill_admission`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import polars as pl

from assets.parity.suite_evidence import CandidateIdentity
from assets.parity.tiers import Row, TierStudent, read_made
from assets.releases.gates import (
    GateResult,
    IntegrityEvidence,
    Outcome,
    check_calibration,
    check_lane,
    check_no_leak,
)
from assets.students.provenance import read_provenance
from serving.errors import ReleaseError
from serving.home import Home
from serving.models.prompted_student import TRAINED_KINDS
from serving.pipeline.router import RouterPolicy


def read_training_set(home: Home, adapter: Row) -> pl.DataFrame:
    """Return what a student asked first was trained on; no rows where that is not known.

    A run that stopped before its training leaves a table that no weights have seen.
    """
    from assets.students.adapters import hash_training_inputs  # with torch, which takes seconds

    found = read_made(home, "students/training_set", adapter["recipe"])
    if adapter["kind"] not in TRAINED_KINDS:
        return found
    try:
        told = read_provenance(home.adapters / adapter["adapter"])["data_hash"]
    except (OSError, ValueError, KeyError):
        return found.clear()
    return found if told == hash_training_inputs(found, None)[0] else found.clear()


def check_smaller_student(
    tier: TierStudent, integrity: IntegrityEvidence, policy: RouterPolicy
) -> GateResult:
    """A student asked first is as sound as the last one, and its own threshold is certified.

    It passes the gates on leaks, lane and calibration, each on its own tables. Without a threshold
    servers ask it nothing, and without its training set no leak is looked for: the gate stays open.
    """
    checks = [check(integrity) for check in (check_no_leak, check_lane, check_calibration)]
    outcomes = [gate.outcome for gate in checks]
    is_certified = tier.find_threshold(policy) is not None
    is_known = integrity.trained_example_count > 0
    holds = is_certified and is_known and set(outcomes) == {"PASS"}
    outcome: Outcome = "PASS" if holds else "INCONCLUSIVE"
    outcome = "FAIL" if "FAIL" in outcomes else outcome
    told = [f"{tier.adapter['adapter']} is asked first", *(gate.detail for gate in checks)]
    if not is_certified:
        told.append("no threshold is certified for it, so it is asked nothing")
    if not is_known:
        told.append("its training set is missing, damaged, of another version or another student's")
    return GateResult(
        name="smaller_student",
        unit="flag",
        relation="at least",
        outcome=outcome,
        number=float(outcome == "PASS"),
        limit=1.0,
        n=integrity.calibrated_case_count,
        detail="; ".join(told),
    )


def refuse_other_verdict(
    gates: Sequence[Mapping[str, Any]], candidate: CandidateIdentity, *, recipe: str
) -> None:
    """Refuse a verdict on other students, or in another pipeline, than those that are released.

    A student that is asked first is trained in a run of its own, after which the verdict on the
    default recipe still speaks of the one before.

    Raises:
        ReleaseError: says what to run.
    """
    wanted = asdict(candidate)
    judged = {name: gates[0][name] for name in wanted}
    if judged != wanted:
        raise ReleaseError(
            f"releasing the recipe {recipe}",
            expected=f"a verdict on the students of today in the pipeline of today: {wanted}",
            found=f"one on {judged}",
            next_step=f"run `understudy run --recipe {recipe}`; if nothing is stale for it, "
            f"`understudy run --recipe {recipe} --select parity/arm_answers --force` first",
        )
