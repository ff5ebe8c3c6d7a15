"""Deletions: which traces a tombstone names, and taking them out of segments, hours and tables.

A tombstone names a trace, a conversation of a key, or a key (and then what was asked before the
request): clients choose the ids of their conversations, so two of them may choose the same. A
shadow is a trace of its own that repeats the question of its parent, and goes with it.
Belongs here: matching and removal. Does not belong here: the journal of requests (`journal`), what
retrains afterwards (`seed_questions` loses the row, which makes what is downstream stale).
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import polars as pl

from assets import tables
from assets.traces.frames import find_unredacted, read_frames, redact_frames
from assets.traces.hours import scan_hours, write_hour
from assets.traces.ledger import note_deleted, read_ledger, write_ledger
from serving.files import PRIVATE_MODE, atomic_path
from serving.tracing.frames import parse_record

TombstoneKind = Literal["trace", "conversation", "key"]
COLUMN_OF_KIND: Mapping[TombstoneKind, str] = {
    "trace": "trace_id",
    "conversation": "conversation_id",
    "key": "key_id",
}
TRACE_COLUMNS = ("trace_id", "parent_trace_id")
KINDS: tuple[TombstoneKind, ...] = get_args(TombstoneKind)
_LOG = logging.getLogger(__name__)


def match_deleted(tombstones: pl.DataFrame, columns: Collection[str]) -> pl.Expr:
    """Return the predicate that says which rows have to be gone, never null.

    Args:
        tombstones: rows of `tables.DELETIONS`.
        columns: those of the table at hand; a kind whose column is not among them cannot match.
    """
    named = [*list_named(tombstones)]
    matched = pl.any_horizontal(
        pl.lit(value=False),
        *(pl.col(c).is_in(named).fill_null(value=False) for c in TRACE_COLUMNS if c in columns),
    )
    chosen = tombstones.filter(pl.col("kind") != "trace")
    chosen = chosen.select("kind", "value", "key_id", "requested_at")
    for kind, value, key_id, requested_at in chosen.iter_rows():
        column = COLUMN_OF_KIND[kind]
        if column not in columns:
            continue
        is_named = pl.col(column) == value
        if kind == "conversation" and "key_id" in columns:
            is_named &= pl.col("key_id").eq_missing(pl.lit(key_id, pl.String))
        if "asked_at" in columns:
            asked = pl.col("asked_at")
            is_named &= (asked <= requested_at).fill_null(value=True)
        matched |= is_named
    return matched.fill_null(value=False)


def list_named(tombstones: pl.DataFrame) -> frozenset[str]:
    """Return the ids of traces that tombstones name, whether or not they were found."""
    found = tombstones["trace_ids"].explode().drop_nulls()
    return frozenset({*found, *tombstones.filter(kind="trace")["value"]})


def mark_deleted(rows: pl.DataFrame, tombstones: pl.DataFrame) -> pl.Series:
    """Say of each row whether a tombstone names it."""
    if tombstones.is_empty() or rows.is_empty():
        return pl.Series("is_deleted", [False] * rows.height, dtype=pl.Boolean)
    return rows.select(match_deleted(tombstones, rows.columns).alias("is_deleted")).to_series()


def find_deleted(hours: Sequence[Path], tombstones: pl.DataFrame) -> pl.DataFrame:
    """Return (trace_id, segment, segment_offset) of stored records that have to be gone."""
    rows = scan_hours(hours).filter(match_deleted(tombstones, tables.STORED_TRACES))
    return rows.select("trace_id", "segment", "segment_offset").collect()


def delete_stored(
    folder: Path, hours: Sequence[Path], segments: Mapping[str, Path], tombstones: pl.DataFrame
) -> int:
    """Take what tombstones name out of segments, tables and hours; return the number of records.

    The ledger notes them: a segment that is removed later can no longer say what was deleted, and
    one that is away or closed is blanked by it (`blank_noted`). Hours last: a crash before leaves
    rows that the next run finds again.
    """
    if tombstones.is_empty():
        return 0
    doomed = {hour: find_deleted([hour], tombstones) for hour in hours}
    doomed = {hour: found for hour, found in doomed.items() if not found.is_empty()}
    offsets: dict[str, list[int]] = {}
    for found in doomed.values():
        for segment, offset in found.select("segment", "segment_offset").iter_rows():
            offsets.setdefault(segment, []).append(offset)
    for segment, gone in offsets.items():
        if path := segments.get(segment):
            blank_records(path, gone)
    if doomed:
        write_ledger(folder, note_deleted(read_ledger(folder), offsets))
        purge_tables(sorted((folder.parent / "lake" / "traces").glob("*.parquet")), tombstones)
    for hour in doomed:
        write_hour(
            hour, scan_hours([hour]).filter(~match_deleted(tombstones, tables.STORED_TRACES))
        )
    return sum(found.height for found in doomed.values())


def blank_records(path: Path, offsets: Collection[int]) -> None:
    """Blank records in their segment; one that cannot be opened now is left to a later run."""
    try:
        if kept := find_unredacted(path, offsets):
            redact_frames(path, kept)
    except OSError as error:
        _LOG.error("%d deleted records stay in %s for now: %s", len(offsets), path, error)


def blank_noted(folder: Path, segments: Mapping[str, Path]) -> None:
    """Blank what the ledger notes as deleted in segments that were away or closed until now."""
    for path, offsets in _list_noted(folder, segments):
        blank_records(path, offsets)


def count_unblanked(folder: Path, segments: Mapping[str, Path]) -> int:
    """Return the deleted records that segments still hold; of one that does not open, all."""
    total = 0
    for path, offsets in _list_noted(folder, segments):
        try:
            total += len(find_unredacted(path, offsets))
        except OSError:
            total += len(offsets)
    return total


def _list_noted(folder: Path, segments: Mapping[str, Path]) -> Iterator[tuple[Path, list[int]]]:
    """Yield the segments that are there with the offsets that deletions took."""
    for segment, offsets in read_ledger(folder).select("segment", "deleted_offsets").iter_rows():
        if offsets and segment in segments:
            yield segments[segment], offsets


def redact_feedback(segments: Sequence[Path], tombstones: pl.DataFrame) -> list[Path]:
    """Blank what readers wrote about deleted traces; return the segments that do not open now.

    These stop no other, and the next call finds them; so it does a segment that its server still
    writes to, which is not among them.
    """
    named = list_named(tombstones)
    closed = []
    for path in segments if named else ():
        try:
            _redact_named(path, named)
        except OSError as error:
            _LOG.error("what was said of deleted traces stays in %s for now: %s", path, error)
            closed.append(path)
    return closed


def _redact_named(path: Path, named: Collection[str]) -> None:
    frames = read_frames(path)
    doomed = [
        offset
        for offset, payload in zip(frames.offsets, frames.payloads, strict=True)
        if (parse_record(payload) or {}).get("trace_id") in named
    ]
    if doomed:
        redact_frames(path, doomed)


def purge_tables(paths: Sequence[Path], tombstones: pl.DataFrame) -> None:
    """Take rows out of finished tables at once; the next run makes them anew from the hours.

    The journals' own tables stay: a tombstone names what it deletes, and a decision loses its text
    in the journal.
    """
    for path in paths:
        columns = list(pl.read_parquet_schema(path))
        if path.stem in {"deletions"} or "trace_id" not in columns:
            continue
        frame = pl.read_parquet(path, hive_partitioning=False)
        kept = frame.filter(~match_deleted(tombstones, columns))
        if kept.height < frame.height:
            with atomic_path(path) as temporary:
                temporary.chmod(PRIVATE_MODE)
                kept.write_parquet(temporary, compression="zstd")
