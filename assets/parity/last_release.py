"""The student of the last release: what users are answered by while a candidate is measured.

Belongs here: finding it in the signed release. Does not belong here: asking it (`suites`).
"""

from dataclasses import asdict, dataclass
from typing import Any

from serving.hashing import content_hash
from serving.home import Home
from serving.pipeline.confidence import ConfidenceCalibration
from serving.pipeline.router import ROUTED_PHASES
from serving.releases.bundle import CURRENT, load_current
from serving.releases.signing import load_public_key


@dataclass(frozen=True, kw_only=True)
class LastStudent:
    """A released student, as a row of student_adapter names one, and its calibration."""

    adapter: dict[str, Any]
    calibration: ConfidenceCalibration | None

    @property
    def fingerprint(self) -> str:
        """The identity of what users get from this student: its weights, and when it is doubted."""
        return content_hash(self.adapter, self.calibration and asdict(self.calibration))


def find_last_student(home: Home, candidate: dict[str, Any]) -> LastStudent | None:
    """Return the student that the current release lets answer, unless it is the candidate itself.

    None where nothing is released, or where the teacher answers everything: then users know no
    other student.

    Raises:
        ReleaseError: the release does not verify: what users get is then not known.
    """
    if not (home.releases / CURRENT).exists():
        return None
    manifest = load_current(home.releases, load_public_key(home.keys)).manifest
    if manifest.phase not in ROUTED_PHASES:
        return None
    name = manifest.tier_names[-1]  # the main student: those before it, and skills, serve a part
    student = manifest.students[name]
    if student.adapter_sha256 == candidate["adapter_sha256"]:
        return None
    row = student.model_dump(include={"kind", "adapter", "activation", "base_hash"})
    return LastStudent(adapter=row | {"student": name}, calibration=student.calibration)
