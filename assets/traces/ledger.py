"""What compaction keeps in its folder beside the hours: the ledger, and what could not be read.

Belongs here: reading and writing both, and holding the ledger against the hours. Does not belong
here: the order in which hours, quarantine and ledger are written (`compaction`), what is done about
a damaged hour (`mending`).
"""

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from assets import tables
from assets.traces.frames import read_frames
from assets.traces.hours import list_hours, scan_hours
from serving.errors import TraceError
from serving.files import PRIVATE_MODE, atomic_path
from serving.hashing import file_sha256

LEDGER = pl.Schema(
    {
        "segment": pl.String(),
        "size_bytes": pl.Int64(),
        "record_count": pl.Int64(),
        "quarantined_count": pl.Int64(),
        "deleted_offsets": pl.List(pl.Int64()),
    }
)
"""`deleted_offsets`: of records that deletions took. The segment says so too, while it is there."""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What the hours hold of a compacted segment.

    `missing_count`: records that are neither stored, nor deleted, nor declared lost; below 0: more
    are stored than there were.
    """

    segment: str
    missing_count: int
    is_once: bool


def read_ledger(folder: Path) -> pl.DataFrame:
    """Return one row per compacted segment."""
    return _read_own(folder / "compacted.parquet", LEDGER)


def write_ledger(folder: Path, ledger: pl.DataFrame) -> None:
    """Replace the ledger."""
    _write_own(folder / "compacted.parquet", ledger)


def note_deleted(ledger: pl.DataFrame, offsets: Mapping[str, Collection[int]]) -> pl.DataFrame:
    """Return the ledger with more deleted offsets by segment; those noted before stay once."""
    noted = [
        sorted({*(before or ()), *offsets.get(segment, ())})
        for segment, before in ledger.select("segment", "deleted_offsets").iter_rows()
    ]
    return ledger.with_columns(pl.Series("deleted_offsets", noted, dtype=pl.List(pl.Int64)))


def read_quarantine(folder: Path) -> pl.DataFrame:
    """Return what could not be read, as rows of `tables.QUARANTINED_FRAMES`."""
    return _read_own(folder / "quarantine.parquet", tables.QUARANTINED_FRAMES)


def write_quarantine(folder: Path, quarantine: pl.DataFrame) -> None:
    """Replace what is told of what could not be read."""
    _write_own(folder / "quarantine.parquet", quarantine)


def hash_segment(path: Path) -> str | None:
    """Return the SHA-256 of a segment; None where it does not open now."""
    try:
        return file_sha256(path)
    except OSError:
        return None


def count_offsets(folder: Path, segments: Collection[str]) -> dict[str, int]:
    """Return how many records of some segments the hours hold; none is looked at for no segment."""
    if not segments:
        return {}
    rows = scan_hours(list_hours(folder)).filter(pl.col("segment").is_in(list(segments)))
    counts = rows.group_by("segment").agg(pl.col("segment_offset").n_unique())
    return dict(counts.collect(engine="streaming").iter_rows())


def tally_segments(folder: Path, segments: Mapping[str, Path]) -> list[Tally]:
    """Return what the hours hold of every compacted segment, by its name.

    Args:
        folder: where hours, ledger and quarantine lie.
        segments: the files by name; one that is not among them is gone.
    """
    stored = (
        scan_hours(list_hours(folder))
        .group_by("segment")
        .agg(pl.len().alias("rows"), pl.col("segment_offset").n_unique().alias("offsets"))
        .collect()
    )
    declared = read_quarantine(folder).group_by("segment").agg(pl.col("lost_count").sum())
    joined = read_ledger(folder).join(stored, on="segment", how="full", coalesce=True)
    joined = joined.join(declared, on="segment", how="left").fill_null(0).sort("segment")
    tallies = []
    for row in joined.iter_rows(named=True):
        deleted = set(row["deleted_offsets"] or ())
        missing = row["record_count"] - row["rows"] - row["lost_count"] - len(deleted)
        if missing > 0 and row["segment"] in segments:
            with contextlib.suppress(OSError):  # cannot be opened now: only the ledger can say
                missing -= len({*read_frames(segments[row["segment"]]).redacted_offsets} - deleted)
        tallies.append(
            Tally(
                segment=row["segment"],
                missing_count=missing,
                is_once=row["rows"] == row["offsets"],
            )
        )
    return tallies


def _read_own(path: Path, schema: pl.Schema) -> pl.DataFrame:
    if not path.exists():
        return pl.DataFrame(schema=schema)
    try:
        found = pl.read_parquet(path, hive_partitioning=False)
        known = pl.concat([pl.DataFrame(schema=schema), found], how="diagonal")
        return known.select(schema.names())
    # Polars panics where damage contradicts what the file says of itself.
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
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
