"""Monitoring assets: what the traffic of the last week says of what was proven before it.

Every monitor reads the hours of traces itself, so that one may be made without the others; `alarms`
judges them together. Belongs here: declarations. Does not belong here: statistics (one module for
each monitor), telling people (`orchestration/sensors`).
"""

from collections.abc import Sequence

import dagster as dg
import polars as pl

from assets import keys
from assets.eval_set.suites import BEHAVIOURS
from assets.monitoring.agreement import measure_agreement, pair_answers
from assets.monitoring.alarms import raise_alarms
from assets.monitoring.assignment import measure_assignment
from assets.monitoring.clusters import (
    cluster_pairs,
    judge_clusters,
    read_registered,
    tabulate_clusters,
)
from assets.monitoring.cold_starts import measure_cold_starts
from assets.monitoring.curation import measure_curation
from assets.monitoring.drift import EMBEDDED, gather_drift, measure_drift
from assets.monitoring.drift_report import write_drift_report
from assets.monitoring.measurements import Measurement, MonitoringPlan, tabulate_measurements
from assets.monitoring.probing import (
    measure_embedder,
    measure_fingerprints,
    read_pinned,
    read_probes,
)
from assets.monitoring.reporting import write_alarm_report
from assets.monitoring.sampling import draw_stratified, measure_samples
from assets.monitoring.separation import find_training, measure_separation
from assets.monitoring.slices import measure_slices
from assets.monitoring.traffic import Traffic, gather_traffic
from assets.traces.hours import find_folder, list_hours, scan_hours
from serving.home import Home
from serving.models.protocols import Embedder


@dg.asset(
    key=keys.SHADOW_AGREEMENT,
    deps=[keys.HOURLY_RECORDS],
    kinds={"scipy", "polars"},
    code_version="1",
)
def shadow_agreement(
    home: dg.ResourceParam[Home], monitoring_plan: dg.ResourceParam[MonitoringPlan]
) -> dg.MaterializeResult[pl.DataFrame]:
    """How often student and teacher answered the same question alike: bound, test, fall, topics."""
    traffic = gather_traffic(home, monitoring_plan)
    return _report("shadow_agreement", measure_agreement(traffic), traffic)


@dg.asset(
    key=keys.DISAGREEMENT_CLUSTERS,
    ins={"eval_embeddings": dg.AssetIn(key=keys.EVAL_EMBEDDINGS)},
    deps=[keys.HOURLY_RECORDS],
    kinds={"scikitlearn", "polars"},
    code_version="1",
)
def disagreement_clusters(
    eval_embeddings: pl.DataFrame,
    home: dg.ResourceParam[Home],
    monitoring_plan: dg.ResourceParam[MonitoringPlan],
    live_embedder: dg.ResourceParam[Embedder],
) -> dg.MaterializeResult[pl.DataFrame]:
    """What student and teacher part over in shadow, by kind of question."""
    traffic = gather_traffic(home, monitoring_plan)
    registered, behaviours = read_registered(eval_embeddings, BEHAVIOURS)
    clusters = cluster_pairs(
        pair_answers(traffic.asks, traffic.shadows),
        live_embedder,
        registered=registered,
        behaviours=behaviours,
    )
    frame = tabulate_clusters(clusters, start=traffic.start, end=traffic.end)
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "cluster_count": frame.height,
            "unregistered_count": int((~frame["is_registered"]).sum()),
            "largest_question_count": int(frame["question_count"].head(1).sum()),
        },
    )


@dg.asset(
    key=keys.TRAFFIC_DRIFT,
    deps=[keys.HOURLY_RECORDS],
    kinds={"scipy", "scikitlearn", "polars"},
    code_version="1",
)
def traffic_drift(
    home: dg.ResourceParam[Home],
    monitoring_plan: dg.ResourceParam[MonitoringPlan],
    live_embedder: dg.ResourceParam[Embedder],
) -> dg.MaterializeResult[pl.DataFrame]:
    """The week's questions against those of the weeks before: length, topic, language, score, text.

    Evidently's report of the same columns lies under `reports/monitoring/`.
    """
    traffic = gather_traffic(home, monitoring_plan)
    frames = gather_drift(traffic)
    found = measure_drift(traffic, frames, live_embedder)
    report = write_drift_report(home.reports / "monitoring", frames)
    shown = {"report": dg.MetadataValue.path(str(report))} if report else {}
    return _report("traffic_drift", found, traffic, shown)


@dg.asset(
    key=keys.SERVED_BY_SLICES,
    deps=[keys.HOURLY_RECORDS],
    kinds={"scipy", "polars"},
    code_version="1",
)
def served_by_slices(
    home: dg.ResourceParam[Home], monitoring_plan: dg.ResourceParam[MonitoringPlan]
) -> dg.MaterializeResult[pl.DataFrame]:
    """The student's share of the answers by slice, and its change with topics held fixed."""
    traffic = gather_traffic(home, monitoring_plan)
    return _report("served_by_slices", measure_slices(traffic), traffic)


@dg.asset(
    key=keys.EMBEDDER_PROBE,
    ins={"vector_index": dg.AssetIn(key=keys.VECTOR_INDEX)},
    deps=[keys.HOURLY_RECORDS],
    kinds={"lancedb", "polars"},
    code_version="1",
)
def embedder_probe(
    vector_index: pl.DataFrame,
    home: dg.ResourceParam[Home],
    monitoring_plan: dg.ResourceParam[MonitoringPlan],
    live_embedder: dg.ResourceParam[Embedder],
) -> dg.MaterializeResult[pl.DataFrame]:
    """64 texts of the index embedded again, and the fingerprints that traces were answered from."""
    traffic, index = gather_traffic(home, monitoring_plan), vector_index.row(0, named=True)
    probes = read_probes(home.index / index["index_fingerprint"])
    current = index["index_fingerprint"], index["embedder_fingerprint"]
    found = [
        *measure_embedder(probes, live_embedder, place=monitoring_plan.embedder_place),
        measure_fingerprints(traffic, read_pinned(home), current),
    ]
    return _report("embedder_probe", found, traffic)


@dg.asset(
    key=keys.ASSIGNMENT_AUDIT,
    deps=[keys.HOURLY_RECORDS],
    kinds={"scipy", "scikitlearn", "polars"},
    code_version="1",
)
def assignment_audit(
    home: dg.ResourceParam[Home], monitoring_plan: dg.ResourceParam[MonitoringPlan]
) -> dg.MaterializeResult[pl.DataFrame]:
    """Whether the canary's arms were drawn by chance: their ratio, and what the arm depends on."""
    traffic = gather_traffic(home, monitoring_plan)
    return _report("assignment_audit", measure_assignment(traffic), traffic)


@dg.asset(
    key=keys.COLD_START_REPORT,
    deps=[keys.HOURLY_RECORDS],
    kinds={"scipy", "polars"},
    code_version="1",
)
def cold_start_report(
    home: dg.ResourceParam[Home], monitoring_plan: dg.ResourceParam[MonitoringPlan]
) -> dg.MaterializeResult[pl.DataFrame]:
    """What answers of a cold model add to the 99th percentile, and how many there are."""
    traffic = gather_traffic(home, monitoring_plan)
    return _report("cold_start_report", measure_cold_starts(traffic, monitoring_plan), traffic)


@dg.asset(
    key=keys.SAMPLE_AUDIT,
    ins={"curation_decisions": dg.AssetIn(key=keys.CURATION_DECISIONS)},
    deps=[keys.HOURLY_RECORDS],
    kinds={"scipy", "polars"},
    code_version="1",
)
def sample_audit(
    curation_decisions: pl.DataFrame,
    home: dg.ResourceParam[Home],
    monitoring_plan: dg.ResourceParam[MonitoringPlan],
) -> dg.MaterializeResult[pl.DataFrame]:
    """Whether what is judged stands for what was asked: pairs, curated traces, own sample."""
    traffic = gather_traffic(home, monitoring_plan)

    def keep(ids: pl.Series) -> pl.DataFrame:
        return traffic.asks.filter(pl.col("trace_id").is_in(ids.drop_nulls().implode()))

    samples = {
        "shadow_pairs": keep(traffic.shadows["parent_trace_id"]),
        "curated_traces": keep(curation_decisions["trace_id"]),
        "stratified": draw_stratified(traffic.asks, EMBEDDED),
    }
    return _report("sample_audit", measure_samples(traffic, samples), traffic)


@dg.asset(
    key=keys.POOL_SEPARATION,
    deps=[keys.HOURLY_RECORDS, keys.STUDENT_ADAPTER],
    kinds={"numpy", "polars"},
    code_version="1",
)
def pool_separation(
    home: dg.ResourceParam[Home], monitoring_plan: dg.ResourceParam[MonitoringPlan]
) -> dg.MaterializeResult[pl.DataFrame]:
    """Whether training shares serving's accelerators, and what it did to the 99th percentile."""
    traffic = gather_traffic(home, monitoring_plan)
    found = measure_separation(traffic, find_training(home), monitoring_plan)
    return _report("pool_separation", found, traffic)


@dg.asset(
    key=keys.CURATION_AUDIT,
    ins={
        "seed_questions": dg.AssetIn(key=keys.SEED_QUESTIONS),
        "admissions": dg.AssetIn(key=keys.ADMISSIONS),
        "curation_decisions": dg.AssetIn(key=keys.CURATION_DECISIONS),
        "escalations": dg.AssetIn(key=keys.ESCALATIONS),
    },
    deps=[keys.HOURLY_RECORDS],
    kinds={"polars"},
    code_version="1",
)
def curation_audit(
    seed_questions: pl.DataFrame,
    admissions: pl.DataFrame,
    curation_decisions: pl.DataFrame,
    escalations: pl.DataFrame,
    home: dg.ResourceParam[Home],
    monitoring_plan: dg.ResourceParam[MonitoringPlan],
) -> dg.MaterializeResult[pl.DataFrame]:
    """What reached the seeds undecided or from elsewhere, and what automation closed for people."""
    traffic = gather_traffic(home, monitoring_plan)
    stored = scan_hours(list_hours(find_folder(home)))
    asked = stored.select("trace_id", "env", "question_hash").collect()
    found = measure_curation(seed_questions, admissions, curation_decisions, escalations, asked)
    return _report("curation_audit", found, traffic)


@dg.asset(
    key=keys.ALARMS,
    ins={
        "shadow_agreement": dg.AssetIn(key=keys.SHADOW_AGREEMENT),
        "disagreement_clusters": dg.AssetIn(key=keys.DISAGREEMENT_CLUSTERS),
        "traffic_drift": dg.AssetIn(key=keys.TRAFFIC_DRIFT),
        "served_by_slices": dg.AssetIn(key=keys.SERVED_BY_SLICES),
        "embedder_probe": dg.AssetIn(key=keys.EMBEDDER_PROBE),
        "assignment_audit": dg.AssetIn(key=keys.ASSIGNMENT_AUDIT),
        "cold_start_report": dg.AssetIn(key=keys.COLD_START_REPORT),
        "sample_audit": dg.AssetIn(key=keys.SAMPLE_AUDIT),
        "pool_separation": dg.AssetIn(key=keys.POOL_SEPARATION),
        "curation_audit": dg.AssetIn(key=keys.CURATION_AUDIT),
    },
    kinds={"statsmodels", "polars"},
    code_version="1",
)
def alarms(
    shadow_agreement: pl.DataFrame,
    disagreement_clusters: pl.DataFrame,
    traffic_drift: pl.DataFrame,
    served_by_slices: pl.DataFrame,
    embedder_probe: pl.DataFrame,
    assignment_audit: pl.DataFrame,
    cold_start_report: pl.DataFrame,
    sample_audit: pl.DataFrame,
    pool_separation: pl.DataFrame,
    curation_audit: pl.DataFrame,
    home: dg.ResourceParam[Home],
) -> dg.MaterializeResult[pl.DataFrame]:
    """One row per monitor: ok, alarm or inconclusive, after Holm's correction over all tests."""
    start, end = shadow_agreement.select("window_start", "window_end").row(0)
    clusters = judge_clusters(disagreement_clusters, shadow_agreement)
    measured = pl.concat(
        [
            shadow_agreement,
            tabulate_measurements("disagreement_clusters", [clusters], start=start, end=end),
            traffic_drift,
            served_by_slices,
            embedder_probe,
            assignment_audit,
            cold_start_report,
            sample_audit,
            pool_separation,
            curation_audit,
        ]
    )
    frame = raise_alarms(measured)
    report = write_alarm_report(home.reports / "monitoring", frame, measured)
    counts = dict(frame["status"].value_counts().iter_rows())
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "report": dg.MetadataValue.path(str(report)),
            "alarming": frame.filter(status="alarm")["monitor"].to_list(),
            **{f"{status}_count": counts.get(status, 0) for status in ("ok", "inconclusive")},
        },
    )


def _report(
    monitor: str,
    measurements: Sequence[Measurement],
    traffic: Traffic,
    more: dict[str, dg.MetadataValue] | None = None,
) -> dg.MaterializeResult[pl.DataFrame]:
    told = [one for one in measurements if one.outcome != "shown"]
    metadata: dict[str, object] = {
        "ask_count": traffic.asks.height,
        "numbers": {f"{m.metric} of {m.slice}": m.number for m in told if m.number is not None},
        "past_their_limit": [f"{m.metric} of {m.slice}" for m in told if m.outcome == "past"],
        "open": {f"{m.metric} of {m.slice}": m.detail for m in told if m.number is None},
        **(more or {}),
    }
    return dg.MaterializeResult(
        value=tabulate_measurements(monitor, measurements, start=traffic.start, end=traffic.end),
        metadata=metadata,
    )
