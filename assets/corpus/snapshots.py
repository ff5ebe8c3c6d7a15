"""Index snapshots that nothing names any more: which of them go, and removing them.

`vector_index` leaves a folder for every state of the corpus, and none goes by itself. Belongs here:
what lies in the index folder, what of it goes, removing it. Does not belong here: who names a
snapshot (`orchestration/pruning`), writing one (`serving/pipeline/indexing`).
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from serving.files import REMOVED, STAGING, set_aside
from serving.hashing import ID_HEX_DIGITS

KILLED_AFTER = timedelta(days=1)
"""A build that wrote nothing for this long was killed: one of 100,000 chunks takes two minutes."""

UNDER_WAY = timedelta(hours=1)
"""A snapshot that was replaced, or built, within it stays even with 0 days: a run that is under way
may be about to name it."""

_FINGERPRINT = re.compile(rf"[0-9a-f]{{{ID_HEX_DIGITS}}}")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A snapshot on disk."""

    path: Path
    built_at: datetime
    """When a run last built it, or found that it need not be built."""
    size_bytes: int

    @property
    def fingerprint(self) -> str:
        """Its identity, which is the name of its folder."""
        return self.path.name


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """What a build or a removal left when it was killed."""

    path: Path
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """What stays, and why; what goes."""

    kept: tuple[tuple[Snapshot, str], ...]
    unnamed: tuple[Snapshot, ...]
    leftovers: tuple[Leftover, ...]

    @property
    def freed_bytes(self) -> int:
        """How much room all that goes takes."""
        sizes = [snapshot.size_bytes for snapshot in self.unnamed]
        return sum(sizes) + sum(leftover.size_bytes for leftover in self.leftovers)


def list_snapshots(folder: Path) -> list[Snapshot]:
    """Return the snapshots in the index folder, the oldest first; anything else is nobody's."""
    found = []
    for path in _list(folder):
        with contextlib.suppress(FileNotFoundError):  # another process removes it just now
            if _FINGERPRINT.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                built_at, size = _read_time(path), _measure(path)
                found.append(Snapshot(path=path, built_at=built_at, size_bytes=size))
    return sorted(found, key=lambda snapshot: (snapshot.built_at, snapshot.fingerprint))


def list_leftovers(folder: Path, *, now: datetime) -> list[Leftover]:
    """Return removals that were not finished, and builds that wrote nothing for a day."""
    removals = [path for path in _list(folder) if path.name.endswith(REMOVED)]
    found = []
    for path in (*removals, *_list(folder / STAGING)):
        with contextlib.suppress(FileNotFoundError):  # finished just now, by whoever made it
            is_left = path in removals or now - _find_last_write(path) > KILLED_AFTER
            if is_left and path.is_dir() and not path.is_symlink():
                found.append(Leftover(path=path, size_bytes=_measure(path)))
    return found


def plan_pruning(
    snapshots: Sequence[Snapshot],
    leftovers: Sequence[Leftover],
    *,
    named_by: Mapping[str, Sequence[str]],
    keep_days: int,
    now: datetime,
) -> PruningPlan:
    """Return which snapshots stay: those that something names, and those just replaced.

    A run or a server may have opened the one that was current until the next was built. The days
    therefore count from there: the age of a snapshot itself says nothing of when it was last used.

    Args:
        snapshots: those on disk, the oldest first.
        leftovers: they go, whatever their age.
        named_by: who names a fingerprint.
        keep_days: a snapshot that was replaced less than so many days ago stays.
        now: the time that ages are counted to.
    """
    spared = max(timedelta(days=keep_days), UNDER_WAY)
    ends = [newer.built_at for _, newer in pairwise(snapshots)]
    ends += [snapshot.built_at for snapshot in snapshots[-1:]]
    kept, unnamed = [], []
    for snapshot, end in zip(snapshots, ends, strict=True):
        if names := named_by.get(snapshot.fingerprint):
            kept.append((snapshot, f"named by {', '.join(names)}"))
        elif now - end < spared:
            told = f"{keep_days} days" if keep_days else "an hour"
            kept.append((snapshot, f"replaced less than {told} ago"))
        else:
            unnamed.append(snapshot)
    return PruningPlan(kept=tuple(kept), unnamed=tuple(unnamed), leftovers=tuple(leftovers))


def prune(plan: PruningPlan) -> int:
    """Remove what goes by the plan and return how many bytes that freed.

    Killed in between, it leaves whole snapshots and leftovers, which the next one removes.
    """
    freed = sum(_remove(snapshot) for snapshot in plan.unnamed)
    for leftover in plan.leftovers:
        _delete(leftover.path)
        freed += leftover.size_bytes
    return freed


def mark_as_current(snapshot: Path) -> None:
    """Let a snapshot count as built now, if it is there: a run is about to name it again."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(snapshot)


def _remove(snapshot: Snapshot) -> int:
    """Take a snapshot out of sight at once, then delete it; 0 where another process was faster."""
    try:
        aside = set_aside(snapshot.path)
    except FileNotFoundError:
        return 0
    if _read_time(aside) != snapshot.built_at:  # a run has found it current since the plan was made
        with contextlib.suppress(OSError):  # or has built it anew meanwhile
            aside.rename(snapshot.path)
            return 0
    _delete(aside)
    return snapshot.size_bytes


def _delete(folder: Path) -> None:
    def stop(_call: object, _path: str, caught: tuple[type, BaseException, object]) -> None:
        if not isinstance(caught[1], FileNotFoundError):  # another process deletes it too
            raise caught[1]

    shutil.rmtree(folder, onerror=stop)


def _list(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        yield from sorted(folder.iterdir())


def _find_last_write(folder: Path) -> datetime:
    times = [datetime.min.replace(tzinfo=UTC)]
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            times.append(_read_time(path))
    return max(times)


def _read_time(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _measure(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            size += path.lstat().st_size
    return size
