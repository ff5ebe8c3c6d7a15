"""Feedback of readers as a table: for people who debug, and for nobody else.

No path leads from here to training: no module of a later stage may import this one, and no asset is
downstream of the table. Belongs here: typing. Does not belong here: what a server stores
(`serving/feedback`).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from assets import tables


def tabulate_feedback(records: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Return rows of `tables.FEEDBACK` in order of time; what does not fit its type is null.

    What was deleted left a blank record, which is no feedback.
    """
    written = pl.Schema({**tables.FEEDBACK, "given_at": pl.String()})
    given = (record for record in records if not record.get("deleted"))
    known = [{name: record.get(name) for name in written} for record in given]
    frame = pl.DataFrame(known, schema=written, strict=False, orient="row")
    given_at = pl.col("given_at").str.to_datetime(
        "%Y-%m-%dT%H:%M:%S%.fZ", time_unit="us", strict=False
    )
    return frame.with_columns(given_at.dt.replace_time_zone("UTC")).sort(
        "feedback_id", nulls_last=True, maintain_order=True
    )
