"""Admission to training: which accepted production questions may become seeds.

A pure function of decisions and tombstones: a new trace alone changes nothing here. Belongs here:
the terms about one row and about the population of keys. Does not belong here: terms about texts
(`seeds/harvesting`: repetition, clusters; `eval_set/guard`: the eval set).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from assets import tables
from assets.traces.deleting import mark_deleted

MAXIMUM_ROWS_PER_KEY = 20  # whatever else: one customer's questions are not everybody's
MAXIMUM_KEY_RATIO = 0.02  # of all seeds, hand-written ones included; at least one row
MINIMUM_KEYS = 10  # below it: nothing is admitted

ADMITTED = ""
NOT_ACCEPTED = "not_accepted"
KEY_LIMIT = "key_limit"
TOO_FEW_KEYS = "too_few_keys"


@dataclass(frozen=True, kw_only=True)
class KeyLimits:
    """How much of the seeds may come from one key, and from how many keys at least."""

    rows: int
    keys: int = MINIMUM_KEYS

    @classmethod
    def of(cls, seed_count: int) -> "KeyLimits":
        """Return the limits for so many seeds."""
        share = max(1, int(MAXIMUM_KEY_RATIO * seed_count))
        return cls(rows=min(MAXIMUM_ROWS_PER_KEY, share))


def admit_decisions(
    decisions: pl.DataFrame, tombstones: pl.DataFrame, *, handwritten_count: int
) -> pl.DataFrame:
    """Return every decision with a column `reason`: empty is admitted, otherwise why not.

    In this order: `superseded` (a later decision about the trace stands), `not_accepted`,
    `deleted`, `not_production`, `not_trainable`, `escalated`, `injection`, `not_human` (automation
    decided about a trace that a person had decided about, or that was decided as an escalation),
    then over what is left: `key_limit` (past the rows of one key, in order of decision),
    `too_few_keys`. A trace without a key counts for a key of its own that all such traces share, so
    a server without keys teaches nothing.
    """
    dated = decisions.sort("decided_at", maintain_order=True)
    is_last = pl.int_range(pl.len()).over("trace_id") == pl.len().over("trace_id") - 1
    is_human = pl.col("reviewer_kind").eq_missing("human")
    is_persons = is_human | pl.col("escalation_id").is_not_null()
    is_deleted = mark_deleted(dated, tombstones) | dated["question"].is_null()
    terms: Sequence[tuple[str, pl.Expr]] = (
        ("superseded", ~is_last),
        (NOT_ACCEPTED, pl.col("decision").ne_missing("accepted")),
        ("deleted", pl.lit(is_deleted)),
        ("not_production", pl.col("env").ne_missing("prod")),
        ("not_trainable", ~pl.col("trainable").fill_null(value=False)),
        ("escalated", pl.col("escalation_requested").fill_null(value=True)),
        ("injection", pl.col("is_injection").fill_null(value=True)),
        ("not_human", ~is_human & is_persons.any().over("trace_id")),
    )
    reason = pl.coalesce(
        *(pl.when(condition).then(pl.lit(name)) for name, condition in terms), pl.lit(ADMITTED)
    )
    judged = dated.with_columns(reason.alias("reason"))
    return _limit_keys(judged, handwritten_count)


def select_harvest(admitted: pl.DataFrame) -> pl.DataFrame:
    """Return the admitted decisions as rows of `tables.HARVESTED_QUESTIONS`."""
    chosen = admitted.filter(pl.col("reason") == ADMITTED)
    return chosen.rename({"question": "text", "trace_id": "source_trace_id"}).select(
        tables.HARVESTED_QUESTIONS.names()
    )


def tabulate_admissions(admitted: pl.DataFrame) -> pl.DataFrame:
    """Return rows of `tables.ADMISSIONS`: no text is among them."""
    return admitted.with_columns((pl.col("reason") == ADMITTED).alias("is_admitted")).select(
        tables.ADMISSIONS.names()
    )


def count_candidates(admissions: pl.DataFrame) -> int:
    """Return how many rows met every term about themselves; the limits count them all as seeds."""
    return admissions.filter(pl.col("reason").is_in([ADMITTED, KEY_LIMIT, TOO_FEW_KEYS])).height


def _limit_keys(judged: pl.DataFrame, handwritten_count: int) -> pl.DataFrame:
    is_open = pl.col("reason") == ADMITTED
    open_count = judged.select(is_open.sum()).item()
    limits = KeyLimits.of(handwritten_count + int(open_count))
    key = pl.col("key_id").fill_null("")
    rank = is_open.cast(pl.Int64).cum_sum().over(key)
    limited = judged.with_columns(
        pl.when(is_open & (rank > limits.rows))
        .then(pl.lit(KEY_LIMIT))
        .otherwise("reason")
        .alias("reason")
    )
    keys = limited.filter(is_open)["key_id"].n_unique()
    if keys >= limits.keys:
        return limited
    return limited.with_columns(
        pl.when(is_open).then(pl.lit(TOO_FEW_KEYS)).otherwise("reason").alias("reason")
    )
