"""The baseline: what has to be the same before two releases' numbers may be compared.

Another golden set asks other questions, another judge or epoch of it scores otherwise, another
teacher is another thing to be compared with. After such a change a release starts anew. Belongs
here: stating and comparing baselines. Does not belong here: the gates (`gate`), reading a release
(`serving/releases`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from assets.labels.judging import Ruler
from assets.releases.gates import GateResult
from serving.releases.manifest import TeacherEntry

COMPARED = ("refusal_recall", "pooled_non_inferiority", "cost_ratio", "latency_p50")
"""Gates whose numbers are set beside the parent's: bounds, read at the same limits."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What the numbers of a verdict were measured with."""

    golden_set: str
    teacher: str
    judge: str
    judge_epoch: str
    rubric_version: str


@dataclass(frozen=True, kw_only=True)
class ParentRelease:
    """The release in service before this one, and the gate rows its manifest carries."""

    release_id: str
    gates: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class ComparedGate:
    """One gate's number, now and in the parent."""

    name: str
    unit: str
    number: float | None
    parent_number: float | None


@dataclass(frozen=True, kw_only=True)
class ParentComparison:
    """Whether this verdict may be read beside the parent's, and what is read then."""

    statement: str
    parent: str | None = None
    changed: tuple[str, ...] = ()
    gates: tuple[ComparedGate, ...] = ()

    def to_evidence(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"parent": self.parent, "changed": list(self.changed), "statement": self.statement}


def state_baseline(golden_sha256: str, teacher: TeacherEntry, ruler: Ruler) -> Baseline:
    """Return what a verdict of today is measured with."""
    return Baseline(
        golden_set=golden_sha256,
        teacher=f"{teacher.provider} {teacher.model}",
        judge=ruler.rater_id,
        judge_epoch=ruler.epoch,
        rubric_version=ruler.rubric_version,
    )


def compare_with_parent(
    gates: Sequence[GateResult], baseline: Baseline, parent: ParentRelease | None
) -> ParentComparison:
    """Set this release's gates beside the parent's, unless what they measure with has changed."""
    if parent is None:
        return ParentComparison(statement="No release is in service: nothing to compare with.")
    before = read_baseline(parent.gates)
    if before is None:
        return ParentComparison(
            parent=parent.release_id,
            changed=("baseline",),
            statement=f"Release {parent.release_id} does not say what it was measured with: its "
            "numbers are not compared with these, and this release starts a new baseline.",
        )
    changed = tuple(name for name, value in asdict(baseline).items() if before.get(name) != value)
    if changed:
        what = " and ".join(f"the {name.replace('_', ' ')}" for name in changed)
        return ParentComparison(
            parent=parent.release_id,
            changed=changed,
            statement=f"Since release {parent.release_id}, {what} changed: its numbers are not "
            "compared with these, and this release starts a new baseline.",
        )
    numbers = {row["gate"]: row["number"] for row in parent.gates}
    return ParentComparison(
        parent=parent.release_id,
        statement=f"Release {parent.release_id} was measured by the same golden set, judge and "
        "teacher. The bounds are those each gate compared with its limit; two runs differ by "
        "chance as well.",
        gates=tuple(
            ComparedGate(
                name=gate.name,
                unit=gate.unit,
                number=gate.number,
                parent_number=numbers[gate.name],
            )
            for gate in gates
            if gate.name in COMPARED and gate.name in numbers
        ),
    )


def read_baseline(gates: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the baseline that gate rows carry; None of rows from before there was one."""
    for row in gates:
        found = json.loads(row.get("evidence") or "{}").get("baseline")
        if isinstance(found, dict):
            return found
    return None
