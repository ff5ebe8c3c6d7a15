"""Release bundles: built content-addressed, published by compare-and-swap, verified before use.

`releases/<release_id>/` holds manifest.json, adapters/<name>/… and SHA256SUMS; `releases/CURRENT`
is the signed pointer. The signature covers SHA256SUMS, which covers every file. Belongs here:
building, publishing, verifying. Does not belong here: loading models (`engine`), keys (`signing`).
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ValidationError

from serving.errors import ReleaseError
from serving.files import atomic_folder, write_text_atomically
from serving.hashing import file_sha256, folder_sha256
from serving.models.prompted_student import PROMPT_FILE
from serving.releases.manifest import (
    RELEASE_ID_PATTERN,
    ReleaseManifest,
    StudentEntry,
    hash_stored,
)
from serving.releases.signing import (
    CurrentPointer,
    ensure_signing_key,
    load_public_key,
    read_pointer,
    sign_pointer,
)

__all__ = [
    "CurrentPointer",
    "ReleaseManifest",
    "VerifiedRelease",
    "build_bundle",
    "ensure_signing_key",
    "load_current",
    "load_public_key",
    "publish",
    "verify_bundle",
]

CURRENT, MANIFEST, CHECKSUMS, ADAPTERS = "CURRENT", "manifest.json", "SHA256SUMS", "adapters"
WEIGHTS_SUFFIX = ".safetensors"
ALLOWED_SUFFIXES = frozenset(
    {WEIGHTS_SUFFIX, ".json", ".yaml", ".yml", ".parquet", ".md", ".txt", ".jinja", ".html", ".svg"}
)
"""An allow list: pickles (.bin .pt .pkl .ckpt …) and code are refused because they are not on it.
"""
_CHECKSUM_LINE = re.compile(r"(?P<sha256>[0-9a-f]{64})  (?P<path>[A-Za-z0-9@+_./-]{1,512})")


@dataclass(frozen=True, kw_only=True)
class VerifiedRelease:
    """A bundle whose every byte is the one that was signed."""

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
            _copy_adapter(adapters[name], copied)
            _check_adapter(copied, student)
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
            next_step="pass what `build_bundle` returned",
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
    pointer = read_pointer(releases_folder / CURRENT, public_key)
    if pointer is None or not re.fullmatch(RELEASE_ID_PATTERN, pointer.release_id):
        raise _refuse(
            f"reading {releases_folder / CURRENT}",
            expected="a published release",
            found="none" if pointer is None else repr(pointer.release_id),
            next_step="run `understudy run --select releases`",
        )
    folder = releases_folder / pointer.release_id
    manifest = verify_bundle(folder, checksums_sha256=pointer.checksums_sha256)
    return VerifiedRelease(
        folder=folder, manifest=manifest, sequence=pointer.sequence, parent=pointer.parent
    )


def verify_bundle(
    folder: Path, *, checksums_sha256: str | None = None, release_id: str | None = None
) -> ReleaseManifest:
    """Check a bundle against its SHA256SUMS, its manifest and its own name.

    Args:
        folder: the bundle.
        checksums_sha256: what SHA256SUMS must hash to, when a signature says so.
        release_id: what the release must be; the folder's name unless it is still being built.

    Raises:
        ReleaseError: a file is missing, extra, changed, linked or not allowed, or the manifest does
            not describe what is there.
    """
    files = _list_files(folder)
    if CHECKSUMS not in files:
        raise _untrusted(folder, f"a file {CHECKSUMS}", "none")
    sums = (folder / CHECKSUMS).read_bytes()
    found = hashlib.sha256(sums).hexdigest()
    if checksums_sha256 is not None and found != checksums_sha256:
        raise _untrusted(folder, f"{CHECKSUMS} with sha256 {checksums_sha256}", found)
    stated = _parse_checksums(folder, sums)
    if set(stated) != files - {CHECKSUMS}:
        missing, extra = sorted(set(stated) - files), sorted(files - {CHECKSUMS} - set(stated))
        raise _untrusted(
            folder, f"exactly the files of {CHECKSUMS}", f"missing {missing}, extra {extra}"
        )
    for path, expected in stated.items():
        actual = file_sha256(folder / path)
        if actual != expected:
            raise _untrusted(folder, f"{path} with sha256 {expected}", actual)
    return _read_manifest(folder, set(stated), release_id or folder.name)


def _read_manifest(folder: Path, files: set[str], release_id: str) -> ReleaseManifest:
    if MANIFEST not in files:
        raise _untrusted(folder, f"a file {MANIFEST}", "none")
    stored = (folder / MANIFEST).read_bytes()
    try:
        manifest = ReleaseManifest.model_validate_json(stored)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        found = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise _untrusted(folder, "a manifest this version of the server reads", found) from error
    identity = hash_stored(stored)
    if not release_id == manifest.release_id == identity:
        found = f"folder {release_id}, manifest {manifest.release_id}, content {identity}"
        raise _untrusted(folder, "one release id in name, manifest and content", found)
    expected = {f"{ADAPTERS}/{s.adapter}" for s in manifest.students.values()} | {"."}
    stray = {str(PurePosixPath(f).parent) for f in files} - expected
    if stray or files - {MANIFEST} != {f for f in files if f.startswith(f"{ADAPTERS}/")}:
        raise _untrusted(folder, "only the manifest and its students' adapters", str(sorted(files)))
    for student in manifest.students.values():
        _check_adapter(folder / ADAPTERS / student.adapter, student)
    return manifest


def _check_adapter(folder: Path, student: StudentEntry) -> None:
    files = _list_files(folder)
    if student.is_trained and not any(PurePosixPath(f).suffix == WEIGHTS_SUFFIX for f in files):
        raise _untrusted(folder, f"weights in a {WEIGHTS_SUFFIX} file", str(sorted(files)))
    if not student.is_trained and PROMPT_FILE not in files:
        raise _untrusted(folder, f"a file {PROMPT_FILE}", str(sorted(files)))
    found = folder_sha256(folder)
    if found != student.adapter_sha256:
        raise _untrusted(folder, f"an adapter with folder sha256 {student.adapter_sha256}", found)


def _list_files(folder: Path) -> set[str]:
    """Return the relative paths below `folder`; refuse links, devices and kinds not allowed."""
    if folder.is_symlink() or not folder.is_dir():
        raise _untrusted(folder, "a folder", "a link" if folder.is_symlink() else "none")
    files: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=False):
        for name in (*folders, *names):
            path = Path(parent) / name
            mode = path.lstat().st_mode
            relative = path.relative_to(folder).as_posix()
            if stat.S_ISLNK(mode):
                raise _untrusted(folder, "no symbolic links", relative)
            if stat.S_ISDIR(mode):
                continue
            if not stat.S_ISREG(mode):
                raise _untrusted(folder, "regular files only", relative)
            if path.suffix not in ALLOWED_SUFFIXES and relative != CHECKSUMS:
                allowed = " ".join(sorted(ALLOWED_SUFFIXES))
                raise _untrusted(folder, f"only files of the kinds {allowed}", relative)
            files.add(relative)
    return files


def _parse_checksums(folder: Path, sums: bytes) -> dict[str, str]:
    stated: dict[str, str] = {}
    for line in sums.decode("ascii", "replace").splitlines():
        match = _CHECKSUM_LINE.fullmatch(line)
        path = PurePosixPath(match["path"]) if match else None
        is_inside = path is not None and not path.is_absolute() and ".." not in path.parts
        if match is None or not is_inside or match["path"] in stated:
            raise _untrusted(
                folder, f"lines `<sha256>  <relative path>` in {CHECKSUMS}", repr(line)
            )
        stated[match["path"]] = match["sha256"]
    return stated


def _copy_adapter(source: Path, target: Path) -> None:
    for relative in sorted(_list_files(source)):
        copy = target / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / relative, copy)


def _write_checksums(folder: Path) -> None:
    lines = [f"{file_sha256(folder / f)}  {f}\n" for f in sorted(_list_files(folder))]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="ascii")


@contextlib.contextmanager
def _publisher_lock(releases_folder: Path) -> Iterator[None]:
    """Hold the lock between reading CURRENT and replacing it. Freed by the kernel if we die."""
    releases_folder.mkdir(parents=True, exist_ok=True)
    with (releases_folder / ".publish.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _untrusted(folder: Path, expected: str, found: str) -> ReleaseError:
    return _refuse(
        f"verifying {folder}",
        expected=expected,
        found=found,
        next_step="do not serve it; remove it, then build the release again from its sources",
    )


def _refuse(attempted: str, *, expected: str, found: str, next_step: str) -> ReleaseError:
    return ReleaseError(attempted, expected=expected, found=found, next_step=next_step)
