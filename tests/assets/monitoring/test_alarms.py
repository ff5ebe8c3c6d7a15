"""One row per monitor: what Holm's correction leaves, and what is inconclusive instead."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from assets import tables
from assets.automation import EVERY_NIGHT
from assets.monitoring.agreement import measure_agreement, pair_questions
from assets.monitoring.alarms import FAMILY_ALPHA, MONITORS, WEEKLY_ALPHA, raise_alarms
from assets.monitoring.assignment import measure_assignment
from assets.monitoring.clusters import judge_clusters, tabulate_clusters
from assets.monitoring.cold_starts import measure_cold_starts
from assets.monitoring.comparing import compare_counts, compare_vectors, tell_apart
from assets.monitoring.drift import METRICS, gather_drift, measure_drift
from assets.monitoring.measurements import (
    BOUND_ALPHA,
    MonitoringPlan,
    compare_interval,
    compare_number,
    leave_open,
    tabulate_measurements,
)
from assets.monitoring.probing import measure_fingerprints
from assets.monitoring.reporting import render_alarms
from assets.monitoring.sampling import CURATED, measure_samples
from assets.monitoring.separation import TrainingSpan, measure_separation
from assets.monitoring.slices import measure_slices
from assets.monitoring.traffic import split_traffic
from assets.releases.disagreements import Registry, cluster_pairs
from assets.statistics import wilson_interval
from tests.assets.monitoring.weeks import START, WEEK
from tests.counting_embedder import CountingEmbedder

PLAN = MonitoringPlan()
AT = {"start": START, "end": START + WEEK}


def examine(p, *, number=0.5):
    return compare_number("topic", number, relation="at most", limit=0.1, n=900, p_value=p)


def status_of(monitor, *measurements, others=()):
    frame = tabulate_measurements(monitor, measurements, **AT)
    more = tabulate_measurements("sample_audit", others, **AT)
    rows = raise_alarms(pl.concat([frame, more])).rows_by_key("monitor", named=True, unique=True)
    return rows[monitor]["status"]


def test_one_small_p_in_a_large_family_is_chance():
    p = FAMILY_ALPHA / 2
    assert status_of("traffic_drift", examine(p)) == "alarm"
    quiet = [examine(0.5, number=0.01) for _ in range(9)]
    assert status_of("traffic_drift", examine(p), others=quiet) == "ok"
    assert status_of("traffic_drift", examine(p / 10), others=quiet) == "alarm"


def test_a_large_sample_s_small_difference_is_no_alarm():
    assert status_of("traffic_drift", examine(1e-12, number=0.02)) == "ok"


def test_a_count_past_its_limit_needs_no_p():
    wrong = compare_number("foreign_traces", 1, relation="at most", limit=0, n=900)
    assert status_of("embedder_probe", wrong) == "alarm"


def test_an_interval_that_holds_its_limit_is_neither():
    near = compare_interval("agreement", wilson_interval(94, 100), relation="at least", limit=0.95)
    assert near.outcome == "inconclusive"
    assert "more traffic decides" in near.detail
    assert status_of("shadow_agreement", near) == "inconclusive"
    fine = compare_interval(
        "agreement", wilson_interval(990, 1000), relation="at least", limit=0.95
    )
    assert status_of("shadow_agreement", fine) == "ok"


def test_one_open_measurement_keeps_its_monitor_open_and_an_alarm_comes_first():
    gap, bad = leave_open("language", "no traffic in the window"), examine(1e-9)
    assert status_of("traffic_drift", examine(0.5, number=0.01), gap) == "inconclusive"
    assert status_of("traffic_drift", gap, bad) == "alarm"


def test_a_monitor_that_measured_nothing_is_inconclusive_and_there():
    frame = raise_alarms(tables.MEASUREMENTS.to_frame())
    assert frame["monitor"].to_list() == list(MONITORS)
    assert set(frame["status"]) == {"inconclusive"}
    assert frame.schema == tables.ALARMS


def measure_clusters(traffic):
    embedder = CountingEmbedder()
    pairs = pair_questions(traffic.asks, traffic.shadows)
    nothing = Registry(vectors=np.zeros((0, embedder.dimension), np.float32), behaviours=())
    found = cluster_pairs(pairs, embedder, nothing, agreement_ratio=PLAN.minimum_agreement_ratio)
    table = tabulate_clusters(found, start=traffic.start, end=traffic.end)
    rows = tabulate_measurements("shadow_agreement", measure_agreement(traffic, PLAN), **AT)
    return judge_clusters(table, rows, PLAN)


def measure_everything(traffic, spans=()):
    """Measure all that chance plays a part in."""
    samples = {"stratified": traffic.asks, CURATED: traffic.asks}
    return [
        *measure_agreement(traffic, PLAN),
        measure_clusters(traffic),
        *measure_drift(traffic, gather_drift(traffic), CountingEmbedder()),
        *measure_slices(traffic),
        *measure_assignment(traffic),
        *measure_cold_starts(traffic, PLAN),
        *measure_samples(traffic, samples),
        *(m for m in measure_separation(traffic, spans, PLAN) if m.metric == "p99_ratio"),
    ]


def test_a_week_of_nightly_looks_spends_no_more_than_its_five_percent(quiet):
    """By the sum over looks, the family, and each bound that decides without a p-value."""
    span = TrainingSpan(adapter="quiet", start=quiet.start, end=quiet.start + WEEK / 2)
    found = [m for m in measure_everything(quiet, [span]) if m.outcome != "shown"]
    bounds = {m.metric for m in found if m.p_value is None}
    assert bounds == {"agreement_sprt", "p99_gap_ms", "p99_ratio"}
    hour, *rest = EVERY_NIGHT.split()[1:]
    assert (hour.isdigit(), rest) == (True, ["*", "*", "*"])
    spent = 7 * (FAMILY_ALPHA + len(bounds) * BOUND_ALPHA)
    assert spent == pytest.approx(WEEKLY_ALPHA)


@pytest.mark.parametrize("hours", [0, 1])
def test_no_traffic_and_one_hour_of_it_are_inconclusive_with_the_reason(quiet, hours):
    records = pl.concat([quiet.before, quiet.asks, quiet.shadows])
    noon = quiet.start + timedelta(days=2, hours=12)
    kept = records.filter(
        pl.col("asked_at").is_between(noon, noon + timedelta(hours=hours), closed="left")
    )
    # As many as a week has, all in one hour: volume alone is no evidence.
    kept = pl.concat([kept] * 40) if hours else kept
    traffic = split_traffic(kept, start=quiet.start, end=quiet.end, before_start=quiet.before_start)
    found = [m for m in measure_everything(traffic) if m.outcome != "shown"]
    assert {m.outcome for m in found} == {"inconclusive"}
    assert all(m.detail and m.number is None for m in found)
    if not hours:
        assert {m.detail for m in found} == {"no traffic in the window"}


def test_a_first_week_has_nothing_to_drift_from(quiet):
    first = split_traffic(
        quiet.asks, start=quiet.start, end=quiet.end, before_start=quiet.before_start
    )
    found = measure_drift(first, gather_drift(first), CountingEmbedder())
    assert {m.metric for m in found} == set(METRICS)
    assert {m.detail for m in found} == {"no traffic before the window to compare with"}


def test_missing_fingerprints_and_missing_cold_starts_are_inconclusive(quiet):
    nameless = replace(
        quiet, asks=quiet.asks.with_columns(pl.lit(None, pl.String).alias("index_fingerprint"))
    )
    found = measure_fingerprints(nameless, {}, ("feedfacefeedface", "e0e0"))
    assert found.outcome == "inconclusive"
    assert f"{quiet.asks.height} of {quiet.asks.height}" in found.detail
    silent = pl.col("attempts").list.eval(
        pl.element().struct.with_fields(pl.lit(None, pl.Boolean).alias("cold_start"))
    )
    mute = replace(quiet, asks=quiet.asks.with_columns(silent))
    found = measure_cold_starts(mute, PLAN)
    assert {m.outcome for m in found} == {"inconclusive"}
    assert "`cold_start` is missing in every trace" in found[0].detail


@pytest.mark.parametrize(
    ("kinds", "has_enough", "outcome", "p"),
    [
        ([], False, "inconclusive", None),
        ([(2, 9, 0.5)], False, "inconclusive", None),
        ([], True, "within", 1.0),
        ([(2, 9, 0.5)], True, "within", 0.5),
        ([(6, 100, 1.0), (5, 6, 1e-5)], False, "past", 1e-5),
        ([(6, 100, 1.0)], True, "past", 1.0),
    ],
)
def test_a_kind_is_judged_by_chance_and_too_few_pairs_say_nothing(kinds, has_enough, outcome, p):
    """Rows are how many questions disagree, of how many asked, and how likely that is."""
    enough = compare_number("agreement", 0.96, relation="at least", limit=0.95, n=600)
    agreement = enough if has_enough else leave_open("agreement", "12 pairs", n=12)
    clusters = pl.DataFrame(
        [
            {"question_count": count, "asked_count": asked, "p_value": chance,
             "medoid_trace_id": "t", "is_registered": False}
            for count, asked, chance in kinds
        ],
        schema_overrides=tables.DISAGREEMENT_CLUSTERS,
    ) if kinds else tables.DISAGREEMENT_CLUSTERS.to_frame()  # fmt: skip
    rows = tabulate_measurements("shadow_agreement", [agreement], **AT)
    found = judge_clusters(clusters, rows, PLAN)
    assert (found.outcome, found.p_value) == (outcome, p)
    is_alarm = status_of("disagreement_clusters", found) == "alarm"
    assert is_alarm == (p == 1e-5)


@pytest.mark.parametrize("warm", [0, 1])
def test_a_week_of_cold_answers_alarms_by_their_share_and_leaves_the_gap_open(quiet, warm):
    """Nothing warm is left to compare the 99th percentile with."""
    is_cold = pl.lit(value=True)
    cold = pl.col("attempts").list.eval(
        pl.element().struct.with_fields(is_cold.alias("cold_start"))
    )
    asks = quiet.asks.with_columns(cold)
    asks = pl.concat([asks[:-warm] if warm else asks, quiet.asks.tail(warm)])
    found = {m.metric: m for m in measure_cold_starts(replace(quiet, asks=asks), PLAN)}
    assert found["p99_gap_ms"].outcome == "inconclusive"
    assert f"{warm} of {asks.height} asks met a warm model" in found["p99_gap_ms"].detail
    assert found["cold_ratio"].outcome == "past"
    assert status_of("cold_start_report", *found.values()) == "alarm"


def test_the_reference_is_whole_weeks(quiet):
    records = pl.concat([quiet.before, quiet.asks]).with_columns(
        pl.col("asked_at") - pl.duration(days=pl.int_range(pl.len()) % 3)
    )
    traffic = split_traffic(
        records, start=quiet.start, end=quiet.end, before_start=quiet.start - 2 * WEEK
    )
    assert traffic.before["asked_at"].min() >= quiet.start - WEEK


def test_rare_categories_are_merged_before_chi_square():
    common = pl.Series(["a"] * 200 + ["b"] * 200)
    rare = pl.Series(["a"] * 200 + ["b"] * 190 + [f"rare {n}" for n in range(10)])
    found = compare_counts(common, rare)
    assert found.category_count == 3
    assert compare_counts(common, common).p_value == 1.0
    assert compare_counts(common.head(200), common.head(190)).category_count == 1


def test_the_kernel_test_keeps_its_level_and_sees_a_shift():
    chance = np.random.default_rng(3)

    def draw(n, shift=0.0):
        return chance.normal(size=(n, 6)) + shift

    ps = [compare_vectors(draw(60), draw(60), resamples=199) for _ in range(40)]
    assert sum(p < 0.05 for p in ps) <= 7  # 2 expected; more than 7 has a chance of 0.1 %
    assert compare_vectors(draw(60), draw(60, 0.8), resamples=1999) < 0.002


def test_a_classifier_tells_apart_only_what_differs():
    chance = np.random.default_rng(5)
    labels = [n % 2 == 0 for n in range(400)]
    noise = chance.normal(size=(400, 4))
    same = tell_apart(noise, labels)
    assert same.lower < 0.5 < same.upper
    shifted = tell_apart(noise + np.array(labels)[:, None], labels)
    assert shifted.lower > 0.7
    assert shifted.p_value < 1e-6


def test_the_report_escapes_what_it_shows():
    frame = tabulate_measurements(
        "traffic_drift", [leave_open("topic", "<script>alert(1)</script>")], **AT
    )
    page = render_alarms(raise_alarms(frame), frame)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "No monitor alarms" in page
