"""Trace assets: the server's sealed segments -> hours, feedback, decisions, escalations, deletions.

Nothing that trains reads the traces: seeds grow from admitted decisions alone, so a new trace makes
no student stale. Belongs here: declarations. Does not belong here: the format of segments
(`serving/tracing`), compaction, curation and admission (their own modules), the dbt models
(`dbt_traces/`, declared in `marts`).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.traces.admission import ADMITTED, admit_decisions, tabulate_admissions
from assets.traces.compaction import compact_segments, list_hourly_files
from assets.traces.deciding import open_decisions
from assets.traces.deleting import redact_feedback
from assets.traces.escalating import find_escalations
from assets.traces.feedback import tabulate_feedback
from assets.traces.hours import find_folder, list_hours, read_newest, scan_hours
from assets.traces.ledger import read_quarantine
from assets.traces.requesting import open_deletions
from serving.home import Home

RECENT_RECORDS = 100_000
"""What `trace_records` holds at least, when there are as many; every record lies in the hours."""


class Traces(Protocol):
    """What servers have written and sealed: the roles `traces` and `feedback_segments`."""

    def fingerprint(self) -> str:
        """Return the identity of the sealed segments."""
        ...

    def list_files(self) -> Sequence[Path]:
        """Return the sealed segments."""
        ...

    def read(self) -> Iterable[Mapping[str, Any]]:
        """Return every record of the sealed segments."""
        ...


class SeedCount(Protocol):
    """The hand-written seeds, of which only the number counts here."""

    def read(self) -> Sequence[object]:
        """Return the questions in file order."""
        ...


@dg.observable_source_asset(key=keys.TRACE_SEGMENTS)
def trace_segments(traces: dg.ResourceParam[Traces]) -> dg.DataVersion:
    """The segments that servers wrote and sealed; the version is the identity of them all."""
    return dg.DataVersion(traces.fingerprint())


@dg.observable_source_asset(key=keys.FEEDBACK_SEGMENTS)
def feedback_segments(feedback_segments: dg.ResourceParam[Traces]) -> dg.DataVersion:
    """The sealed segments of what readers thought; the version is the identity of them all."""
    return dg.DataVersion(feedback_segments.fingerprint())


@dg.observable_source_asset(key=keys.DECISION_JOURNAL)
def decision_journal(home: dg.ResourceParam[Home]) -> dg.DataVersion:
    """The journal that `understudy curate decide` appends to; the version is its hash."""
    return dg.DataVersion(open_decisions(home).fingerprint())


@dg.observable_source_asset(key=keys.DELETION_JOURNAL)
def deletion_journal(home: dg.ResourceParam[Home]) -> dg.DataVersion:
    """The journal that `understudy curate forget` appends to; the version is its hash."""
    return dg.DataVersion(open_deletions(home).fingerprint())


@dg.asset(
    key=keys.HOURLY_RECORDS,
    deps=[keys.TRACE_SEGMENTS, keys.DELETION_JOURNAL],
    kinds={"parquet", "polars"},
    code_version="1",
)
def hourly_records(
    traces: dg.ResourceParam[Traces], home: dg.ResourceParam[Home]
) -> dg.MaterializeResult[pl.DataFrame]:
    """One row per hourly Parquet file of traces; the files hold every record exactly once.

    They lie under `traces/date=…/hour=….parquet`. What a tombstone names is taken out of segments
    and hours here. A damaged hour is set aside and made again from its segments.
    """
    folder = find_folder(home)
    done = compact_segments(traces.list_files(), folder, tombstones=open_deletions(home).read())
    frame = list_hourly_files(folder)
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "record_count": int(frame["row_count"].sum()),
            "hour_count": frame.height,
            "new_segment_count": done.segment_count,
            "new_record_count": done.record_count,
            "deleted_count": done.deleted_count,
            "quarantined_count": done.quarantined_count,
            "damaged_hour_count": done.damaged_hour_count,
            "lost_count": done.lost_count,
        },
    )


@dg.asset(
    key=keys.QUARANTINED_FRAMES, deps=[keys.HOURLY_RECORDS], kinds={"polars"}, code_version="3"
)
def quarantined_frames(home: dg.ResourceParam[Home]) -> dg.MaterializeResult[pl.DataFrame]:
    """One row per stretch of a segment, and per hour, that could not be read; the bytes are kept.

    `lost_count` says how many records of a segment were lost with a damaged hour.
    """
    frame = read_quarantine(find_folder(home))
    counts = frame["reason"].value_counts().sort("reason")
    return dg.MaterializeResult(
        value=frame, metadata={"quarantined_by_reason": dict(counts.iter_rows())}
    )


@dg.asset(key=keys.TRACE_RECORDS, deps=[keys.HOURLY_RECORDS], kinds={"polars"}, code_version="2")
def trace_records(home: dg.ResourceParam[Home]) -> dg.MaterializeResult[pl.DataFrame]:
    """The newest 100,000 records or more, oldest first, as one table. Private.

    Whole hours are read, newest first, until there are as many; all records lie in the hours.
    """
    frame = read_newest(find_folder(home), RECENT_RECORDS)
    frame = frame.select(tables.TRACE_RECORDS.names()).sort("trace_id", nulls_last=True)
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


@dg.asset(
    key=keys.FEEDBACK,
    deps=[keys.FEEDBACK_SEGMENTS, keys.DELETION_JOURNAL],
    kinds={"polars"},
    code_version="2",
)
def feedback(
    feedback_segments: dg.ResourceParam[Traces], home: dg.ResourceParam[Home]
) -> dg.MaterializeResult[pl.DataFrame]:
    """One row per thumb that a reader gave, for people who debug. Nothing is made from it.

    What was said of a deleted trace is taken out of the segments here.
    """
    redact_feedback(feedback_segments.list_files(), open_deletions(home).read())
    frame = tabulate_feedback(feedback_segments.read())
    ratings = frame["rating"].drop_nulls().value_counts().sort("rating")
    return dg.MaterializeResult(
        value=frame, metadata={"feedback_by_rating": dict(ratings.iter_rows())}
    )


@dg.asset(
    key=keys.CURATION_DECISIONS, deps=[keys.DECISION_JOURNAL], kinds={"polars"}, code_version="1"
)
def curation_decisions(home: dg.ResourceParam[Home]) -> dg.MaterializeResult[pl.DataFrame]:
    """One row per decision about a trace, in the order they were taken. Private."""
    frame = open_decisions(home).read()
    counts = frame["decision"].value_counts().sort("decision")
    return dg.MaterializeResult(
        value=frame, metadata={"decisions_by_verdict": dict(counts.iter_rows())}
    )


@dg.asset(
    key=keys.ADMISSIONS,
    ins={"curation_decisions": dg.AssetIn(key=keys.CURATION_DECISIONS)},
    deps=[keys.DELETION_JOURNAL],
    kinds={"polars"},
    code_version="1",
)
def admissions(
    curation_decisions: pl.DataFrame,
    home: dg.ResourceParam[Home],
    seeds: dg.ResourceParam[SeedCount],
) -> dg.MaterializeResult[pl.DataFrame]:
    """One row per decision: whether it admits its question to the seeds, and otherwise why not."""
    admitted = admit_decisions(
        curation_decisions, open_deletions(home).read(), handwritten_count=len(seeds.read())
    )
    reasons = admitted.filter(pl.col("reason") != ADMITTED)["reason"].value_counts().sort("reason")
    return dg.MaterializeResult(
        value=tabulate_admissions(admitted),
        metadata={
            "admitted_count": int((admitted["reason"] == ADMITTED).sum()),
            "refused_by_reason": dict(reasons.iter_rows()),
        },
    )


@dg.asset(
    key=keys.ESCALATIONS,
    ins={"curation_decisions": dg.AssetIn(key=keys.CURATION_DECISIONS)},
    deps=[keys.HOURLY_RECORDS],
    kinds={"polars"},
    code_version="2",
)
def escalations(
    curation_decisions: pl.DataFrame, home: dg.ResourceParam[Home]
) -> dg.MaterializeResult[pl.DataFrame]:
    """The review queue: answers a person must look at, the contract, and who closed them."""
    frame = find_escalations(scan_hours(list_hours(find_folder(home))), curation_decisions)
    waiting = frame.filter(pl.col("closed_at").is_null())["reason"].value_counts().sort("reason")
    return dg.MaterializeResult(
        value=frame,
        metadata={"escalation_count": frame.height, "open_by_reason": dict(waiting.iter_rows())},
    )


@dg.asset(
    key=keys.DELETIONS,
    deps=[keys.DELETION_JOURNAL, keys.HOURLY_RECORDS],
    kinds={"polars"},
    code_version="2",
)
def deletions(home: dg.ResourceParam[Home]) -> dg.MaterializeResult[pl.DataFrame]:
    """Tombstones: what was asked to be forgotten, and the adapters that must be trained again."""
    frame = open_deletions(home).read().select(tables.DELETIONS.names())
    adapters = frame["adapters"].explode().drop_nulls().unique().sort().to_list()
    return dg.MaterializeResult(
        value=frame,
        metadata={"deletion_count": frame.height, "adapters_to_retrain": adapters},
    )
