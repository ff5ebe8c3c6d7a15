"""Trace records as a table: the JSON of `serving/tracing/record.py`, typed.

Belongs here: typing and order. Does not belong here: reading segments (`resources/traces`), what a
sound record looks like (`expectations`).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from assets import tables


def tabulate_records(records: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Return one row per record, sorted by trace id and so by time.

    Servers of different releases write side by side: a field that this release does not know is
    left out, one that a record lacks is null, and so is a value of another type. The table is
    checked afterwards and names such records; dropping them here would hide them.
    """
    written = pl.Schema({**tables.TRACE_RECORDS, "asked_at": pl.String()})
    known = [{name: record.get(name) for name in written} for record in records]
    frame = pl.DataFrame(known, schema=written, strict=False, orient="row")
    asked_at = pl.col("asked_at").str.to_datetime(
        "%Y-%m-%dT%H:%M:%S%.fZ", time_unit="us", strict=False
    )
    return frame.with_columns(asked_at.dt.replace_time_zone("UTC")).sort(
        "trace_id", nulls_last=True, maintain_order=True
    )
