"""Compaction: sealed segments -> hourly Parquet, every record exactly once by (segment, offset).

A segment is compacted when the ledger names it. An hour is rewritten without the rows of the
segments at hand and then with them, and the ledger is written last: a crash anywhere is mended by
the next run, and nothing is stored twice. Belongs here: that order, the ledger, the quarantine.
Does not belong here: bytes (`frames`), typing (`records`), which traces must go (`deleting`).
"""

import contextlib
import fcntl
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from assets import tables
from assets.traces.deleting import delete_stored, mark_deleted
from assets.traces.frames import Damage, Frames, read_frames, redact_frames
from assets.traces.hours import (
    count_rows,
    keep_columns_known,
    list_hours,
    name_hour,
    read_hour,
    scan_hours,
    write_hour,
)
from assets.traces.records import tabulate_payloads
from serving.errors import TraceError
from serving.files import PRIVATE_MODE, atomic_path

GROUP_BYTES = 128 * 1024 * 1024
"""Segments read before hours are rewritten: two segments as servers seal them. What a group holds
is what is in memory; the rest of an hour streams past."""

LEDGER = pl.Schema(
    {
        "segment": pl.String(),
        "size_bytes": pl.Int64(),
        "record_count": pl.Int64(),
        "quarantined_count": pl.Int64(),
    }
)


@dataclass(frozen=True, kw_only=True)
class Compaction:
    """What one compaction did."""

    segment_count: int
    record_count: int
    deleted_count: int
    quarantined_count: int


def compact_segments(
    segments: Sequence[Path], folder: Path, *, tombstones: pl.DataFrame
) -> Compaction:
    """Bring the hours up to date with sealed segments and with what has to be gone.

    Args:
        segments: sealed ones; those in the ledger are not read again.
        folder: where hours, ledger and quarantine lie.
        tombstones: rows of `tables.DELETIONS`.

    Raises:
        TraceError: the ledger cannot be read, or another compaction runs.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _hold_alone(folder):
        ledger = read_ledger(folder)
        keep_columns_known(folder)
        deleted = delete_stored(folder, list_hours(folder), _index(segments), tombstones)
        known = set(ledger["segment"])
        waiting = sorted((path for path in segments if path.name not in known), key=_order)
        total = Compaction(
            segment_count=0, record_count=0, deleted_count=deleted, quarantined_count=0
        )
        for group in _group(waiting):
            total = _add(total, _compact_group(group, folder, tombstones))
        return total


def read_ledger(folder: Path) -> pl.DataFrame:
    """Return one row per compacted segment."""
    return _read_own(folder / "compacted.parquet", LEDGER)


def read_quarantine(folder: Path) -> pl.DataFrame:
    """Return what could not be read, as rows of `tables.QUARANTINED_FRAMES`."""
    return _read_own(folder / "quarantine.parquet", tables.QUARANTINED_FRAMES)


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
    """Return the segments whose records are not stored exactly once, redacted ones aside."""
    hours = scan_hours(list_hours(folder))
    stored = (
        hours.group_by("segment")
        .agg(pl.len().alias("rows"), pl.col("segment_offset").n_unique().alias("offsets"))
        .collect()
    )
    joined = read_ledger(folder).join(stored, on="segment", how="full", coalesce=True).fill_null(0)
    by_name = _index(segments)
    wrong = []
    for row in joined.sort("segment").iter_rows(named=True):
        is_once = row["rows"] == row["offsets"]
        missing = row["record_count"] - row["rows"]
        if missing > 0 and row["segment"] in by_name:
            missing -= read_frames(by_name[row["segment"]]).redacted_count
        if missing or not is_once:
            wrong.append(str(row["segment"]))
    return wrong


def _compact_group(group: Sequence[Path], folder: Path, tombstones: pl.DataFrame) -> Compaction:
    read = [_read_patiently(path) for path in group]
    tables_read = [_tabulate(frames) for frames in read if frames.payloads]
    rows = pl.concat(tables_read) if tables_read else pl.DataFrame(schema=_TIMED)
    untimed = rows.filter(pl.col("hour").is_null())
    rows = rows.filter(pl.col("hour").is_not_null())
    is_deleted = mark_deleted(rows, tombstones)
    by_name = _index(group)
    for (segment,), gone in rows.filter(is_deleted).group_by("segment"):
        redact_frames(by_name[str(segment)], gone["segment_offset"].to_list())
    kept = rows.filter(~is_deleted)
    names = [frames.segment for frames in read]
    for (hour,), part in kept.group_by("hour", maintain_order=True):
        _merge_hour(name_hour(folder, hour), part.drop("hour"), names)
    damages = [damage for frames in read for damage in frames.damages]
    damages += [
        Damage(segment=segment, offset=offset, size_bytes=0, reason="no_time")
        for segment, offset in untimed.select("segment", "segment_offset").iter_rows()
    ]
    _write_quarantine(folder, names, damages)
    _write_ledger(folder, read, damages)
    return Compaction(
        segment_count=len(read),
        record_count=kept.height,
        deleted_count=rows.height - kept.height,
        quarantined_count=len(damages),
    )


_TIMED = pl.Schema({**tables.STORED_TRACES, "hour": pl.Datetime("us", "UTC")})


def _tabulate(frames: Frames) -> pl.DataFrame:
    """Return stored rows with their hour: of `asked_at`, or of the uuid7 where that is unread."""
    frame = tabulate_payloads(frames.payloads).with_columns(
        pl.lit(frames.segment).alias("segment"),
        pl.Series("segment_offset", frames.offsets, dtype=pl.Int64),
    )
    digits = pl.col("trace_id").str.replace_all("-", "").str.slice(0, 12)
    is_uuid7 = pl.col("trace_id").str.contains(r"^[0-9a-f]{8}-[0-9a-f]{4}-7")
    made_ms = pl.when(is_uuid7).then(digits.str.to_integer(base=16, strict=False))
    made_at = pl.from_epoch(made_ms.cast(pl.Int64), time_unit="ms")
    made_at = made_at.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    hour = pl.coalesce("asked_at", made_at).dt.truncate("1h").alias("hour")
    return frame.with_columns(hour).select(_TIMED.names())


def _merge_hour(path: Path, part: pl.DataFrame, segments: Sequence[str]) -> None:
    """Rewrite an hour: what it held of other segments, then the new rows."""
    fresh = part.lazy()
    if path.exists():
        held = scan_hours([path]).filter(~pl.col("segment").is_in(list(segments)))
        fresh = pl.concat([held, fresh])
    write_hour(path, fresh)


def _read_patiently(path: Path) -> Frames:
    """Return a segment's frames; a file that cannot be opened now is tried again next time."""
    try:
        return read_frames(path)
    except OSError as error:
        damage = Damage(
            segment=path.name,
            offset=0,
            size_bytes=0,
            reason=f"unreadable: {error.strerror or error}",
            is_final=False,
        )
        return Frames(
            segment=path.name,
            size_bytes=0,
            offsets=(),
            payloads=(),
            redacted_count=0,
            damages=(damage,),
        )


def _write_quarantine(folder: Path, names: Sequence[str], damages: Sequence[Damage]) -> None:
    earlier = read_quarantine(folder)
    rows = [
        {
            "segment": damage.segment,
            "segment_offset": damage.offset,
            "size_bytes": damage.size_bytes,
            "reason": damage.reason,
        }
        for damage in damages
    ]
    kept = earlier.filter(~pl.col("segment").is_in(list(names)))
    if rows or kept.height != earlier.height:
        found = pl.DataFrame(rows, schema=tables.QUARANTINED_FRAMES)
        _write_own(folder / "quarantine.parquet", pl.concat([kept, found]))


def _write_ledger(folder: Path, read: Sequence[Frames], damages: Sequence[Damage]) -> None:
    """Name the segments that are done; one that a later run may still read is not."""
    waiting = {damage.segment for damage in damages if not damage.is_final}
    untimed = [damage.segment for damage in damages if damage.reason == "no_time"]
    rows = [
        {
            "segment": frames.segment,
            "size_bytes": frames.size_bytes,
            "record_count": len(frames.payloads)
            + frames.redacted_count
            - untimed.count(frames.segment),
            "quarantined_count": sum(damage.segment == frames.segment for damage in damages),
        }
        for frames in read
        if frames.segment not in waiting
    ]
    ledger = pl.concat([read_ledger(folder), pl.DataFrame(rows, schema=LEDGER)])
    _write_own(folder / "compacted.parquet", ledger)


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


def _read_own(path: Path, schema: pl.Schema) -> pl.DataFrame:
    if not path.exists():
        return pl.DataFrame(schema=schema)
    try:
        return pl.read_parquet(path, hive_partitioning=False).select(schema.names())
    except (OSError, pl.exceptions.PolarsError) as error:
        raise TraceError(
            f"reading {path}",
            expected="the Parquet file that compaction wrote",
            found=str(error).splitlines()[0],
            next_step="move the file aside: the segments are then compacted anew, each record once",
        ) from error


def _write_own(path: Path, frame: pl.DataFrame) -> None:
    with atomic_path(path) as temporary:
        temporary.chmod(PRIVATE_MODE)
        frame.write_parquet(temporary, compression="zstd")
