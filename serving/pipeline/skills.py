"""Skills: tasks with an adapter of their own on the students' base.

A caller names the skill, or the page decides that the best chunk lies on; where neither does, the
general students answer. Belongs here: which skill a question is for. Does not belong here: loading
its adapter (`releases.parts`), asking it (`answer`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from serving.errors import InvalidInputError
from serving.models.protocols import Hit
from serving.pipeline.router import is_below
from serving.pipeline.tiers import Tier


@dataclass(frozen=True, kw_only=True)
class Skill:
    """A task, the student that answers it, and where it is at home.

    `pages` are slug prefixes by whole parts. With `is_high_stakes` the teacher answers it.
    """

    name: str
    tier: Tier
    pages: tuple[str, ...] = ()
    is_high_stakes: bool = False


def choose_skill(named: str | None, hits: Sequence[Hit], skills: Sequence[Skill]) -> Skill | None:
    """Return the skill a caller named, else the one at home on the page of the best hit.

    Of several, the one with the longest prefix; None: none of them, the general students.

    Raises:
        InvalidInputError: there is no skill of that name.
    """
    if named is not None:
        return next((s for s in skills if s.name == named), None) or _refuse(named, skills)
    homes = [(page, s) for s in skills for page in s.pages if hits and is_below(hits[0], page)]
    return max(homes, key=lambda home: len(home[0].strip("/")))[1] if homes else None


def asks_high_stakes(chosen: Skill | None, hits: Sequence[Hit], skills: Sequence[Skill]) -> bool:
    """Say whether a question is the teacher's by its skill, or by the best page whoever is named.

    Naming another skill must not take a question away from the teacher.
    """
    at_home = choose_skill(None, hits, [s for s in skills if s.is_high_stakes])
    return at_home is not None or (chosen is not None and chosen.is_high_stakes)


def _refuse(named: str, skills: Sequence[Skill]) -> Skill:
    names = ", ".join(skill.name for skill in skills)
    raise InvalidInputError(
        "choosing the skill of a question",
        expected=f"one of {names}" if names else "none: this release has no skills",
        found=repr(named),
        next_step="leave `skill` out, or name one that /v1/release lists",
    )
