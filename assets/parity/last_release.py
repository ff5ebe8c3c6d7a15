"""The students of the last release: what users are answered by while a candidate is measured.

Belongs here: finding them in the signed release. Does not belong here: asking them (`suites`).
"""

from dataclasses import asdict, dataclass
from typing import Any

from assets.parity.tiers import Row, Tiers, TierStudent, state_fitted
from serving.hashing import content_hash
from serving.home import Home
from serving.pipeline.confidence import ConfidenceCalibration
from serving.pipeline.router import ROUTED_PHASES
from serving.releases.bundle import CURRENT, load_current
from serving.releases.manifest import StudentEntry
from serving.releases.signing import load_public_key


@dataclass(frozen=True, kw_only=True)
class LastStudent:
    """The students of a release in the order they are asked; the last is the one it is named by."""

    tiers: Tiers

    @property
    def adapter(self) -> Row:
        """The last one, as a row of student_adapter names it."""
        return self.tiers[-1].adapter

    @property
    def calibration(self) -> ConfidenceCalibration | None:
        """When the last one is doubted."""
        return self.tiers[-1].calibration

    @property
    def fingerprint(self) -> str:
        """The identity of what users get from these students: weights, and when each is doubted."""
        *smaller, own = (
            [tier.adapter, tier.calibration and asdict(tier.calibration)] for tier in self.tiers
        )
        return content_hash(*own, *smaller)


def find_last_student(home: Home, *candidate: Row) -> LastStudent | None:
    """Return the students that the current release lets answer, unless they are the candidate's.

    None where nothing is released, or where the teacher answers everything: then users know no
    other student. Students of skills serve a part and are left out.

    Args:
        home: where the release lies.
        candidate: the student_adapter rows of the candidate, in the order they are asked.

    Raises:
        ReleaseError: the release does not verify: what users get is then not known.
    """
    if not (home.releases / CURRENT).exists():
        return None
    manifest = load_current(home.releases, load_public_key(home.keys)).manifest
    if manifest.phase not in ROUTED_PHASES:
        return None
    students = {name: manifest.students[name] for name in manifest.tier_names}
    released = [student.adapter_sha256 for student in students.values()]
    if released == [row["adapter_sha256"] for row in candidate]:
        return None
    return LastStudent(tiers=tuple(_read_entry(name, entry) for name, entry in students.items()))


def _read_entry(name: str, entry: StudentEntry) -> TierStudent:
    adapter: dict[str, Any] = entry.model_dump(
        include={"kind", "adapter", "activation", "base_hash"}
    )
    fitted = state_fitted(entry.calibration)
    return TierStudent(adapter=adapter | {"student": name}, fitted=fitted)
