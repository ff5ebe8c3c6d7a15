"""Skills: tasks whose questions a student of their own answers, made and judged by its own recipe.

Belongs here: what is configured of them, and reading what the tables of a recipe say of its
student. Does not belong here: whether that may be released (`skill_admission`), the manifest
(`bundling`), which skill a question is for (`serving/pipeline/skills`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from assets.parity.suite_evidence import CandidateIdentity
from assets.parity.tiers import read_made
from assets.releases.gates import CLEAN_LANE
from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.home import Home
from serving.pipeline.confidence import ConfidenceCalibration

Row = Mapping[str, Any]
IDENTITY = tuple(CandidateIdentity.__dataclass_fields__)


@dataclass(frozen=True, kw_only=True)
class SkillTerms:
    """What the configuration says of a skill: who makes its student, and where it is at home."""

    recipe: str
    pages: tuple[str, ...] = ()
    high_stakes: bool = False


@dataclass(frozen=True, kw_only=True)
class JudgedStudent:
    """What the tables of a recipe say: its student, the calibration, and the gate's rows."""

    adapter: Row
    calibration: Row
    gates: Sequence[Row]


@dataclass(frozen=True, kw_only=True)
class SkillStudent:
    """A student that may serve a skill of a release."""

    terms: SkillTerms
    adapter: Row
    calibration: ConfidenceCalibration | None
    gates: Sequence[Row]

    @property
    def name(self) -> str:
        """Its name in the release: content-addressed, and never that of a configured student."""
        return str(self.adapter["adapter"])


def refuse_unfit_skills(
    skills: Mapping[str, SkillTerms], lanes: Mapping[str, str], *, default_recipe: str
) -> None:
    """Refuse skills that no run can ever release.

    Args:
        skills: by name, as configured.
        lanes: the lane of every recipe there is.
        default_recipe: whose student answers what is for no skill.

    Raises:
        InvalidInputError: a recipe does not exist, is the default, or trains on its own exam.
    """
    clean = [name for name, lane in lanes.items() if lane == CLEAN_LANE]
    legal = sorted(name for name in clean if name != default_recipe)
    for name, skill in skills.items():
        if skill.recipe in legal:
            continue
        found = "no recipe" if skill.recipe not in lanes else f"of the {lanes[skill.recipe]} lane"
        if skill.recipe == default_recipe:
            found = "the default recipe, whose student answers what is for no skill"
        raise InvalidInputError(
            f"reading the skill {name} in releases.skills",
            expected=f"adapter to be one of the recipes {', '.join(legal) or '(none is fit)'}",
            found=f"{skill.recipe}, which is {found}",
            next_step="name such a recipe, or add a YAML file to the folder of recipes",
        )


def find_skills(skills: Mapping[str, SkillTerms], recipe: str) -> list[str]:
    """Return the names of the skills that a recipe makes the student of."""
    return sorted(name for name, skill in skills.items() if skill.recipe == recipe)


def choose_skills(
    skills: Mapping[str, SkillTerms], *, recipe: str, default_recipe: str
) -> dict[str, SkillTerms]:
    """Return the skills of a recipe's bundle: all in the default one's, none in another's.

    A student of another recipe is an experiment, which no skill's missing verdict may hold up.
    """
    return dict(skills) if recipe == default_recipe else {}


def read_judged(home: Home, recipe: str) -> JudgedStudent | None:
    """Return what was last made of a recipe; None: a table is missing, or of another version."""
    keys = ("students/student_adapter", "students/calibration", "releases/gate_verdict")
    adapter, calibration, gates = (read_made(home, key, recipe).to_dicts() for key in keys)
    if not (adapter and calibration and gates):
        return None
    return JudgedStudent(adapter=adapter[0], calibration=calibration[0], gates=gates)


def fingerprint_skills(home: Home, skills: Mapping[str, SkillTerms]) -> str:
    """Return the identity of the students that the skills have by now, and of the verdicts."""
    judged = {skill.recipe: read_judged(home, skill.recipe) for skill in skills.values()}
    return content_hash({recipe: found and asdict(found) for recipe, found in judged.items()})


def list_students(skills: Mapping[str, SkillStudent]) -> list[dict[str, str]]:
    """Return whose weights serve each skill: the rows of `skills` in releases/release_bundle."""
    return [
        {"skill": name, "recipe": skill.terms.recipe}
        | {column: str(skill.adapter[column]) for column in ("adapter", "adapter_sha256")}
        for name, skill in skills.items()
    ]


def describe_terms(skills: Mapping[str, SkillTerms]) -> dict[str, str]:
    """Return what a report says of the configured skills: nothing where there are none."""
    told = (
        f"{name} (recipe {skill.recipe}; {', '.join(skill.pages) or 'where a caller names it'})"
        for name, skill in skills.items()
    )
    return {"skills": "; ".join(told)} if skills else {}


def strip_identity(row: Row) -> dict[str, Any]:
    """Return a gate row as manifests carry it: whom it judged, their students say."""
    return {name: value for name, value in row.items() if name not in IDENTITY}


def describe_admission(name: str, student: SkillStudent, *, position: int) -> dict[str, Any]:
    """Return the gate row by which a manifest says why a skill's student is in it."""
    first = student.gates[0]
    counted = sum(bool(row["is_gating"]) for row in student.gates)
    evidence = {
        "skill": name,
        "recipe": student.terms.recipe,
        "adapter_sha256": student.adapter["adapter_sha256"],
        "gates": list(student.gates),
    }
    return dict.fromkeys(first) | {
        "position": position,
        "verdict": first["verdict"],
        "gate": f"skill {name}",
        "outcome": "PASS",
        "is_gating": True,
        "n": len(student.gates),
        "detail": f"{student.name} of the recipe {student.terms.recipe}: {counted} gates passed",
        "statement": first["statement"],
        "evidence": json.dumps(evidence, sort_keys=True),
    }
