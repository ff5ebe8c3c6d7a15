"""What the table of trace records promises, record by record.

Every promise is a warning: a record is history that nobody can mend, and what trains does not read
it. Failing rows are told by their trace ids alone, because traces are private. Belongs here: the
promises and the scalars they read. Does not belong here: what a server writes
(`serving/tracing/record.py`).
"""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, get_args

import polars as pl

from assets.expectations import CLOCK_SKEW, EARLIEST_DATE, SuiteOutcome, evaluate_suite
from serving.hashing import content_hash
from serving.models.protocols import ServedBy
from serving.pipeline.router import Phase, RouteReason
from serving.schemas import ProblemName
from serving.tracing.clients import CLIENT_KINDS
from serving.tracing.record import SelectionMode
from serving.tracing.scrub import scrub

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

UUID7 = r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
MINIMUM_ANSWERED_RATIO = 0.95  # more than one problem in twenty questions is an outage
AUDITED_RECORDS = 5000
"""How many of the newest records are scrubbed once more, at some 0.2 ms each. A scrubber that
misses something shows in them; older ones were audited when they were new."""

COST_TOLERANCE_USD = 1e-9  # what adding floats in another order may differ by

FILLED = (
    "trace_id", "asked_at", "env", "prompt_version", "release_id", "snapshot_hash",
    "index_fingerprint", "embedder_fingerprint", "phase", "selection_mode",
    "total_latency_ms", "cost_usd", "trainable", "trainable_reason", "outcome",
)  # fmt: skip
"""Columns that every record must fill."""

VOCABULARIES: Mapping[str, tuple[str, ...]] = {
    "client_kind": CLIENT_KINDS,
    "phase": get_args(Phase),
    "route": get_args(ServedBy),
    "route_reason": get_args(RouteReason),
    "selection_mode": get_args(SelectionMode),
    "served_by": get_args(ServedBy),
    "outcome": ("answered", *get_args(ProblemName)),
}
"""Columns whose words are declared in `serving`."""


def evaluate_traces(records: pl.DataFrame, *, now: datetime) -> SuiteOutcome:
    """Evaluate `trace_records` rows; `now` (UTC) bounds their dates. No rows break no promise."""
    return evaluate_suite(
        flatten_records(records), expect_records(now=now), id_column="trace_id", shows_values=False
    )


def flatten_records(records: pl.DataFrame) -> pl.DataFrame:
    """Return the scalars the promises read, of records in order of time; no text is among them.

    `kind` is answer, refusal or problem. `clock_gap_seconds` compares `asked_at` with the time in
    the uuid7, `cost_gap_usd` the cost with that of the attempts.
    """
    texts = records.select("question", "question_hash", "answer", "conversation_id")
    first = texts.height - AUDITED_RECORDS
    read = [
        _read_texts(row, is_audited=position >= first)
        for position, row in enumerate(texts.iter_rows(named=True))
    ]
    schema = {"has_own_hash": pl.Boolean(), "is_scrubbed": pl.Boolean()}
    id_time = pl.col("trace_id").str.replace_all("-", "").str.slice(0, 12)
    id_ms = id_time.str.to_integer(base=16, strict=False, dtype=pl.Int64)
    retrieved = pl.col("retrieved").list.eval(pl.element().struct.field("chunk_id"))
    paid = pl.col("attempts").list.eval(pl.element().struct.field("cost_usd")).list.sum()
    scalars = records.select(
        *FILLED, "client_kind", "route", "route_reason", "served_by", "propensity",
        (pl.col("question").str.len_chars() > 0).fill_null(value=False).alias("has_question"),
        pl.when(pl.col("outcome") != "answered").then(pl.lit("problem"))
        .when("refused").then(pl.lit("refusal")).otherwise(pl.lit("answer")).alias("kind"),
        pl.col("answer").str.len_chars().fill_null(0).alias("answer_chars"),
        pl.col("attempts").list.len().fill_null(0).alias("attempt_count"),
        pl.col("citations").list.len().fill_null(0).alias("citation_count"),
        pl.col("citations").list.set_difference(retrieved).list.len().fill_null(0)
        .alias("stray_count"),
        ((pl.col("asked_at").dt.epoch("ms") - id_ms).abs() / 1000).alias("clock_gap_seconds"),
        (pl.col("cost_usd") - paid.fill_null(0.0)).abs().alias("cost_gap_usd"),
        (~pl.col("trainable") | ((pl.col("env") == "prod") & (pl.col("outcome") == "answered")))
        .alias("may_be_trainable"),
    )  # fmt: skip
    return pl.concat([scalars, pl.DataFrame(read, schema=schema)], how="horizontal")


def expect_records(*, now: datetime) -> list["Expectation"]:
    """Return what holds of every record that a sound server wrote."""
    return [*_expect_identity(now), *_expect_words(), *_expect_answers(), *_expect_accounts()]


def _read_texts(row: Mapping[str, Any], *, is_audited: bool) -> dict[str, bool | None]:
    question = row["question"] or ""
    stored = (question, row["answer"] or "", row["conversation_id"] or "")
    return {
        "has_own_hash": content_hash(question) == row["question_hash"],
        "is_scrubbed": all(scrub(text) == text for text in stored) if is_audited else None,
    }


def _expect_identity(now: datetime) -> list["Expectation"]:
    from great_expectations import expectations as gxe

    return [
        *(
            gxe.ExpectColumnValuesToNotBeNull(
                column=column, severity="warning", description=f"every record has {column}"
            )
            for column in FILLED
        ),
        gxe.ExpectColumnValuesToBeUnique(
            column="trace_id", severity="warning", description="every trace id is there once"
        ),
        gxe.ExpectColumnValuesToMatchRegex(
            column="trace_id", regex=UUID7, severity="warning",
            description="every trace id is a uuid7",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="asked_at", min_value=EARLIEST_DATE, max_value=now + CLOCK_SKEW,
            severity="warning",
            description="every question was asked after 1999 and not in the future",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="clock_gap_seconds", max_value=CLOCK_SKEW.total_seconds(), severity="warning",
            description="every trace id was made when its question was asked",
        ),
    ]  # fmt: skip


def _expect_words() -> list["Expectation"]:
    from great_expectations import expectations as gxe

    true = {
        "has_question": "every record holds a question",
        "has_own_hash": "every question_hash is that of the question",
        "is_scrubbed": f"no email address, phone or card number or key is in the newest "
        f"{AUDITED_RECORDS:,} records",
        "may_be_trainable": "only answered production questions may be trained on",
    }
    return [
        *(
            gxe.ExpectColumnValuesToBeInSet(
                column=column, value_set=list(words), severity="warning",
                description=f"every {column} is a known one",
            )
            for column, words in VOCABULARIES.items()
        ),
        *(
            gxe.ExpectColumnValuesToBeInSet(
                column=column, value_set=[True], severity="warning", description=statement
            )
            for column, statement in true.items()
        ),
    ]  # fmt: skip


def _expect_answers() -> list["Expectation"]:
    from great_expectations import expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    is_answered = Column("outcome") == "answered"
    counts = {
        "answer_chars": "every answered record holds the answer",
        "attempt_count": "every answered record holds an attempt",
    }
    return [
        *(
            gxe.ExpectColumnValuesToBeBetween(
                column=column, min_value=1, row_condition=is_answered, severity="warning",
                description=statement,
            )
            for column, statement in counts.items()
        ),
        gxe.ExpectColumnValuesToNotBeNull(
            column="served_by", row_condition=is_answered, severity="warning",
            description="every answered record says which model served it",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="citation_count", min_value=1, row_condition=Column("kind") == "answer",
            severity="warning", description="every answer cites a chunk",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="citation_count", max_value=0, row_condition=Column("kind") == "refusal",
            severity="warning", description="no refusal cites anything",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="stray_count", max_value=0, severity="warning",
            description="every cited chunk was retrieved",
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="kind", value_set=["answer", "refusal"], mostly=MINIMUM_ANSWERED_RATIO,
            severity="warning",
            description=f"at least {MINIMUM_ANSWERED_RATIO:.0%} of the questions were answered",
        ),
    ]  # fmt: skip


def _expect_accounts() -> list["Expectation"]:
    from great_expectations import expectations as gxe

    return [
        *(
            gxe.ExpectColumnValuesToBeBetween(
                column=column, min_value=0, severity="warning",
                description=f"no {column} is negative",
            )
            for column in ("cost_usd", "total_latency_ms")
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="cost_gap_usd", max_value=COST_TOLERANCE_USD, severity="warning",
            description="every cost is that of all attempts, a wasted one included",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="propensity", min_value=0, strict_min=True, max_value=1, severity="warning",
            description="every propensity is a probability above 0",
        ),
    ]  # fmt: skip
