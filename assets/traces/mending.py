"""Damaged hours: moved aside, made again from their segments, and what is gone declared.

An hour whose bytes are not those that were written goes to `quarantine/`. Whatever lies there and
is not in the quarantine's table is unsettled: a crash anywhere is mended by the next compaction,
which reads the segments again whose records the hours lack. Belongs here: finding, moving and
declaring. Does not belong here: what is damaged (`hours`), reading segments (`compaction`).
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from assets import tables
from assets.traces.hours import find_damaged, read_hour
from assets.traces.ledger import read_quarantine, tally_segments, write_quarantine
from serving.files import PRIVATE_MODE, flush_to_disk
from serving.hashing import file_sha256

QUARANTINE = "quarantine"
REBUILT, LOST, LOST_WITH_HOUR = "hour_rebuilt", "hour_lost", "lost_with_hour"
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
    settled = set(read_quarantine(folder)["segment"])
    names = sorted(f"{QUARANTINE}/{path.name}" for path in target.glob("*.parquet"))
    return [name for name in names if name not in settled]


def find_short(folder: Path, segments: Mapping[str, Path]) -> dict[str, int]:
    """Return the compacted segments whose records the hours lack, and how many they lack."""
    tallies = tally_segments(folder, segments)
    return {tally.segment: tally.missing_count for tally in tallies if tally.missing_count > 0}


def declare_mended(folder: Path, unsettled: Collection[str], lost: Mapping[str, int]) -> Mended:
    """Write what became of unsettled hours: rebuilt whole, or what their segments do not hold."""
    rows = [
        {
            "segment": name,
            "segment_offset": 0,
            "size_bytes": (folder / name).stat().st_size,
            "reason": LOST if lost else REBUILT,
            "lost_count": None if lost else 0,
        }
        for name in unsettled
    ]
    rows += [
        {
            "segment": segment,
            "segment_offset": 0,
            "size_bytes": 0,
            "reason": LOST_WITH_HOUR,
            "lost_count": count,
        }
        for segment, count in lost.items()
    ]
    if rows:
        declared = pl.DataFrame(rows, schema=tables.QUARANTINED_FRAMES)
        write_quarantine(folder, pl.concat([read_quarantine(folder), declared]))
    total = sum(lost.values())
    if total:
        _LOG.error("%d records of %d damaged hours are lost", total, len(unsettled))
    return Mended(hour_count=len(unsettled), lost_count=total)


def purge_set_aside(folder: Path) -> None:
    """Remove the damaged files: what a deletion names may stand in bytes that nobody can read."""
    for path in (folder / QUARANTINE).glob("*.parquet"):
        path.unlink()
