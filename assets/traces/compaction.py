"""Compaction: sealed segments -> hourly Parquet, every record exactly once by (segment, offset).

A segment is compacted when the ledger names it. An hour is rewritten without the rows of the
segments at hand and then with them, and the ledger is written last: a crash anywhere is mended by
the next run, and nothing is stored twice. Belongs here: that order. Does not belong here: bytes
(`frames`), typing (`records`), which traces must go (`deleting`), what is noted of segments
(`noting`), hours that are damaged (`mending`).
"""

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import cast

import polars as pl

from assets import tables
from assets.traces.deleting import blank_noted, blank_records, delete_stored, mark_deleted
from assets.traces.frames import Damage, Frames
from assets.traces.groups import UNSTORED, read_ahead
from assets.traces.hours import (
    ROW_GROUP_ROWS,
    count_rows,
    keep_columns_known,
    list_hours,
    name_hour,
    read_hour,
    scan_hours,
    write_hour,
)
from assets.traces.ledger import (
    read_ledger,
    tally_segments,
)
from assets.traces.mending import (
    find_returned,
    find_short,
    set_aside_damaged,
    settle,
)
from assets.traces.noting import note_read
from serving.errors import TraceError

GROUP_BYTES = 64 * 1024 * 1024
"""Segments read at once: one as servers seal them. Two groups are in memory, for the next is read
while one is laid aside; the rest of an hour streams past."""

ROUND_GROUPS = 32
"""Groups read before hours are rewritten: 2 GB of segments, whose rows wait in a scratch folder.
Rewriting after every group would take as long as all the rest, where hours are of many groups."""

SCRATCH = ".merging"


@dataclass(frozen=True, kw_only=True)
class Compaction:
    """What one compaction did."""

    segment_count: int
    record_count: int
    deleted_count: int
    quarantined_count: int
    damaged_hour_count: int = 0
    lost_count: int = 0


def compact_segments(
    segments: Sequence[Path], folder: Path, *, tombstones: pl.DataFrame
) -> Compaction:
    """Bring the hours up to date with sealed segments and with what has to be gone.

    A damaged hour is set aside, and the segments whose records it held are read again.

    Args:
        segments: sealed ones; those in the ledger are not read again.
        folder: where hours, ledger and quarantine lie.
        tombstones: rows of `tables.DELETIONS`.

    Raises:
        TraceError: the ledger cannot be read, or another compaction runs.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _hold_alone(folder):
        _clear_scratch(folder)
        by_name = _index(segments)
        unsettled = set_aside_damaged(folder)
        keep_columns_known(folder)
        blank_noted(folder, by_name)
        deleted = delete_stored(folder, list_hours(folder), by_name, tombstones)
        short = find_short(folder, by_name) if unsettled else {}
        again = find_returned(folder, by_name)
        known = set(read_ledger(folder)["segment"]) - set(short) - again
        waiting = sorted((path for path in segments if path.name not in known), key=_order)
        total = Compaction(
            segment_count=0, record_count=0, deleted_count=deleted, quarantined_count=0
        )
        groups = [*_group(waiting)]
        for start in range(0, len(groups), ROUND_GROUPS):
            chosen = groups[start : start + ROUND_GROUPS]
            total = _add(total, _compact_round(chosen, folder, tombstones))
        mended = settle(folder, unsettled, by_name, again, tombstones)
        return replace(total, damaged_hour_count=mended.hour_count, lost_count=mended.lost_count)


def list_hourly_files(folder: Path) -> pl.DataFrame:
    """Return rows of `tables.HOURLY_RECORDS`."""
    rows = [
        {
            "hour": read_hour(path),
            "path": path.relative_to(folder).as_posix(),
            "row_count": count_rows(path),
            "size_bytes": path.stat().st_size,
        }
        for path in list_hours(folder)
    ]
    return pl.DataFrame(rows, schema=tables.HOURLY_RECORDS)


def find_miscounted(folder: Path, segments: Sequence[Path]) -> list[str]:
    """Return the segments whose records are not stored exactly once.

    Deleted ones aside, and those that were declared lost with a damaged hour.
    """
    tallies = tally_segments(folder, _index(segments))
    return [tally.segment for tally in tallies if tally.missing_count or not tally.is_once]


def _compact_round(
    groups: Sequence[Sequence[Path]], folder: Path, tombstones: pl.DataFrame
) -> Compaction:
    """Compact groups of segments and write every hour once, however many groups it spreads over."""
    paths = _index([path for group in groups for path in group])
    read: list[Frames] = []
    damages: list[Damage] = []
    parts: dict[datetime, list[pl.LazyFrame]] = {}
    deleted: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory(dir=folder / SCRATCH) as scratch:
        for number, (rows, damaged, frames) in enumerate(read_ahead(groups), start=1):
            is_deleted = mark_deleted(rows, tombstones)
            for segment, gone in _redact(paths, rows.filter(is_deleted)).items():
                deleted.setdefault(segment, []).extend(gone)
            read, damages = read + frames, damages + damaged
            aside = Path(scratch, f"{number}") if number < len(groups) else None
            for hour, part in _split_by_hour(rows.filter(~is_deleted), aside):
                parts.setdefault(hour, []).append(part)
        del rows
        for hour in sorted(parts):
            _merge_hour(name_hour(folder, hour), pl.concat(parts[hour]))
    note_read(folder, read, damages, deleted)
    deleted_count = sum(map(len, deleted.values()))
    untimed_count = sum(damage.reason in UNSTORED for damage in damages)
    return Compaction(
        segment_count=len(read),
        record_count=sum(len(frames.offsets) for frames in read) - untimed_count - deleted_count,
        deleted_count=deleted_count,
        quarantined_count=len(damages),
    )


def _clear_scratch(folder: Path) -> None:
    """Empty the folder of what waits to be merged: a killed run's rows may be deleted by now."""
    shutil.rmtree(folder / SCRATCH, ignore_errors=True)
    (folder / SCRATCH).mkdir(mode=0o700, exist_ok=True)


def _redact(segments: Mapping[str, Path], deleted: pl.DataFrame) -> dict[str, list[int]]:
    """Blank records in their segments; return their offsets by segment."""
    gone = {
        str(segment): rows["segment_offset"].to_list()
        for (segment,), rows in deleted.group_by("segment")
    }
    for segment, offsets in gone.items():
        blank_records(segments[segment], offsets)
    return gone


def _split_by_hour(
    rows: pl.DataFrame, aside: Path | None
) -> Iterator[tuple[datetime, pl.LazyFrame]]:
    """Yield the rows of each hour: laid aside in that folder, or else as they are in memory."""
    for (hour,), part in rows.group_by("hour", maintain_order=True):
        told = cast("datetime", hour)
        if aside is None:
            yield told, part.drop("hour").lazy()
            continue
        aside.mkdir(mode=0o700, exist_ok=True)
        path = aside / f"{told:%Y%m%dT%H}.parquet"
        part.drop("hour").write_parquet(path, compression="lz4", row_group_size=ROW_GROUP_ROWS)
        yield told, scan_hours([path])


def _merge_hour(path: Path, part: pl.LazyFrame) -> None:
    """Rewrite an hour: what it held beside these very records, then them."""
    fresh = part
    if path.exists():
        ours = part.select("segment", "segment_offset")
        held = scan_hours([path]).join(ours, on=["segment", "segment_offset"], how="anti")
        fresh = pl.concat([held, part])
    write_hour(path, fresh)


def _order(path: Path) -> tuple[str, str]:
    """Sort segments by their start and not by process id: neighbours share hours."""
    return (path.name.split("-", 1)[-1], path.name)


def _group(paths: Sequence[Path]) -> Iterator[list[Path]]:
    group: list[Path] = []
    size = 0
    for path in paths:
        if group and size + path.stat().st_size > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(path)
        size += path.stat().st_size
    if group:
        yield group


def _index(segments: Sequence[Path]) -> dict[str, Path]:
    return {path.name: path for path in segments}


def _add(one: Compaction, other: Compaction) -> Compaction:
    sums = {name: value + asdict(other)[name] for name, value in asdict(one).items()}
    return Compaction(**sums)


@contextlib.contextmanager
def _hold_alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two compactions at once would undo each other's hours."""
    with (folder / "compaction.lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TraceError(
                f"compacting the segments into {folder}",
                expected="to be the only compaction",
                found="another process that holds compaction.lock",
                next_step="wait until it is done; it takes the same segments",
            ) from None
        yield
