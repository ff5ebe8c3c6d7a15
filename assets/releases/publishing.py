"""Publishing: the bundle is built for every verdict, CURRENT moves only where that is safe.

Belongs here: whether and how a release becomes the current one. Does not belong here: what is in it
(`bundling`), signing and verifying (`serving/releases`).
"""

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from serving.errors import ReleaseError
from serving.home import Home
from serving.releases.bundle import build_bundle, ensure_signing_key, load_current, publish
from serving.releases.manifest import ReleaseManifest
from serving.releases.signing import CurrentPointer, read_pointer


@dataclass(frozen=True, kw_only=True)
class Published:
    """The bundle that was built, and the pointer after it."""

    release_id: str
    current: CurrentPointer

    @property
    def is_current(self) -> bool:
        """Whether servers load this bundle now."""
        return self.current.release_id == self.release_id


def publish_release(home: Home, manifest: ReleaseManifest, adapter_folder: Path) -> Published:
    """Build the bundle of a manifest, and point CURRENT at it if that takes nothing away.

    A student that did not earn PROMOTE never replaces one that did: production would fall back to
    the teacher because somebody tried a recipe.

    Raises:
        ReleaseError: the bundle does not verify, or another publisher was first.
    """
    (student,) = manifest.students
    release_id = build_bundle(home.releases, manifest, {student: adapter_folder})
    key = ensure_signing_key(home.keys)
    current = read_pointer(home.releases / "CURRENT", key.public_key())
    if current is not None:
        is_step_back = _is_promoted(home, key.public_key()) and manifest.gate.verdict != "PROMOTE"
        if is_step_back or current.release_id == release_id:
            return Published(release_id=release_id, current=current)
    pointer = publish(
        home.releases,
        release_id,
        expected_parent=current.release_id if current else None,
        signing_key=key,
    )
    return Published(release_id=release_id, current=pointer)


def _is_promoted(home: Home, public_key: Ed25519PublicKey) -> bool:
    """Whether what servers load now earned PROMOTE; what no server can load takes nothing away."""
    try:
        return load_current(home.releases, public_key).manifest.gate.verdict == "PROMOTE"
    except ReleaseError:
        return False
