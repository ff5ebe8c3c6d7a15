"""Release bundles: built content-addressed, published by compare-and-swap, verified before use.

`releases/<release_id>/` holds manifest.json, adapters/<name>/… and SHA256SUMS; `releases/CURRENT`
is the signed pointer. The signature covers SHA256SUMS, which covers every file. Belongs here:
building, publishing, opening. Does not belong here: what is checked of a bundle (`verifying`),
loading models (`engine`), keys (`signing`).
"""

import contextlib
import fcntl
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from serving.errors import ReleaseError
from serving.files import atomic_folder, write_text_atomically
from serving.hashing import file_sha256
from serving.releases.manifest import RELEASE_ID_PATTERN, ReleaseManifest
from serving.releases.signing import (
    CurrentPointer,
    ensure_signing_key,
    load_public_key,
    read_pointer,
    sign_pointer,
)
from serving.releases.verifying import (
    ADAPTERS,
    CHECKSUMS,
    MANIFEST,
    check_adapter,
    list_files,
    verify_bundle,
)

__all__ = [
    "CHECKSUMS",
    "CURRENT",
    "MANIFEST",
    "CurrentPointer",
    "ReleaseManifest",
    "VerifiedRelease",
    "build_bundle",
    "copy_current",
    "ensure_signing_key",
    "load_current",
    "load_public_key",
    "publish",
    "verify_bundle",
]

CURRENT = "CURRENT"


@dataclass(frozen=True, kw_only=True)
class VerifiedRelease:
    """A bundle whose every byte was the one that was signed when it was read."""

    folder: Path
    manifest: ReleaseManifest
    sequence: int
    parent: str | None

    def adapter_folder(self, student: str) -> Path:
        """Return the folder of a student's adapter."""
        return self.folder / ADAPTERS / self.manifest.students[student].adapter


def build_bundle(
    releases_folder: Path, manifest: ReleaseManifest, adapters: Mapping[str, Path]
) -> str:
    """Write the bundle of a manifest and return its release id.

    Args:
        releases_folder: `UNDERSTUDY_HOME/releases`.
        manifest: `release_id` is computed here; equal content gives the existing release.
        adapters: the staged adapter folder of every student of the manifest, copied.

    Raises:
        ReleaseError: a folder is missing, holds a link or a file that is not allowed, or is not the
            folder whose hash the manifest states.
    """
    if set(adapters) != set(manifest.students):
        raise _refuse(
            "building a release",
            expected=f"one adapter folder for each of {sorted(manifest.students)}",
            found=str(sorted(adapters)),
            next_step="pass the adapter folders of the manifest's students",
        )
    release_id = manifest.content_id()
    manifest = manifest.model_copy(update={"release_id": release_id})
    target = releases_folder / release_id
    if target.exists():
        verify_bundle(target)
        return release_id
    with atomic_folder(target) as staging:
        for name, student in manifest.students.items():
            copied = staging / ADAPTERS / student.adapter
            _copy_files(adapters[name], copied)
            check_adapter(copied, student)
        (staging / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        _write_checksums(staging)
        verify_bundle(staging, release_id=release_id)
        staging.chmod(0o755)
    return release_id


def publish(
    releases_folder: Path,
    release_id: str,
    *,
    expected_parent: str | None,
    signing_key: Ed25519PrivateKey,
) -> CurrentPointer:
    """Point CURRENT at a release, if it still points at `expected_parent` (None: at nothing).

    Publishing what is current already changes nothing. Rolling back is publishing the parent.

    Raises:
        ReleaseError: another publisher was first, the bundle does not verify, or CURRENT is signed
            by another key.
    """
    if not re.fullmatch(RELEASE_ID_PATTERN, release_id):
        raise _refuse(
            "publishing a release",
            expected="a release id of 12 hex digits",
            found=repr(release_id),
            next_step="pass an id that `understudy releases list` shows",
        )
    with _publisher_lock(releases_folder):
        current = read_pointer(releases_folder / CURRENT, signing_key.public_key())
        found = current.release_id if current else None
        if found != expected_parent:
            raise _refuse(
                f"publishing the release {release_id}",
                expected=f"CURRENT to be {expected_parent or 'nothing'}",
                found=f"{found or 'nothing'}: another publisher was first",
                next_step="compare with the release that is current now, then publish again",
            )
        manifest = verify_bundle(releases_folder / release_id)
        if manifest.lane != "clean":
            raise _refuse(
                f"publishing the release {release_id}",
                expected="a student of the clean lane",
                found=f"one of the lane {manifest.lane}: it was trained on its own exam",
                next_step="publish a release of another recipe",
            )
        if current and current.release_id == release_id:
            return current
        pointer = sign_pointer(
            CurrentPointer(
                release_id=release_id,
                sequence=current.sequence + 1 if current else 1,
                parent=found,
                checksums_sha256=file_sha256(releases_folder / release_id / CHECKSUMS),
            ),
            signing_key,
        )
        write_text_atomically(releases_folder / CURRENT, pointer.model_dump_json(indent=1) + "\n")
        return pointer


def load_current(releases_folder: Path, public_key: Ed25519PublicKey) -> VerifiedRelease:
    """Return the release CURRENT points at, after verifying the signature and every byte.

    Raises:
        ReleaseError: nothing is published, or anything at all does not verify.
    """
    pointer = _read_current(releases_folder, public_key)
    return _verify(releases_folder / pointer.release_id, pointer)


@contextlib.contextmanager
def copy_current(releases_folder: Path, public_key: Ed25519PublicKey) -> Iterator[VerifiedRelease]:
    """Yield the release CURRENT points at, in a copy that nobody else can write to.

    What was verified is what is loaded, whoever may write to the home meanwhile. The copy is gone
    afterwards: load everything before.

    Raises:
        ReleaseError: nothing is published, anything at all does not verify, or there is no room for
            a copy of the manifest and the adapters.
    """
    pointer = _read_current(releases_folder, public_key)
    source = releases_folder / pointer.release_id
    _verify(source, pointer)  # first: nothing is copied that nobody signed
    with contextlib.ExitStack() as stack:
        try:
            private = tempfile.TemporaryDirectory(prefix="understudy-release-")  # mode 0700
            folder = Path(stack.enter_context(private)) / pointer.release_id
            _copy_files(source, folder)
        except OSError as error:
            raise _refuse(
                f"copying the release {pointer.release_id} to the folder that TMPDIR names",
                expected="readable files, and room for them",
                found=error.strerror or type(error).__name__,
                next_step="make room in that folder, or publish the release again",
            ) from error
        try:
            yield _verify(folder, pointer)
        except ReleaseError as error:
            raise _name_source(error, folder, source) from error


def _read_current(releases_folder: Path, public_key: Ed25519PublicKey) -> CurrentPointer:
    pointer = read_pointer(releases_folder / CURRENT, public_key)
    if pointer is None or not re.fullmatch(RELEASE_ID_PATTERN, pointer.release_id):
        raise _refuse(
            f"reading {releases_folder / CURRENT}",
            expected="a published release",
            found="none" if pointer is None else repr(pointer.release_id),
            next_step="run `understudy run --select releases`",
        )
    return pointer


def _verify(folder: Path, pointer: CurrentPointer) -> VerifiedRelease:
    manifest = verify_bundle(folder, checksums_sha256=pointer.checksums_sha256)
    return VerifiedRelease(
        folder=folder, manifest=manifest, sequence=pointer.sequence, parent=pointer.parent
    )


def _copy_files(source: Path, target: Path) -> None:
    for relative in sorted(list_files(source)):
        copy = target / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / relative, copy)


def _write_checksums(folder: Path) -> None:
    lines = [f"{file_sha256(folder / f)}  {f}\n" for f in sorted(list_files(folder))]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="ascii")


@contextlib.contextmanager
def _publisher_lock(releases_folder: Path) -> Iterator[None]:
    """Hold the lock between reading CURRENT and replacing it. Freed by the kernel if we die."""
    releases_folder.mkdir(parents=True, exist_ok=True)
    with (releases_folder / ".publish.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _name_source(error: ReleaseError, private: Path, source: Path) -> ReleaseError:
    """Return the error with the release's own folder in it: the private copy is soon gone."""

    def rename(told: str) -> str:
        return told.replace(str(private), str(source))

    return _refuse(
        rename(error.attempted),
        expected=rename(error.expected),
        found=rename(error.found),
        next_step=rename(error.next_step),
    )


def _refuse(attempted: str, *, expected: str, found: str, next_step: str) -> ReleaseError:
    return ReleaseError(attempted, expected=expected, found=found, next_step=next_step)
