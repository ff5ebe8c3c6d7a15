"""Whether a student may serve a skill of a release: an unattended run must not decide it otherwise.

The gate must have said PROMOTE of these very weights, in the very pipeline that is released, by the
rules that this release is judged by. Belongs here: that decision, and its words. Does not belong
here: reading the tables (`skills`), the gate (`gate`), the manifest (`bundling`).
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from assets.parity.suite_evidence import CandidateIdentity
from assets.releases.gates import CLEAN_LANE
from assets.releases.skills import (
    IDENTITY,
    JudgedStudent,
    Row,
    SkillStudent,
    SkillTerms,
    read_judged,
    strip_identity,
)
from assets.students.calibration import read_calibrator
from serving.errors import ReleaseError
from serving.home import Home

Identify = Callable[[Row, Row], CandidateIdentity]
"""Returns whose answers a student_adapter row and its calibration row give in this release."""


@dataclass(frozen=True, kw_only=True)
class ReleaseStandard:
    """What the students of skills are held against: the release that they are to join.

    `adapter` and `gates` are rows of the general student, `students` the names configured.
    """

    recipe: str
    adapter: Row
    gates: Sequence[Row]
    students: Collection[str]
    identify: Identify


@dataclass(frozen=True, kw_only=True)
class Objection:
    """Why a student may not serve a skill, and what to do."""

    expected: str
    found: str
    next_step: str


def admit_skills(
    home: Home, skills: Mapping[str, SkillTerms], standard: ReleaseStandard
) -> dict[str, SkillStudent]:
    """Return the student of every skill.

    Raises:
        ReleaseError: one of them may not be released; it says why, and what to do next.
    """
    admitted = {}
    for name, terms in skills.items():
        judged = read_judged(home, terms.recipe)
        if judged is None:
            raise _refuse(name, terms, standard, _miss(terms.recipe, standard))
        objection = find_objection(judged, standard)
        if objection is not None:
            raise _refuse(name, terms, standard, objection)
        admitted[name] = SkillStudent(
            terms=terms,
            adapter=judged.adapter,
            calibration=read_calibrator(judged.calibration),
            gates=[strip_identity(row) for row in judged.gates],
        )
    return admitted


def find_objection(judged: JudgedStudent, standard: ReleaseStandard) -> Objection | None:
    """Return the first reason why a student may not serve a skill; None: it may."""
    objections = (*_object_to_student(judged, standard), *_object_to_verdict(judged, standard))
    return objections[0] if objections else None


def _miss(recipe: str, standard: ReleaseStandard) -> Objection:
    return Objection(
        expected="a student that the gate has judged",
        found=f"none of the recipe {recipe}",
        next_step=_run_again(recipe, standard),
    )


def _object_to_student(judged: JudgedStudent, standard: ReleaseStandard) -> Iterator[Objection]:
    adapter, general = judged.adapter, standard.adapter
    if adapter["lane"] != CLEAN_LANE:
        yield Objection(
            expected=f"a student of the {CLEAN_LANE} lane",
            found=f"{adapter['adapter']} of the lane {adapter['lane']}: trained on its own exam",
            next_step="name a recipe of the clean lane in releases.skills",
        )
    if adapter["student"] not in standard.students:
        yield Objection(
            expected=f"a student of the configuration ({', '.join(standard.students)})",
            found=adapter["student"],
            next_step=_run_again(adapter["recipe"], standard),
        )
    if adapter["adapter_sha256"] == general["adapter_sha256"]:
        yield Objection(
            expected="an adapter of its own",
            found=f"{general['adapter']}, which answers what is for no skill",
            next_step="change the recipe, or take the skill out of releases.skills",
        )
    if adapter["base_hash"] != general["base_hash"]:
        yield Objection(
            expected=f"an adapter on the base of {general['adapter']}: {general['base_model']} "
            f"with hash {general['base_hash']}",
            found=f"{adapter['adapter']} on {adapter['base_model']} with {adapter['base_hash']}",
            next_step="make both of one `students` entry, then run both recipes again",
        )


def _object_to_verdict(judged: JudgedStudent, standard: ReleaseStandard) -> Iterator[Objection]:
    verdict, adapter = judged.gates[0], judged.adapter
    again = _run_again(adapter["recipe"], standard)
    judged_as = {name: verdict[name] for name in IDENTITY}
    wanted = asdict(standard.identify(adapter, judged.calibration))
    if judged_as["adapter_sha256"] != wanted["adapter_sha256"]:
        yield Objection(
            expected=f"a verdict on {adapter['adapter']}",
            found=f"one on weights with hash {judged_as['adapter_sha256']}",
            next_step=again,
        )
    if judged_as != wanted:
        yield Objection(
            expected=f"a verdict on {adapter['adapter']} in the pipeline that is released",
            found="one in another: index, prompt, teacher, validator, router or calibration "
            "changed since",
            next_step=again,
        )
    changed = _compare_rules(verdict["evidence"], standard.gates[0]["evidence"])
    if changed:
        yield Objection(
            expected="a verdict by the rules that this release is judged by",
            found=f"one by another {', '.join(changed)}",
            next_step=again,
        )
    if verdict["verdict"] != "PROMOTE":
        yield Objection(
            expected=f"the gate to say PROMOTE of {adapter['adapter']}",
            found=f"{verdict['verdict']}: {verdict['statement'].rstrip('.')}",
            next_step=f"see why with `understudy report --recipe {adapter['recipe']}`; make a "
            "better student, or take the skill out of releases.skills",
        )


def _compare_rules(theirs: str, ours: str) -> list[str]:
    """Return the limits, and what is measured with, that differ between two rows of evidence."""
    own, other = (_flatten(json.loads(text)) for text in (ours, theirs))
    return [key for key in sorted({*own, *other}) if own.get(key) != other.get(key)]


def _flatten(evidence: Mapping[str, Any]) -> dict[str, Any]:
    parts = (part if isinstance(part, dict) else {name: part} for name, part in evidence.items())
    return {key: value for part in parts for key, value in part.items()}


def _run_again(recipe: str, standard: ReleaseStandard) -> str:
    return (
        f"run `understudy run --recipe {recipe}`, then `understudy run --recipe {standard.recipe}`"
    )


def _refuse(
    name: str, terms: SkillTerms, standard: ReleaseStandard, objection: Objection
) -> ReleaseError:
    return ReleaseError(
        f"releasing the recipe {standard.recipe} with the skill {name}, whose student the recipe "
        f"{terms.recipe} makes",
        expected=objection.expected,
        found=objection.found,
        next_step=objection.next_step,
    )
