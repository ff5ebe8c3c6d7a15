"""What monitoring promises: every number is whole, and no monitor alarms.

Whether something is an alarm is decided once, in `monitoring/alarms`, where all tests of a night
are known; so the promises about traffic are checks of that table. Belongs here: checks. Does not
belong here: limits (the monitors' modules).
"""

import dagster as dg
import polars as pl

from assets import keys
from assets.monitoring.alarms import MONITORS

SHOWN = 20
SHARED_COLUMNS = ("metric", "slice", "outcome")


def _promise_whole(key: dg.AssetKey) -> dg.AssetChecksDefinition:
    """Return the check that a monitor says either a number with its limit, or why there is none."""

    @dg.asset_check(
        asset=key,
        name="every_number_is_whole_or_explained",
        description="Every number has its limit and what it rests on; every other row says why.",
        blocking=True,
    )
    def every_number_is_whole_or_explained(measurements: pl.DataFrame) -> dg.AssetCheckResult:
        decided = pl.col("outcome").is_in(["within", "past"])
        is_whole = (
            pl.col("number").is_not_nan() & pl.col("limit").is_not_null() & (pl.col("n") > 0)
        ).fill_null(value=False)
        is_told = (pl.col("outcome") == "inconclusive") & (pl.col("detail") != "")
        sound = (decided & is_whole) | is_told | (pl.col("outcome") == "shown")
        broken = measurements.filter(~sound)
        return dg.AssetCheckResult(
            passed=broken.is_empty() and not measurements.is_empty(),
            metadata={
                "measurement_count": measurements.height,
                "broken": broken.select(SHARED_COLUMNS).head(SHOWN).write_json(),
            },
        )

    return every_number_is_whole_or_explained


shadow_agreement_is_whole = _promise_whole(keys.SHADOW_AGREEMENT)
traffic_drift_is_whole = _promise_whole(keys.TRAFFIC_DRIFT)
served_by_slices_is_whole = _promise_whole(keys.SERVED_BY_SLICES)
embedder_probe_is_whole = _promise_whole(keys.EMBEDDER_PROBE)
assignment_audit_is_whole = _promise_whole(keys.ASSIGNMENT_AUDIT)
cold_start_report_is_whole = _promise_whole(keys.COLD_START_REPORT)
sample_audit_is_whole = _promise_whole(keys.SAMPLE_AUDIT)
pool_separation_is_whole = _promise_whole(keys.POOL_SEPARATION)
curation_audit_is_whole = _promise_whole(keys.CURATION_AUDIT)


@dg.asset_check(asset=keys.DISAGREEMENT_CLUSTERS, blocking=True)
def every_cluster_names_its_traces(disagreement_clusters: pl.DataFrame) -> dg.AssetCheckResult:
    """Every cluster is there once, with its traces and at least as many pairs as questions."""
    sound = (
        pl.col("cluster_id").is_unique()
        & (pl.col("trace_ids").list.len() > 0)
        & (pl.col("pair_count") >= pl.col("question_count"))
    )
    broken = disagreement_clusters.filter(~sound.fill_null(value=False))
    return dg.AssetCheckResult(
        passed=broken.is_empty(),
        metadata={
            "cluster_count": disagreement_clusters.height,
            "broken_clusters": broken["cluster_id"].to_list()[:SHOWN],
        },
    )


@dg.asset_check(asset=keys.ALARMS, blocking=True)
def every_monitor_is_judged_once(alarms: pl.DataFrame) -> dg.AssetCheckResult:
    """There is one row per monitor: a monitor that is missing could never alarm."""
    found = alarms["monitor"].to_list()
    return dg.AssetCheckResult(
        passed=sorted(found) == sorted(MONITORS),
        metadata={
            "missing": sorted({*MONITORS} - {*found}),
            "unknown": sorted({*found} - {*MONITORS}),
        },
    )


def _promise_quiet(monitor: str, name: str, promise: str) -> dg.AssetChecksDefinition:
    """Return the check that one monitor does not alarm; one that cannot tell warns."""

    @dg.asset_check(
        asset=keys.ALARMS,
        name=name,
        description=f"{promise} Too little traffic to tell warns. This check does not block: "
        "nothing is made from alarms, and they are for people.",
    )
    def stays_quiet(alarms: pl.DataFrame) -> dg.AssetCheckResult:
        row = alarms.row(by_predicate=pl.col("monitor") == monitor, named=True)
        severity = dg.AssetCheckSeverity
        return dg.AssetCheckResult(
            passed=row["status"] == "ok",
            severity=severity.ERROR if row["status"] == "alarm" else severity.WARN,
            description=f"{row['metric']}: {row['detail']}",
            metadata={
                name: row[name]
                for name in ("status", "metric", "slice", "number", "limit", "p_value", "n")
                if row[name] is not None
            },
        )

    return stays_quiet


student_agrees_in_shadow = _promise_quiet(
    "shadow_agreement",
    "student_agrees_in_shadow",
    "Student and teacher answer 95 % of real questions alike, and no fewer than before.",
)
no_disagreement_is_unregistered = _promise_quiet(
    "disagreement_clusters",
    "no_disagreement_is_unregistered",
    "No kind of question outside the behaviour registry has five disagreements.",
)
traffic_is_what_it_was = _promise_quiet(
    "traffic_drift", "traffic_is_what_it_was", "People ask what they asked in the weeks before."
)
router_decides_as_before = _promise_quiet(
    "served_by_slices",
    "router_decides_as_before",
    "Within each topic the student answers as large a share as before.",
)
embedder_is_that_of_the_index = _promise_quiet(
    "embedder_probe",
    "embedder_is_that_of_the_index",
    "Texts of the index get the vectors that are stored, and traces name that index.",
)
arms_are_drawn_by_chance = _promise_quiet(
    "assignment_audit",
    "arms_are_drawn_by_chance",
    "Which arm of the canary a conversation gets depends on nothing that can be seen.",
)
no_cold_start_hides_in_p99 = _promise_quiet(
    "cold_start_report",
    "no_cold_start_hides_in_p99",
    "Answers of a cold model are rare and do not move the 99th percentile.",
)
samples_stand_for_the_traffic = _promise_quiet(
    "sample_audit",
    "samples_stand_for_the_traffic",
    "What is judged was asked at the hours, on the weekdays and by the routes of all traffic.",
)
training_slows_no_answer = _promise_quiet(
    "pool_separation",
    "training_slows_no_answer",
    "Training shares no accelerator with serving and does not move its 99th percentile.",
)
only_people_let_questions_in = _promise_quiet(
    "curation_audit",
    "only_people_let_questions_in",
    "No seed is undecided or from elsewhere, and automation closed nothing of people's.",
)
