"""The arms: the ways of answering every golden case that the report sets side by side.

Belongs here: which arms exist, how each comes to its answers, which a product asks for. Does not
belong here: asking (`answering`), deciding a route anew (`deriving`), thresholds
(`operating_points`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from serving.pipeline.answer import Mode

BASELINE = "teacher"
"""What every other arm is compared with, case by case."""

STUDENT = "student"
"""The student alone, without router and fallback."""

CANDIDATE = "routed"
"""What users would get: the student behind the router with its fallback, not the student alone.

Where `releases.tiers` names two students, it asks both: it is what a release holds that is judged.
"""

SMALLER = "smaller"
"""The student that is asked first, where there are two, alone."""

CASCADE = "cascade"
"""What users would get of that student, then the student, then the teacher, while it is tried."""

Student = TypeVar("Student")

Origin = Literal["production", "untrained", "operating_point", "cascade"]
"""`production`: the student that was made, and its teacher, through the request path. `untrained`:
the same path with a base model in the student's place. `operating_point`: the routes decided anew
over the answers of teacher and student; no model is asked. `cascade`: of a smaller student, and
there where the configuration names one."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm. `definition` is what a reader of the report is told.

    `seed` sets its draws apart from those of an arm with the same mode; `teacher_ratio` is the
    teacher's share of traffic that an operating point aims at.
    """

    name: str
    label: str
    definition: str
    origin: Origin = "production"
    mode: Mode = "routed"
    seed: int = 0
    teacher_ratio: float | None = None


def _describe_point(student: int, teacher: int) -> Arm:
    return Arm(
        name=f"routed_{student}_{teacher}",
        label=f"routed {student}/{teacher}",
        origin="operating_point",
        teacher_ratio=teacher / 100,
        definition=(
            f"The router at thresholds that send about {teacher} % of held-out questions to the "
            "teacher, fallbacks counted. Chosen on the validation and calibration splits, judged "
            "here: what share came of it stands among the operating points."
        ),
    )


ARMS = (
    Arm(
        name=BASELINE,
        label="teacher",
        mode="teacher",
        definition="The model being replaced answers every case.",
    ),
    Arm(
        name="teacher_again",
        label="teacher again",
        mode="teacher",
        seed=1_000,
        definition=(
            "The teacher asked once more, as another draw: the noise ceiling. No arm can be "
            "expected to agree with the teacher more than the teacher does with itself."
        ),
    ),
    Arm(
        name="base",
        label="base",
        origin="untrained",
        mode="student",
        definition="The student's base model as it is, with the pipeline's own prompt.",
    ),
    Arm(
        name="few_shot",
        label="base + few-shot",
        origin="untrained",
        mode="student",
        definition=(
            "The base model, shown the labelled examples nearest to each question: what can be "
            "had without training."
        ),
    ),
    Arm(
        name=STUDENT,
        label="student",
        mode="student",
        definition=(
            "The student answers every case alone. An invalid answer is shown as a refusal."
        ),
    ),
    Arm(
        name=CANDIDATE,
        label="routed",
        definition=(
            "What users would get: the router at the configured thresholds, the student (two in "
            "turn, where `releases.tiers` names two), the validator, the fallback to the teacher. "
            "This arm is judged by the gate."
        ),
    ),
    Arm(
        name=SMALLER,
        label="smaller student",
        origin="cascade",
        mode="student",
        definition=(
            "The smaller of two students, which is asked first, answers every case alone. An "
            "invalid answer is shown as a refusal."
        ),
    ),
    Arm(
        name=CASCADE,
        label="two students",
        origin="cascade",
        definition=(
            "The router with two students: the smaller one first, whose answers stand at its own "
            "certified confidence, then the student, then the teacher. The routes are decided anew "
            "over the answers of the three. The gate does not judge this arm."
        ),
    ),
    _describe_point(90, 10),
    _describe_point(80, 20),
    _describe_point(60, 40),
)

ARM_NAMES = tuple(arm.name for arm in ARMS)
BY_NAME = {arm.name: arm for arm in ARMS}


def label_arm(name: str) -> str:
    """Return what readers call an arm; one of an older run that exists no more, by its name."""
    return BY_NAME[name].label if name in BY_NAME else name.replace("_", " ")


REQUIRED_ARMS = (BASELINE, STUDENT, CANDIDATE)
"""Without these there is nothing to judge."""

OPERATING_POINTS = tuple(arm for arm in ARMS if arm.teacher_ratio is not None)
PLANNED_ARMS = tuple(arm.name for arm in ARMS if arm.origin != "cascade")
"""What `parity.arms` may name: the others come with a smaller student."""

DEFAULT_ARMS = tuple(arm.name for arm in ARMS if arm.origin in {"production", "operating_point"})
"""The untrained arms ask a base model that talks to its limit: dear where it runs on CPU."""


@dataclass(frozen=True, kw_only=True)
class ArmPlan:
    """Which arms are set side by side, in the order of the report, and who is asked in turn.

    `tiers` are the recipes whose students are asked in turn, the smallest first, in the report of
    the last of them. With `is_released` the arm `routed` asks them so, as users would be answered;
    without, the arm `cascade` shows what that would give.

    Raises:
        ValueError: an arm is unknown, named twice, or a required one is missing.
    """

    arms: tuple[str, ...] = DEFAULT_ARMS
    tiers: tuple[str, ...] = ()
    is_released: bool = False

    def __post_init__(self) -> None:
        """Refuse a plan nobody could judge."""
        refuse_unfit_arms(self.arms)

    def choose(self, *origins: Origin) -> tuple[Arm, ...]:
        """Return the planned arms of these origins, in the order of the report."""
        return tuple(arm for arm in ARMS if arm.name in self.arms and arm.origin in origins)

    def choose_released(self, tiers: Sequence[Student]) -> Sequence[Student]:
        """Return those of the students asked in turn that a release would hold."""
        return tiers if self.is_released else tiers[-1:]

    @property
    def released(self) -> tuple[str, ...]:
        """The recipes whose students a release asks in turn; none where it holds one student."""
        return self.tiers if self.is_released else ()


def list_students(arm: str, present: Collection[str]) -> tuple[str, ...]:
    """Return the arms of the students that an arm asks in turn, of those in a table (`present`).

    Beside the arm `cascade` the smaller student is on trial, and `routed` asks the other one alone;
    without that arm it is `routed` that asks both.
    """
    asks_both = CASCADE if CASCADE in present else CANDIDATE
    return (SMALLER, STUDENT) if arm == asks_both and SMALLER in present else (STUDENT,)


def refuse_unfit_arms(names: Sequence[str]) -> None:
    """Refuse a list of arms that names what does not exist, or leaves out what is judged.

    Raises:
        ValueError: says which, and what is legal.
    """
    unknown = sorted(set(names) - set(PLANNED_ARMS))
    if unknown:
        raise ValueError(f"unknown arms {', '.join(unknown)}; legal: {', '.join(PLANNED_ARMS)}")
    if len(set(names)) < len(names):
        raise ValueError(f"every arm once, not {', '.join(names)}")
    missing = [name for name in REQUIRED_ARMS if name not in names]
    if missing:
        raise ValueError(
            f"the arms {', '.join(missing)} are missing: without them there is nothing to judge"
        )
