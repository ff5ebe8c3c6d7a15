"""What the traces promise."""

from datetime import UTC, datetime

import dagster as dg
import polars as pl

from assets import keys
from assets.check_results import report_outcome
from assets.traces.admission import KeyLimits, count_candidates
from assets.traces.assets import SeedCount, Traces
from assets.traces.compaction import find_miscounted
from assets.traces.deciding import REASON_CODES, REVIEWER_KINDS, VERDICTS
from assets.traces.escalating import HASTY_LIMIT_RATIO, MINIMUM_SECONDS, audit_loop
from assets.traces.expectations import evaluate_traces
from assets.traces.frames import TORN_TAIL
from assets.traces.hours import find_folder, list_hours, scan_hours
from assets.traces.mending import find_unsettled
from assets.traces.planting import LEAST_CAUGHT_RATIO, audit_plants, open_plants
from assets.traces.requesting import find_remains, find_unfinished
from assets.traces.tainting import find_published
from serving.home import Home

SHOWN = 20
STORED_PLACES = ("hours", "traces/")


@dg.asset_check(asset=keys.HOURLY_RECORDS, blocking=True)
def every_record_is_stored_once(
    traces: dg.ResourceParam[Traces], home: dg.ResourceParam[Home]
) -> dg.AssetCheckResult:
    """Every record of a compacted segment lies in the hours exactly once, deleted ones aside."""
    wrong = find_miscounted(find_folder(home), traces.list_files())
    return dg.AssetCheckResult(
        passed=not wrong,
        metadata={"miscounted_count": len(wrong), "miscounted_segments": wrong[:SHOWN]},
    )


@dg.asset_check(asset=keys.QUARANTINED_FRAMES)
def nothing_is_quarantined(
    quarantined_frames: pl.DataFrame, home: dg.ResourceParam[Home]
) -> dg.AssetCheckResult:
    """Every byte of every segment and hour was read. This check warns and does not block.

    The records that could be read are stored, so a block would help nobody. A torn tail is the mark
    of a killed server and was never reported persisted: it alone raises no alarm. `lost_count` is
    of records that lay in damaged hours and are in no segment any more; `waiting_hours` are damaged
    ones of which that cannot be said before a segment opens.
    """
    alarming = quarantined_frames.filter(pl.col("reason") != TORN_TAIL)
    waiting = find_unsettled(find_folder(home))
    return dg.AssetCheckResult(
        passed=alarming.is_empty() and not waiting,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "quarantined_count": alarming.height,
            "torn_tail_count": quarantined_frames.height - alarming.height,
            "lost_count": int(alarming["lost_count"].sum()),
            "segments": alarming["segment"].unique().sort().to_list()[:SHOWN],
            "waiting_hours": waiting[:SHOWN],
        },
    )


@dg.asset_check(asset=keys.TRACE_RECORDS)
def trace_records_meet_expectations(trace_records: pl.DataFrame) -> dg.AssetCheckResult:
    """Every record is whole, scrubbed and adds up. This check warns and does not block.

    A record is history: nobody can mend it, so a block would stop every later run for good, and
    nothing that trains reads traces. Its metadata name records by id and never quote them. Without
    any trace yet there is nothing to object to: it passes and says 0 rows.
    """
    return report_outcome(evaluate_traces(trace_records, now=datetime.now(UTC)))


@dg.asset_check(asset=keys.FEEDBACK, blocking=True)
def every_feedback_has_its_id(feedback: pl.DataFrame) -> dg.AssetCheckResult:
    """Every thumb is there once, with a rating and the trace it is about."""
    broken = feedback.filter(
        pl.col("feedback_id").is_duplicated()
        | pl.any_horizontal(pl.col("feedback_id", "rating", "trace_id").is_null())
    )
    return dg.AssetCheckResult(
        passed=broken.is_empty(),
        metadata={
            "feedback_count": feedback.height,
            "broken_ids": broken["feedback_id"].to_list()[:SHOWN],
        },
    )


@dg.asset_check(asset=keys.CURATION_DECISIONS, blocking=True)
def every_decision_is_reviewed(curation_decisions: pl.DataFrame) -> dg.AssetCheckResult:
    """Every decision has a trace, a reviewer, a date and the rubric's words."""
    reasons = [reason for words in REASON_CODES.values() for reason in words]
    sound = (
        pl.col("decision").is_in(VERDICTS)
        & pl.col("reviewer_kind").is_in(REVIEWER_KINDS)
        & pl.col("reason_code").is_in(reasons)
        & (pl.col("reviewer").str.strip_chars() != "")
        & pl.col("trace_id").is_not_null()
        & pl.col("decided_at").is_not_null()
        & pl.col("decision_id").is_unique()
    )
    broken = curation_decisions.filter(~sound.fill_null(value=False))
    return dg.AssetCheckResult(
        passed=broken.is_empty(),
        metadata={
            "decision_count": curation_decisions.height,
            "broken_decisions": broken["decision_id"].to_list()[:SHOWN],
        },
    )


@dg.asset_check(asset=keys.ADMISSIONS, blocking=True)
def only_curated_production_is_admitted(
    admissions: pl.DataFrame,
    home: dg.ResourceParam[Home],
    seeds: dg.ResourceParam[SeedCount],
) -> dg.AssetCheckResult:
    """No admitted question's stored trace is from elsewhere, escalated, flagged or untrainable.

    Nor has one key more of them than so many seeds allow, nor are they of too few keys. The stored
    traces are read, and not what the decisions quote of them: a line that was written by another
    hand than the curation's is found. A trace whose hours are gone cannot be compared and is
    counted.
    """
    admitted = admissions.filter("is_admitted")["trace_id"].to_list()
    stored = (
        scan_hours(list_hours(find_folder(home)))
        .filter(pl.col("trace_id").is_in(admitted) & pl.col("selection_mode").ne_missing("shadow"))
        .select("trace_id", "env", "trainable", "escalation_requested", "is_injection")
        .collect()
    )
    sound = (pl.col("env") == "prod") & pl.col("trainable")
    sound &= ~pl.col("escalation_requested") & ~pl.col("is_injection")
    leaked = stored.filter(~sound.fill_null(value=False))
    by_key = admissions.filter("is_admitted")["key_id"].value_counts()
    most = int(by_key["count"].max() or 0)
    limits = KeyLimits.of(len(seeds.read()) + count_candidates(admissions))
    is_shared = most <= limits.rows and (not admitted or by_key.height >= limits.keys)
    return dg.AssetCheckResult(
        passed=leaked.is_empty() and is_shared,
        metadata={
            "admitted_count": len(admitted),
            "key_count": by_key.height,
            "minimum_keys": limits.keys,
            "most_of_one_key": most,
            "maximum_rows_per_key": limits.rows,
            "not_production_count": leaked.filter(pl.col("env").ne_missing("prod")).height,
            "leaked_traces": leaked["trace_id"].to_list()[:SHOWN],
            "without_a_stored_trace_count": len(set(admitted) - set(stored["trace_id"])),
        },
    )


@dg.asset_check(
    asset=keys.ESCALATIONS,
    additional_ins={"curation_decisions": dg.AssetIn(key=keys.CURATION_DECISIONS)},
    blocking=True,
)
def human_loop_is_human(
    escalations: pl.DataFrame, curation_decisions: pl.DataFrame
) -> dg.AssetCheckResult:
    """No escalation was closed by automation, and at most 1 % faster than a person reads.

    A closing by automation fails, and so does its decision about what a person closed. Too many
    hasty ones warn, and so does what automation accepted before users made it a person's matter:
    it may be trained on until a person decides. Without any closing it passes.
    """
    loop = audit_loop(escalations, curation_decisions)
    is_hasty = loop.hasty_ratio > HASTY_LIMIT_RATIO
    severity = dg.AssetCheckSeverity
    return dg.AssetCheckResult(
        passed=loop.is_human and not is_hasty and not loop.unseen,
        severity=severity.WARN if loop.is_human else severity.ERROR,
        metadata={
            "closed_count": loop.closed_count,
            "closed_by_automation_count": len(loop.by_automation),
            "closed_by_automation": list(loop.by_automation[:SHOWN]),
            "minimum_seconds": MINIMUM_SECONDS,
            "hasty_ratio": loop.hasty_ratio,
            "hasty_limit_ratio": HASTY_LIMIT_RATIO,
            "hasty": list(loop.hasty[:SHOWN]),
            "unseen_count": len(loop.unseen),
            "unseen": list(loop.unseen[:SHOWN]),
        },
    )


@dg.asset_check(
    asset=keys.ESCALATIONS,
    additional_ins={"curation_decisions": dg.AssetIn(key=keys.CURATION_DECISIONS)},
)
def planted_errors_are_caught(
    escalations: pl.DataFrame,  # noqa: ARG001 - the queue that is reviewed
    curation_decisions: pl.DataFrame,
    home: dg.ResourceParam[Home],
) -> dg.AssetCheckResult:
    """Reviewers reject at least 90 % of the planted errors they decide about; does not block.

    What inattentive people decided is stored already, and a block would not undo it. Without any
    decision about a planted error it passes and says so.
    """
    audit = audit_plants(open_plants(find_folder(home)).read(), curation_decisions)
    return dg.AssetCheckResult(
        passed=audit.is_watchful,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "planted_count": audit.planted_count,
            "decided_count": audit.decided_count,
            "missed_count": len(audit.missed),
            "least_caught_ratio": LEAST_CAUGHT_RATIO,
            "missed": list(audit.missed[:SHOWN]),
        },
    )


@dg.asset_check(asset=keys.DELETIONS, blocking=True)
def deleted_traces_are_gone(
    deletions: pl.DataFrame, home: dg.ResourceParam[Home]
) -> dg.AssetCheckResult:
    """What a tombstone names is in no hour and in no table of traces, and no deletion waits.

    What grew from it goes at the request. A run that was under way then may have stored some of it
    again, until the next one: such rows are counted and do not fail the check.
    """
    remains = find_remains(home)
    stored = {place: n for place, n in remains.items() if place.startswith(STORED_PLACES)}
    unfinished = find_unfinished(home)
    return dg.AssetCheckResult(
        passed=not stored and not unfinished,
        description=f"interrupted: repeat `{unfinished[0]}`" if unfinished else None,
        metadata={
            "tombstone_count": deletions.height,
            "remains_by_place": stored,
            "grown_waiting_count": sum(remains.values()) - sum(stored.values()),
            "unfinished": unfinished[:SHOWN],
        },
    )


@dg.asset_check(asset=keys.DELETIONS)
def no_published_adapter_learned_from_deleted(
    deletions: pl.DataFrame, home: dg.ResourceParam[Home]
) -> dg.AssetCheckResult:
    """No adapter that a tombstone names is in the published release. It warns and does not block.

    Weights cannot be rewritten: the next release, trained without the deleted rows, mends it, and a
    block would stop just that run.
    """
    marked = {*deletions["adapters"].explode().drop_nulls()}
    published = find_published(home)
    tainted = sorted(marked & {*published})
    return dg.AssetCheckResult(
        passed=not tainted,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "adapters_to_retrain": sorted(marked),
            "adapters_in_doubt": sorted({*deletions["doubtful_adapters"].explode().drop_nulls()}),
            "published_adapters": published,
            "published_and_marked": tainted,
        },
    )
