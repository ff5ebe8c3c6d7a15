"""Trace assets: the server's sealed segments -> one table of records.

Nothing that trains reads them, so a new trace makes no student stale. Belongs here: declarations.
Does not belong here: the format of segments (`serving/tracing`), the typing of records
(`records`), admission to training.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import dagster as dg
import polars as pl

from assets import keys
from assets.traces.records import tabulate_records


class Traces(Protocol):
    """What servers have written and sealed: the role `traces`."""

    def fingerprint(self) -> str:
        """Return the identity of the sealed segments."""
        ...

    def read(self) -> Iterable[Mapping[str, Any]]:
        """Return every record of the sealed segments."""
        ...


@dg.observable_source_asset(key=keys.TRACE_SEGMENTS)
def trace_segments(traces: dg.ResourceParam[Traces]) -> dg.DataVersion:
    """The segments that servers wrote and sealed; the version is the identity of them all."""
    return dg.DataVersion(traces.fingerprint())


@dg.asset(key=keys.TRACE_RECORDS, deps=[keys.TRACE_SEGMENTS], kinds={"polars"}, code_version="1")
def trace_records(traces: dg.ResourceParam[Traces]) -> dg.MaterializeResult[pl.DataFrame]:
    """One row per question that reached the pipeline of a server, oldest first. Private."""
    frame = tabulate_records(traces.read())
    outcomes = frame["outcome"].value_counts().sort("outcome")
    served = frame["served_by"].drop_nulls().value_counts().sort("served_by")
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "record_count": frame.height,
            "records_by_outcome": dict(outcomes.drop_nulls().iter_rows()),
            "records_by_server": dict(served.iter_rows()),
            "cost_usd": float(frame["cost_usd"].sum()),
        },
    )
