"""Atomic writes: a reader sees the old file or the new one, never half of either.

Belongs here: the one way to write a file or move a folder into place. Does not belong here:
formats.
"""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
NOT_WRITABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
"""What the system says of a place with no room, and of one that this user may not write."""

STAGING = ".tmp"
REMOVED = ".removed"
"""Ends the name of a folder whose removal has begun; what is left of it is nobody's."""
STAGING_ATTEMPTS = 100
FILE_MODE, FOLDER_MODE = 0o644, 0o755  # before the umask; tempfile's own are private to the writer
PRIVATE_MODE = 0o600  # of what holds users' words


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path; on success flush it and rename it to `target`, on error remove it.

    The temporary file lies in `.tmp/` beside the target: on the same file system, and matched by no
    reader's glob. Raises `OSError` (disk full, read-only) with nothing left behind.
    """
    temporary = _stage(target, lambda path: path.touch(mode=FILE_MODE))
    try:
        yield temporary
        flush_to_disk(temporary)
        temporary.replace(target)
        flush_to_disk(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
        _leave(temporary.parent)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder and rename it to `target` on success.

    If `target` already exists, or another writer is first, theirs is kept and ours dropped: folders
    written this way are content-addressed, so equal names hold equal content.
    """
    temporary = _stage(target, lambda path: path.mkdir(mode=FOLDER_MODE))
    try:
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            flush_to_disk(path)
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
        flush_to_disk(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _leave(temporary.parent)


def _stage(target: Path, make: Callable[[Path], None]) -> Path:
    """Make a temporary beside `target`; another writer may remove the staging folder under us."""
    temporary = target.parent / STAGING / f"{target.name}.{uuid.uuid4().hex}"
    for _ in range(STAGING_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            temporary.parent.mkdir(parents=True, exist_ok=True)
            make(temporary)
            return temporary
    temporary.parent.mkdir(parents=True, exist_ok=True)  # raises what stands in the way
    make(temporary)
    return temporary


def _leave(staging: Path) -> None:
    with contextlib.suppress(OSError):  # another writer's temporary is in it
        staging.rmdir()


def set_aside(folder: Path) -> Path:
    """Take a folder out of sight at once, to be deleted: return where it is now.

    Raises:
        FileNotFoundError: another process was faster.
    """
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}{REMOVED}")
    folder.rename(aside)
    flush_to_disk(aside.parent)
    return aside


def write_text_atomically(target: Path, text: str) -> None:
    """Write UTF-8 text to `target` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def keep_private(path: Path) -> None:
    """Make a file its owner's alone, and make it if it is not there.

    For stores that are opened and not replaced; SQLite gives the files beside a store its mode. A
    file that another user owns, or a folder that takes none, stays as it is: opening it says so.
    """
    with contextlib.suppress(OSError):
        path.touch(mode=PRIVATE_MODE, exist_ok=False)
        return
    with contextlib.suppress(OSError):
        path.chmod(path.stat().st_mode & 0o700)


def flush_to_disk(path: Path) -> None:
    """Fsync a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
