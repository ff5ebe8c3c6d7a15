"""Monitoring assets: what the traffic of the last week says of what was proven before it.

Every monitor asks for the traffic itself, so that one may be made without the others; the hours are
read once for all that one process makes. `alarms` judges them together. Belongs here: declarations.
Does not belong here: statistics (one module for each monitor), telling people
(`orchestration/sensors`).
"""

from collections.abc import Callable, Sequence

import dagster as dg
import polars as pl

from assets import keys
from assets.monitoring.agreement import measure_agreement, pair_questions
from assets.monitoring.alarms import MONITORS, raise_alarms
from assets.monitoring.assignment import measure_assignment
from assets.monitoring.clusters import judge_clusters, tabulate_clusters
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
from assets.monitoring.sampling import CURATED, draw_stratified, measure_samples, take_curated
from assets.monitoring.separation import find_training, measure_separation
from assets.monitoring.slices import measure_slices
from assets.monitoring.traffic import Traffic, gather_traffic
from assets.releases.disagreements import cluster_pairs, read_registered
from assets.traces.hours import find_folder, list_hours, scan_hours
from assets.traces.planting import open_plants
from serving.home import Home
from serving.models.protocols import Embedder

Table = dg.MaterializeResult[pl.DataFrame]
Measure = Callable[[Traffic, Home, MonitoringPlan], Sequence[Measurement]]


def _take(*upstream: dg.AssetKey) -> dict[str, dg.AssetIn]:
    return {key.path[-1]: dg.AssetIn(key=key) for key in upstream}


def _declare_monitor(
    key: dg.AssetKey,
    measure: Measure,
    description: str,
    *,
    kinds: set[str],
    deps: Sequence[dg.AssetKey] = (),
) -> dg.AssetsDefinition:
    """Return a monitor that reads nothing but traffic, and what the home says beside it."""

    @dg.asset(
        key=key,
        deps=[keys.HOURLY_RECORDS, *deps],
        kinds=kinds,
        code_version="2",
        description=description,
    )
    def monitor(
        home: dg.ResourceParam[Home], monitoring_plan: dg.ResourceParam[MonitoringPlan]
    ) -> Table:
        traffic = gather_traffic(home, monitoring_plan)
        return _report(key.path[-1], measure(traffic, home, monitoring_plan), traffic)

    return monitor


shadow_agreement = _declare_monitor(
    keys.SHADOW_AGREEMENT,
    lambda traffic, _, plan: measure_agreement(traffic, plan),
    "How often student and teacher answered the same question alike: bound, test, fall, topics.",
    kinds={"scipy", "polars"},
)
served_by_slices = _declare_monitor(
    keys.SERVED_BY_SLICES,
    lambda traffic, *_: measure_slices(traffic),
    "The student's share of the answers by slice, and its change with topics held fixed.",
    kinds={"scipy", "polars"},
)
assignment_audit = _declare_monitor(
    keys.ASSIGNMENT_AUDIT,
    lambda traffic, *_: measure_assignment(traffic),
    "Whether the canary's arms were drawn by chance: their ratio, and what the arm depends on.",
    kinds={"scipy", "scikitlearn", "polars"},
)
cold_start_report = _declare_monitor(
    keys.COLD_START_REPORT,
    lambda traffic, _, plan: measure_cold_starts(traffic, plan),
    "What answers of a cold model add to the 99th percentile, and how many there are.",
    kinds={"scipy", "polars"},
)
pool_separation = _declare_monitor(
    keys.POOL_SEPARATION,
    lambda traffic, home, plan: measure_separation(traffic, find_training(home), plan),
    "Whether training shares serving's accelerators, and what it did to the 99th percentile.",
    kinds={"numpy", "polars"},
    deps=[keys.STUDENT_ADAPTER],
)


@dg.asset(
    key=keys.DISAGREEMENT_CLUSTERS,
    ins=_take(keys.EVAL_EMBEDDINGS),
    deps=[keys.HOURLY_RECORDS],
    kinds={"scikitlearn", "polars"},
    code_version="3",
)
def disagreement_clusters(
    eval_embeddings: pl.DataFrame,
    home: dg.ResourceParam[Home],
    monitoring_plan: dg.ResourceParam[MonitoringPlan],
    live_embedder: dg.ResourceParam[Embedder],
) -> Table:
    """What student and teacher part over in shadow, by kind of question."""
    traffic = gather_traffic(home, monitoring_plan)
    clusters = cluster_pairs(
        pair_questions(traffic.asks, traffic.shadows),
        live_embedder,
        read_registered(eval_embeddings, embedder=live_embedder),
        agreement_ratio=monitoring_plan.minimum_agreement_ratio,
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
    code_version="2",
)
def traffic_drift(
    home: dg.ResourceParam[Home],
    monitoring_plan: dg.ResourceParam[MonitoringPlan],
    live_embedder: dg.ResourceParam[Embedder],
) -> Table:
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
    key=keys.EMBEDDER_PROBE,
    ins=_take(keys.VECTOR_INDEX),
    deps=[keys.HOURLY_RECORDS],
    kinds={"lancedb", "polars"},
    code_version="1",
)
def embedder_probe(
    vector_index: pl.DataFrame,
    home: dg.ResourceParam[Home],
    monitoring_plan: dg.ResourceParam[MonitoringPlan],
    live_embedder: dg.ResourceParam[Embedder],
) -> Table:
    """64 texts of the index embedded again, and the fingerprints that traces were answered from."""
    traffic, index = gather_traffic(home, monitoring_plan), vector_index.row(0, named=True)
    probes = read_probes(home.index / index["index_fingerprint"], live_embedder)
    current = index["index_fingerprint"], index["embedder_fingerprint"]
    found = [
        *measure_embedder(probes, live_embedder, place=monitoring_plan.embedder_place),
        measure_fingerprints(traffic, read_pinned(home), current),
    ]
    return _report("embedder_probe", found, traffic)


@dg.asset(
    key=keys.SAMPLE_AUDIT,
    ins=_take(keys.CURATION_DECISIONS),
    deps=[keys.HOURLY_RECORDS],
    kinds={"scipy", "polars"},
    code_version="2",
)
def sample_audit(
    curation_decisions: pl.DataFrame,
    home: dg.ResourceParam[Home],
    monitoring_plan: dg.ResourceParam[MonitoringPlan],
) -> Table:
    """Whether what is judged stands for what was asked: pairs, curated questions, own sample."""
    traffic = gather_traffic(home, monitoring_plan)

    paired = traffic.shadows["parent_trace_id"].drop_nulls().implode()
    samples = {
        "shadow_pairs": traffic.asks.filter(pl.col("trace_id").is_in(paired)),
        CURATED: take_curated(traffic.asks, curation_decisions["trace_id"]),
        "stratified": draw_stratified(traffic.asks, EMBEDDED),
    }
    return _report("sample_audit", measure_samples(traffic, samples), traffic)


@dg.asset(
    key=keys.CURATION_AUDIT,
    ins=_take(keys.SEED_QUESTIONS, keys.ADMISSIONS, keys.CURATION_DECISIONS, keys.ESCALATIONS),
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
) -> Table:
    """What reached the seeds undecided or from elsewhere, and what automation closed for people."""
    traffic = gather_traffic(home, monitoring_plan)
    stored = scan_hours(list_hours(find_folder(home)))
    asked = stored.select("trace_id", "env", "question_hash").collect()
    plants = open_plants(find_folder(home)).read()
    found = measure_curation(
        seed_questions, admissions, curation_decisions, escalations, asked, plants
    )
    return _report("curation_audit", found, traffic)


@dg.asset(
    key=keys.ALARMS,
    ins=_take(*(dg.AssetKey(["monitoring", name]) for name in MONITORS)),
    kinds={"statsmodels", "polars"},
    code_version="2",
)
def alarms(
    home: dg.ResourceParam[Home],
    monitoring_plan: dg.ResourceParam[MonitoringPlan],
    **monitors: pl.DataFrame,
) -> Table:
    """One row per monitor: ok, alarm or inconclusive, after Holm's correction over all tests."""
    agreement = monitors["shadow_agreement"]
    start, end = agreement.select("window_start", "window_end").row(0)
    clusters = judge_clusters(monitors["disagreement_clusters"], agreement, monitoring_plan)
    tables = monitors | {
        "disagreement_clusters": tabulate_measurements(
            "disagreement_clusters", [clusters], start=start, end=end
        )
    }
    measured = pl.concat([tables[name] for name in MONITORS])
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
) -> Table:
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
