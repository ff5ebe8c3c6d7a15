"""Hourly files of traces, `traces/date=YYYY-MM-DD/hour=HH.parquet`: their names, how to scan them.

Belongs here: paths, scanning across schemas of different releases, rewriting one hour, and whether
its bytes are those that were written. Does not belong here: which records go where (`compaction`),
what is deleted (`deleting`), what is done about damage (`mending`).
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from assets import tables
from serving.files import PRIVATE_MODE, atomic_path, write_text_atomically
from serving.hashing import file_sha256
from serving.home import Home

ROW_GROUP_ROWS = 8192
"""Of an hour: whoever writes or reads one holds a group of rows in memory, some 30 MB."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""The first hour there is: an empty file that gives readers the columns before any trace is."""


def find_folder(home: Home) -> Path:
    """Return the folder of hours, ledgers and journals: beside the segments."""
    return home.traces.parent


def name_hour(folder: Path, hour: datetime) -> Path:
    """Return the file of an hour (UTC)."""
    return folder / f"date={hour:%Y-%m-%d}" / f"hour={hour:%H}.parquet"


def read_hour(path: Path) -> datetime:
    """Return the hour that a file is of."""
    day, hour = path.parent.name.removeprefix("date="), path.stem.removeprefix("hour=")
    return datetime.strptime(f"{day} {hour}", "%Y-%m-%d %H").replace(tzinfo=UTC)


def list_hours(folder: Path) -> list[Path]:
    """Return the files of all hours, oldest first, the empty one of the epoch left out."""
    empty = name_hour(folder, EPOCH)
    return sorted(path for path in folder.glob("date=*/hour=*.parquet") if path != empty)


def scan_hours(paths: Sequence[Path]) -> pl.LazyFrame:
    """Scan hours as rows of `tables.STORED_TRACES`, whatever release wrote them.

    A column that an old file lacks is null; what it had more is dropped.
    """
    if not paths:
        return pl.LazyFrame(schema=tables.STORED_TRACES)
    return pl.scan_parquet(
        list(paths),
        schema=tables.STORED_TRACES,
        hive_partitioning=False,
        missing_columns="insert",
        extra_columns="ignore",
        cast_options=pl.ScanCastOptions(
            missing_struct_fields="insert", extra_struct_fields="ignore", integer_cast="upcast"
        ),
    )


def read_newest(folder: Path, count: int) -> pl.DataFrame:
    """Return at least the newest `count` records, or all; whole hours are read, newest first."""
    chosen: list[Path] = []
    found = 0
    for path in reversed(list_hours(folder)):
        if found >= count:
            break
        chosen.insert(0, path)
        found += count_rows(path)
    return scan_hours(chosen).collect()


def count_rows(path: Path) -> int:
    """Return the rows of a file, from its footer."""
    return int(pl.scan_parquet(path, hive_partitioning=False).select(pl.len()).collect().item())


def write_hour(path: Path, rows: pl.LazyFrame) -> None:
    """Replace an hour atomically and privately, streaming: no hour has to fit in memory.

    The hash of the new bytes stands beside it, with that of the old ones, before they are there: a
    crash in between leaves an hour that is one of the two.
    """
    with atomic_path(path) as temporary:
        temporary.chmod(PRIVATE_MODE)
        rows.sink_parquet(
            temporary, compression="zstd", statistics=True, row_group_size=ROW_GROUP_ROWS
        )
        hashes = [file_sha256(temporary)]
        if path.exists():
            hashes.insert(0, file_sha256(path))
        write_text_atomically(_name_hashes(path), "".join(f"{one}\n" for one in hashes))


def find_damaged(folder: Path) -> list[Path]:
    """Return the hours whose bytes are not those that were written, or cannot be read."""
    return [path for path in list_hours(folder) if not _is_sound(path)]


def keep_columns_known(folder: Path) -> None:
    """Write the empty file of the epoch, unless it has this release's columns already."""
    path = name_hour(folder, EPOCH)
    if not path.exists() or not _is_sound(path) or _lacks_columns(path):
        write_hour(path, pl.LazyFrame(schema=tables.STORED_TRACES))


def _lacks_columns(path: Path) -> bool:
    return pl.read_parquet_schema(path) != tables.STORED_TRACES


def _is_sound(path: Path) -> bool:
    """Say whether an hour is as it was written; one without a hash is read from end to end."""
    try:
        written = _name_hashes(path).read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        written = ""
    hashes = re.findall(r"^[0-9a-f]{64}$", written, flags=re.MULTILINE)
    return file_sha256(path) in hashes if hashes else can_be_read(path)


def _name_hashes(path: Path) -> Path:
    return path.with_suffix(".sha256")


def can_be_read(path: Path) -> bool:
    """Say whether a file is Parquet that reads from end to end."""
    import pyarrow as pa
    from pyarrow import parquet

    # Arrow and not Polars, which panics where damage contradicts what a file says of itself.
    try:
        with parquet.ParquetFile(path) as file:
            for _ in file.iter_batches(batch_size=ROW_GROUP_ROWS):
                pass
    except (pa.ArrowException, OSError):
        return False
    return True
