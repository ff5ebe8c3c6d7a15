"""The curation's audit: did anything reach training that no person let in, or that was no user's?

Belongs here: harvested seeds against decisions and stored traces, and who closed escalations. Does
not belong here: admission itself and its blocking checks (`assets/traces`), which are to make these
counts zero.
"""

import polars as pl

from assets.monitoring.measurements import Measurement, compare_number, leave_open
from assets.traces.escalating import HASTY_LIMIT_RATIO, audit_loop
from assets.traces.planting import LEAST_CAUGHT_RATIO, audit_plants
from serving.hashing import content_hash

HARVESTED = "harvested"


def measure_curation(
    seeds: pl.DataFrame,
    admissions: pl.DataFrame,
    decisions: pl.DataFrame,
    escalations: pl.DataFrame,
    asked: pl.DataFrame,
    plants: pl.DataFrame,
) -> list[Measurement]:
    """Return what leaked into the seeds, what automation closed for people, and what they missed.

    Args:
        seeds: rows of `tables.SEED_QUESTIONS`.
        admissions: rows of `tables.ADMISSIONS`.
        decisions: rows of `tables.CURATION_DECISIONS`.
        escalations: rows of `tables.ESCALATIONS`.
        asked: trace_id, env and question_hash of every stored trace.
        plants: rows of `planting.PLANTS`; nothing is measured where nothing was planted.
    """
    return [
        *_count_leaks(seeds.filter(pl.col("source") == HARVESTED), admissions, asked),
        *_audit_people(decisions, escalations),
        *_audit_planted(plants, decisions),
    ]


def _count_leaks(
    harvested: pl.DataFrame, admissions: pl.DataFrame, asked: pl.DataFrame
) -> list[Measurement]:
    if harvested.is_empty():
        reason = "no harvested question is among the seeds"
        return [
            leave_open(metric, reason, relation="at most", limit=0)
            for metric in ("undecided_seeds", "seeds_not_of_production", "canaries_leaked")
        ]
    admitted = admissions.filter("is_admitted")["trace_id"]
    undecided = harvested.filter(~pl.col("source_trace_id").is_in(admitted.implode()))
    elsewhere = asked.filter(pl.col("env").ne_missing("prod"))
    foreign = harvested.filter(pl.col("source_trace_id").is_in(elsewhere["trace_id"].implode()))
    # What was only ever asked outside production is a canary: no user can have asked it.
    canaries = elsewhere.join(
        asked.filter(pl.col("env") == "prod"), on="question_hash", how="anti", nulls_equal=True
    )["question_hash"]
    hashes = pl.Series([content_hash(text) for text in harvested["text"]], dtype=pl.String)
    leaked = harvested.filter(hashes.is_in(canaries.implode()))
    return [
        _count("undecided_seeds", undecided["question_id"], harvested.height),
        _count("seeds_not_of_production", foreign["question_id"], harvested.height),
        _count("canaries_leaked", leaked["question_id"], harvested.height),
    ]


def _audit_people(decisions: pl.DataFrame, escalations: pl.DataFrame) -> list[Measurement]:
    loop = audit_loop(escalations, decisions)
    if not loop.closed_count:
        reason = f"none of {escalations.height} escalations was closed yet"
        return [
            leave_open("closed_by_automation", reason, relation="at most", limit=0),
            leave_open("hasty_ratio", reason, relation="at most", limit=HASTY_LIMIT_RATIO),
        ]
    return [
        _count("closed_by_automation", pl.Series(loop.by_automation, dtype=pl.String),
               loop.closed_count),
        compare_number("hasty_ratio", loop.hasty_ratio, relation="at most",
                       limit=HASTY_LIMIT_RATIO, n=loop.closed_count,
                       detail=f"{len(loop.hasty)} of {loop.closed_count} closed faster than read"),
    ]  # fmt: skip


def _audit_planted(plants: pl.DataFrame, decisions: pl.DataFrame) -> list[Measurement]:
    audit, metric = audit_plants(plants, decisions), "planted_errors_caught"
    if plants.is_empty():
        return []
    if audit.caught_ratio is None:
        reason = f"none of {audit.planted_count} planted errors was decided about yet"
        return [leave_open(metric, reason, relation="at least", limit=LEAST_CAUGHT_RATIO)]
    return [
        compare_number(
            metric, audit.caught_ratio, relation="at least", limit=LEAST_CAUGHT_RATIO,
            n=audit.decided_count,
            detail=f"{len(audit.missed)} of {audit.decided_count} planted errors were let through",
        )
    ]  # fmt: skip


def _count(metric: str, ids: pl.Series, n: int) -> Measurement:
    named = ", ".join(ids.head(5).to_list())
    return compare_number(
        metric, ids.len(), relation="at most", limit=0, n=n,
        detail=f"{ids.len()} of {n}{f': {named}' if named else ''}",
    )  # fmt: skip
