"""Damaged hours: moved aside, made again from their segments, and what is gone declared.

An hour whose bytes are not those that were written goes to `quarantine/`. Whatever lies there and
is not in the quarantine's table is unsettled: a crash anywhere is mended by the next compaction,
which reads the segments again whose records the hours lack. Records that no segment gives are taken
from the moved file, if that reads, and this is declared; so is what is lost. A segment that comes
back is read again. Belongs here: finding, moving, taking and declaring. Does not belong here: what
is damaged (`hours`), reading segments (`compaction`).
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from assets import tables
from assets.traces.deleting import match_deleted
from assets.traces.groups import WAITING
from assets.traces.hours import (
    can_be_read,
    find_damaged,
    name_hour,
    read_hour,
    scan_hours,
    write_hour,
)
from assets.traces.ledger import (
    hash_segment,
    note_deleted,
    read_ledger,
    read_quarantine,
    tally_segments,
    write_ledger,
    write_quarantine,
)
from serving.files import PRIVATE_MODE, flush_to_disk
from serving.hashing import file_sha256

QUARANTINE = "quarantine"
REBUILT, LOST = "hour_rebuilt", "hour_lost"
LOST_WITH_HOUR, TAKEN = "lost_with_hour", "taken_from_hour"
DECLARED = (LOST_WITH_HOUR, TAKEN)
"""Reasons that are about records of a segment, and not about bytes of it."""

IDENTITY = ["segment", "segment_offset"]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Mended:
    """What became of damaged hours: how many there were, and the records nothing holds any more."""

    hour_count: int = 0
    lost_count: int = 0


def set_aside_damaged(folder: Path) -> list[str]:
    """Move damaged hours to the quarantine; return the unsettled ones there, by name.

    Their names tell the hour, when it was found, and the bytes; the time is what says to
    `understudy status` that this is news.
    """
    target = folder / QUARANTINE
    for path in find_damaged(folder):
        target.mkdir(mode=0o700, exist_ok=True)
        found_at = datetime.now(UTC)
        name = f"hour={read_hour(path):%Y-%m-%dT%H}-{found_at:%Y%m%dT%H%M%S%f}"
        aside = target / f"{name}-{file_sha256(path)[:12]}.parquet"
        path.chmod(PRIVATE_MODE)
        path.rename(aside)
        flush_to_disk(target)
        flush_to_disk(path.parent)
        _LOG.error("the hour %s is damaged: moved to %s, to be made again", path, aside)
    return find_unsettled(folder)


def find_unsettled(folder: Path) -> list[str]:
    """Return the moved hours of which nobody has said yet what became of them, by name."""
    settled = set(read_quarantine(folder)["segment"])
    paths = (folder / QUARANTINE).glob("*.parquet")
    names = sorted(f"{QUARANTINE}/{path.name}" for path in paths)
    return [name for name in names if name not in settled]


def find_short(folder: Path, segments: Mapping[str, Path]) -> dict[str, int]:
    """Return the compacted segments whose records the hours lack, and how many they lack."""
    tallies = tally_segments(folder, segments)
    return {tally.segment: tally.missing_count for tally in tallies if tally.missing_count > 0}


def find_returned(folder: Path, segments: Mapping[str, Path]) -> frozenset[str]:
    """Return the segments that are others than when they were read, or damage of theirs was told.

    Then they were gone, closed, damaged or a copy cut short; now they may hold what was lost. A
    sealed segment never changes its size, so only those of which damage is told are hashed.
    """
    told = read_quarantine(folder).select("segment", "segment_sha256").unique()
    sizes = read_ledger(folder).select("segment", "size_bytes")
    return frozenset(
        segment
        for segment, sha256 in told.iter_rows()
        if segment in segments and hash_segment(segments[segment]) not in {None, sha256}
    ) | frozenset(
        segment
        for segment, size in sizes.iter_rows()
        if segment in segments and segments[segment].stat().st_size != size
    )


def settle(
    folder: Path,
    unsettled: Sequence[str],
    segments: Mapping[str, Path],
    returned: Collection[str],
    tombstones: pl.DataFrame,
) -> Mended:
    """Say what became of damaged hours, now that all segments which open have been read.

    What no segment gives is taken from the moved files. Then nothing in these is needed any more,
    and if there is a deletion their bytes go. It waits while a segment that could hold the rest
    cannot be read, and without a single segment: their volume is more likely away than empty.
    """
    closed = find_closed(folder, segments)
    redeclare(folder, frozenset(returned) - closed, segments)
    for name in unsettled:
        take_from(folder, name, segments, closed, tombstones)
    short = find_short(folder, segments) if unsettled else {}
    is_waiting = bool(short) and (not segments or not closed.isdisjoint(short))
    mended = Mended() if is_waiting else declare_mended(folder, unsettled, short, segments)
    if not tombstones.is_empty():
        purge_set_aside(folder, kept=unsettled if is_waiting else ())
    return mended


def find_closed(folder: Path, segments: Collection[str]) -> frozenset[str]:
    """Return the segments that are there and that a later run may still read.

    One that was closed once and is removed since has its row still, and nothing to wait for.
    """
    told = read_quarantine(folder).filter(pl.col("reason").str.contains(WAITING))
    return frozenset(told["segment"]) & {*segments}


def take_from(
    folder: Path,
    name: str,
    segments: Mapping[str, Path],
    closed: Collection[str],
    tombstones: pl.DataFrame,
) -> None:
    """Put back into the hour what only its moved file holds, where that reads from end to end.

    Nobody vouches for those bytes: of a segment no more rows are taken than it lacks, none that is
    of another hour, and none that a deletion named or took. That they were taken is declared;
    what a deletion keeps back is noted, for it is not lost.
    """
    path, short = folder / name, find_short(folder, segments)
    if not short or not can_be_read(path):
        return
    hour = datetime.fromisoformat(path.name[5:18]).replace(tzinfo=UTC)  # hour=YYYY-MM-DDTHH-...
    target = name_hour(folder, hour)
    held = scan_hours([target] if target.exists() else [])
    deleted = read_ledger(folder).select("segment", segment_offset="deleted_offsets")
    deleted = deleted.explode("segment_offset", empty_as_null=False, keep_nulls=False)
    is_of_hour = pl.col("asked_at").dt.truncate("1h").eq(hour).fill_null(value=True)
    rows = scan_hours([path]).filter(
        pl.col("segment").is_in(list(short)) & pl.col("trace_id").is_not_null() & is_of_hour
    )
    for known in (held, deleted.lazy()):
        rows = rows.join(known.select(IDENTITY), on=IDENTITY, how="anti")
    is_deleted = match_deleted(tombstones, tables.STORED_TRACES)
    noted = _note_dropped(folder, rows.filter(is_deleted), short)
    rows = rows.filter(~is_deleted)
    counts = _count_rows(rows)
    taken = [one for one, count in counts.items() if count + noted.get(one, 0) <= short[one]]
    if not taken:
        return
    _declare_taken(folder, taken, segments, closed)
    write_hour(target, pl.concat([held, rows.filter(pl.col("segment").is_in(taken))]))
    _LOG.error("records of %s were taken from the damaged %s: no segment holds them", taken, path)


def _note_dropped(folder: Path, dropped: pl.LazyFrame, short: Mapping[str, int]) -> dict[str, int]:
    """Note in the ledger what a deletion takes out of a moved hour; return how many by segment."""
    counts = {one: count for one, count in _count_rows(dropped).items() if count <= short[one]}
    if counts:
        found = dropped.filter(pl.col("segment").is_in(list(counts))).select(IDENTITY).collect()
        offsets: dict[str, list[int]] = {}
        for segment, offset in found.iter_rows():
            offsets.setdefault(segment, []).append(offset)
        write_ledger(folder, note_deleted(read_ledger(folder), offsets))
    return counts


def _count_rows(rows: pl.LazyFrame) -> dict[str, int]:
    """Return the rows by segment, of those where each has its own offset; {} if any is unreadable.

    Every column is read: damage shows here, before an hour is rewritten.
    """
    columns = pl.exclude(*IDENTITY).null_count()
    counts = rows.group_by("segment").agg(
        pl.len().alias("rows"), pl.col("segment_offset").n_unique().alias("offsets"), columns
    )
    try:
        found = counts.collect(engine="streaming")
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return {}
    return dict(found.filter(pl.col("rows") == pl.col("offsets")).select("segment", "rows").rows())


def _declare_taken(
    folder: Path, taken: Collection[str], segments: Mapping[str, Path], closed: Collection[str]
) -> None:
    """Write it before the rows are there: a crash in between declares too much, not too little."""
    told = read_quarantine(folder)
    is_known = pl.col("segment").is_in(list(taken)) & (pl.col("reason") == TAKEN)
    rows = [
        _describe(segment, TAKEN, 0, None if segment in closed else segments.get(segment))
        for segment in taken
    ]
    write_quarantine(folder, pl.concat([told.filter(~is_known), _tabulate(rows)]))


def redeclare(folder: Path, returned: Collection[str], segments: Mapping[str, Path]) -> None:
    """Declare anew what is lost of segments that came back and have been read.

    Where the segment is damaged, rows that were taken from an hour may still stand for its own.
    """
    if not returned:
        return
    told = read_quarantine(folder)
    is_old = pl.col("segment").is_in(list(returned)) & pl.col("reason").is_in(DECLARED)
    old, kept = told.filter(is_old), told.filter(~is_old)
    damaged = {*kept["segment"]} & {*old.filter(reason=TAKEN)["segment"]}
    rows = [_describe(segment, TAKEN, 0, segments[segment]) for segment in sorted(damaged)]
    for tally in tally_segments(folder, segments):
        counts = old.filter(segment=tally.segment)["lost_count"]
        if counts.len() and (lost := tally.missing_count + int(counts.sum())) > 0:
            rows.append(_describe(tally.segment, LOST_WITH_HOUR, lost, segments[tally.segment]))
    found = pl.concat([kept, _tabulate(rows)])
    if found.filter(reason=LOST_WITH_HOUR).is_empty():
        is_lost = pl.col("reason") == LOST
        found = found.with_columns(
            reason=pl.when(is_lost).then(pl.lit(REBUILT)).otherwise("reason"),
            lost_count=pl.when(is_lost).then(0).otherwise("lost_count"),
        )
    write_quarantine(folder, found)


def declare_mended(
    folder: Path,
    unsettled: Collection[str],
    lost: Mapping[str, int],
    segments: Mapping[str, Path],
) -> Mended:
    """Write what became of unsettled hours: rebuilt whole, or what is to be had nowhere."""
    rows = [
        _describe(name, LOST if lost else REBUILT, None if lost else 0, folder / name)
        for name in unsettled
    ]
    rows += [
        _describe(segment, LOST_WITH_HOUR, count, segments.get(segment))
        for segment, count in lost.items()
    ]
    if rows:
        write_quarantine(folder, pl.concat([read_quarantine(folder), _tabulate(rows)]))
    total = sum(lost.values())
    if total:
        _LOG.error("%d records of %d damaged hours are lost", total, len(unsettled))
    return Mended(hour_count=len(unsettled), lost_count=total)


def find_set_aside(folder: Path) -> list[Path]:
    """Return the moved files whose bytes are still there."""
    found = sorted((folder / QUARANTINE).glob("*.parquet"))
    return [path for path in found if path.stat().st_size]


def purge_set_aside(folder: Path, *, kept: Collection[str]) -> None:
    """Remove the damaged files: what a deletion names may stand in bytes that nobody can read.

    Of unsettled ones (`kept`) the empty file stays, whose name says that an hour is to be mended.
    """
    for path in sorted((folder / QUARANTINE).glob("*.parquet")):
        if f"{QUARANTINE}/{path.name}" in kept:
            path.write_bytes(b"")
        else:
            path.unlink()


def _describe(name: str, reason: str, lost_count: int | None, path: Path | None) -> dict[str, Any]:
    """Return a row on a whole file; size 0 and no hash where it is not there or does not open."""
    return {
        "segment": name,
        "segment_offset": 0,
        "size_bytes": path.stat().st_size if path else 0,
        "reason": reason,
        "lost_count": lost_count,
        "segment_sha256": path and hash_segment(path),
    }


def _tabulate(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=tables.QUARANTINED_FRAMES)
