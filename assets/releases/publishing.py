"""Publishing: the bundle is built for every verdict, CURRENT moves only where that is safe.

Belongs here: whether and how a release becomes the current one. Does not belong here: what is in it
(`bundling`), signing and verifying (`serving/releases`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from assets.releases.baseline import ParentRelease
from assets.releases.gates import CLEAN_LANE
from serving.errors import ReleaseError
from serving.home import Home
from serving.releases.bundle import build_bundle, ensure_signing_key, load_current, publish
from serving.releases.manifest import ReleaseManifest
from serving.releases.signing import CurrentPointer, load_public_key, read_pointer


@dataclass(frozen=True, kw_only=True)
class Published:
    """The bundle that was built, and the pointer after it; None where nothing was published yet."""

    release_id: str
    current: CurrentPointer | None

    @property
    def is_current(self) -> bool:
        """Whether servers load this bundle now."""
        return self.current is not None and self.current.release_id == self.release_id

    def describe(self) -> dict[str, Any]:
        """Return the release_bundle columns on it; of a bundle that is not current, no place."""
        pointer = self.current if self.is_current else None
        return {
            "release_id": self.release_id,
            "parent": pointer.parent if pointer else None,
            "sequence": pointer.sequence if pointer else None,
            "is_current": self.is_current,
        }


def publish_release(
    home: Home,
    manifest: ReleaseManifest,
    adapters: Mapping[str, Path],
    *,
    is_part: bool = False,
) -> Published:
    """Build the bundle of a manifest, and point CURRENT at it if that takes nothing away.

    A student that did not earn PROMOTE never replaces one that did: production would fall back to
    the teacher because somebody tried a recipe. One of another lane than the clean one is never
    published at all, not even to wait behind the teacher; nor is one that serves a skill or is
    asked before another, which is published with the default recipe's.

    Args:
        home: the releases and the signing key are its.
        manifest: of the release.
        adapters: the folder of every student of the manifest, by its name there.
        is_part: whether the student serves a part of another release, so that it must not answer
            everything.

    Raises:
        ReleaseError: the bundle does not verify, or another publisher was first.
    """
    release_id = build_bundle(home.releases, manifest, adapters)
    key = ensure_signing_key(home.keys)
    current = read_pointer(home.releases / "CURRENT", key.public_key())
    if manifest.lane != CLEAN_LANE or is_part:
        return Published(release_id=release_id, current=current)
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


def find_parent(home: Home) -> ParentRelease | None:
    """Return the release that servers load now; what no server can load is nobody's parent."""
    if not (home.releases / "CURRENT").exists():
        return None
    try:
        manifest = load_current(home.releases, load_public_key(home.keys)).manifest
    except (ReleaseError, OSError):
        return None
    return ParentRelease(release_id=manifest.release_id, gates=manifest.gate.gates)


def _is_promoted(home: Home, public_key: Ed25519PublicKey) -> bool:
    """Whether what servers load now earned PROMOTE; what no server can load takes nothing away."""
    try:
        return load_current(home.releases, public_key).manifest.gate.verdict == "PROMOTE"
    except ReleaseError:
        return False
