"""Verifying a bundle: every byte is the one SHA256SUMS names, every file one the manifest means.

Belongs here: what may lie in a bundle, and the checks of it. Does not belong here: building and
publishing (`bundle`), signatures (`signing`).
"""

import hashlib
import os
import re
import stat
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from serving.errors import ReleaseError
from serving.hashing import file_sha256, folder_sha256
from serving.models.prompted_student import PROMPT_FILE
from serving.releases.manifest import ReleaseManifest, StudentEntry, hash_stored

MANIFEST, CHECKSUMS, ADAPTERS = "manifest.json", "SHA256SUMS", "adapters"
WEIGHTS_SUFFIX = ".safetensors"
ALLOWED_SUFFIXES = frozenset(
    {WEIGHTS_SUFFIX, ".json", ".yaml", ".yml", ".parquet", ".md", ".txt", ".jinja", ".html", ".svg"}
)
"""An allow list: pickles (.bin .pt .pkl .ckpt …) and code are refused because they are not on it.
"""
_CHECKSUM_LINE = re.compile(r"(?P<sha256>[0-9a-f]{64})  (?P<path>[A-Za-z0-9@+_./-]{1,512})")


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
    files = list_files(folder)
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
        check_adapter(folder / ADAPTERS / student.adapter, student)
    return manifest


def check_adapter(folder: Path, student: StudentEntry) -> None:
    """Refuse an adapter folder that is not the one whose hash a student's entry states."""
    files = list_files(folder)
    if student.is_trained and not any(PurePosixPath(f).suffix == WEIGHTS_SUFFIX for f in files):
        raise _untrusted(folder, f"weights in a {WEIGHTS_SUFFIX} file", str(sorted(files)))
    if not student.is_trained and PROMPT_FILE not in files:
        raise _untrusted(folder, f"a file {PROMPT_FILE}", str(sorted(files)))
    found = folder_sha256(folder)
    if found != student.adapter_sha256:
        raise _untrusted(folder, f"an adapter with folder sha256 {student.adapter_sha256}", found)


def list_files(folder: Path) -> set[str]:
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


def _untrusted(folder: Path, expected: str, found: str) -> ReleaseError:
    return ReleaseError(
        f"verifying {folder}",
        expected=expected,
        found=found,
        next_step="do not serve it; remove it, then build the release again from its sources",
    )
