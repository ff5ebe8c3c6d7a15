"""What the traces promise."""

from datetime import UTC, datetime

import dagster as dg
import polars as pl

from assets import keys
from assets.check_results import report_outcome
from assets.traces.expectations import evaluate_traces


@dg.asset_check(asset=keys.TRACE_RECORDS)
def trace_records_meet_expectations(trace_records: pl.DataFrame) -> dg.AssetCheckResult:
    """Every record is whole, scrubbed and adds up. This check warns and does not block.

    A record is history: nobody can mend it, so a block would stop every later run for good, and
    nothing that trains reads traces. Its metadata name records by id and never quote them. Without
    any trace yet there is nothing to object to: it passes and says 0 rows.
    """
    return report_outcome(evaluate_traces(trace_records, now=datetime.now(UTC)))
