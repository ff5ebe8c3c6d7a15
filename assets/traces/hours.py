"""Hourly files of traces, `traces/date=YYYY-MM-DD/hour=HH.parquet`: their names, how to scan them.

Belongs here: paths, scanning across schemas of different releases, rewriting one hour. Does not
belong here: which records go where (`compaction`), what is deleted (`deleting`).
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from assets import tables
from serving.files import PRIVATE_MODE, atomic_path
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
    """Replace an hour atomically and privately, streaming: no hour has to fit in memory."""
    with atomic_path(path) as temporary:
        temporary.chmod(PRIVATE_MODE)
        rows.sink_parquet(
            temporary, compression="zstd", statistics=True, row_group_size=ROW_GROUP_ROWS
        )


def keep_columns_known(folder: Path) -> None:
    """Write the empty file of the epoch, unless it has this release's columns already."""
    path = name_hour(folder, EPOCH)
    if not path.exists() or pl.read_parquet_schema(path) != tables.STORED_TRACES:
        write_hour(path, pl.LazyFrame(schema=tables.STORED_TRACES))
