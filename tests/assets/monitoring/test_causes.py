"""Every alarm with its cause re-created in served traffic, and the quiet week that raises none."""

import json
import zlib
from dataclasses import replace
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from assets import tables
from assets.monitoring.agreement import measure_agreement, pair_questions
from assets.monitoring.assignment import measure_assignment
from assets.monitoring.clusters import judge_clusters, tabulate_clusters
from assets.monitoring.cold_starts import measure_cold_starts
from assets.monitoring.drift import detect_languages, gather_drift, measure_drift
from assets.monitoring.measurements import MonitoringPlan, tabulate_measurements
from assets.monitoring.probing import Probes, measure_embedder, measure_fingerprints
from assets.monitoring.sampling import (
    CURATED,
    add_strata,
    draw_stratified,
    measure_samples,
    take_curated,
)
from assets.monitoring.separation import find_training, measure_separation
from assets.monitoring.slices import measure_slices
from assets.releases.disagreements import Registry, cluster_pairs
from assets.traces.curating import find_candidates
from serving.home import Home
from tests.assets.monitoring.judging import judge
from tests.assets.monitoring.weeks import QUESTIONS, START, WEEK, Faults, plan_week

PLAN = MonitoringPlan()
INDEX = ("feedfacefeedface", "e0e0")


def find(measurements, metric):
    return next(m for m in measurements if m.metric == metric and m.outcome != "shown")


def ask_about_adapters(question):
    number = zlib.crc32(question.encode())
    return question if number % 6 else f"How do I delete adapter number {number % 100}?"


@pytest.fixture(scope="module")
def lapsed(tmp_path_factory, week_before):
    """A kind of question comes up that the student refuses and the teacher answers."""
    from tests.assets.monitoring.weeks import put_together, serve_week

    faults = Faults(reword=ask_about_adapters, refused_words=("delete adapter",))
    root = tmp_path_factory.mktemp("lapsed") / "home"
    now = serve_week(root, START + WEEK, seed=2, faults=faults)
    return put_together(week_before, now, start=START + WEEK)


def test_a_quiet_student_agrees(quiet):
    found = measure_agreement(quiet, PLAN)
    assert judge("shadow_agreement", found)["status"] == "ok"
    assert find(found, "agreement").n > 500


def test_a_student_that_lost_a_behaviour_is_caught(lapsed):
    found = measure_agreement(lapsed, PLAN)
    assert judge("shadow_agreement", found)["status"] == "alarm"
    assert find(found, "agreement").outcome == "past"
    assert find(found, "agreement_fall").outcome == "past"


def test_a_student_that_never_was_good_enough_is_found_within_few_pairs(lapsed):
    fresh = replace(lapsed, before=lapsed.before.clear(), shadows_before=lapsed.before.clear())
    found = measure_agreement(fresh, PLAN)
    assert find(found, "agreement_sprt").outcome == "past"
    assert find(found, "agreement_sprt").n < 200
    assert find(found, "agreement_fall").outcome == "inconclusive"


def cluster(traffic, embedder, registered=None, behaviours=()):
    pairs = pair_questions(traffic.asks, traffic.shadows)
    known = np.zeros((0, embedder.dimension), np.float32) if registered is None else registered
    registry = Registry(vectors=known, behaviours=behaviours)
    clusters = cluster_pairs(
        pairs, embedder, registry, agreement_ratio=PLAN.minimum_agreement_ratio
    )
    table = tabulate_clusters(clusters, start=traffic.start, end=traffic.end)
    agreement = tabulate_measurements(
        "shadow_agreement", measure_agreement(traffic, PLAN), start=traffic.start, end=traffic.end
    )
    return table, judge("disagreement_clusters", [judge_clusters(table, agreement, PLAN)])


def test_quiet_disagreements_form_no_cluster(quiet, embedder):
    _, verdict = cluster(quiet, embedder)
    assert verdict["status"] == "ok"


def test_a_student_as_good_as_allowed_disagrees_alike_by_chance_and_is_quiet(
    serve_faulty, embedder
):
    """Everybody asks one kind of question: what it gets wrong of them lies close together."""
    alike = Faults(
        student_lapse_ratio=0.045,
        reword=lambda q: f"How do I delete adapter number {zlib.crc32(q.encode()) % 10_000}?",
    )
    table, verdict = cluster(serve_faulty(alike), embedder)
    assert table["question_count"].max() >= PLAN.unregistered_cluster_cases
    assert table["asked_count"].max() > 200
    assert verdict["status"] == "ok", verdict


def test_an_unregistered_kind_of_disagreement_alarms_and_names_traces(lapsed, embedder):
    table, verdict = cluster(lapsed, embedder)
    assert verdict["status"] == "alarm"
    assert verdict["number"] >= 5
    assert table["medoid_trace_id"][0] in verdict["detail"]
    asked = lapsed.asks.filter(pl.col("trace_id").is_in(table["trace_ids"][0].to_list()))
    assert asked["question"].str.contains("delete adapter number").all()


def test_a_registered_kind_of_disagreement_is_the_registry_s_to_judge(lapsed, embedder):
    table, _ = cluster(lapsed, embedder)
    medoids = lapsed.asks.join(table, left_on="trace_id", right_on="medoid_trace_id")
    vectors = embedder.embed(medoids["question"].to_list())
    table, verdict = cluster(lapsed, embedder, vectors, [f"b{n}" for n in range(len(vectors))])
    assert table["is_registered"].all()
    assert verdict["status"] == "ok"


def test_quiet_traffic_does_not_drift(quiet, embedder):
    found = measure_drift(quiet, gather_drift(quiet), embedder)
    assert judge("traffic_drift", found)["status"] == "ok"
    assert all(m.p_value is not None for m in found)


def test_new_topics_are_drift(serve_faulty, embedder):
    traffic = serve_faulty(Faults(is_late=True, shadow_ratio=0.0))
    found = measure_drift(traffic, gather_drift(traffic), embedder)
    assert judge("traffic_drift", found)["status"] == "alarm"
    assert find(found, "topic").outcome == "past"
    assert find(found, "embedding").outcome == "past"
    assert find(found, "embedding").p_value < 0.001


def test_another_language_and_longer_questions_are_drift(serve_faulty, embedder):
    german = "Wie starte ich den Server neu, nachdem ich die Umgebung geändert habe? {}"
    traffic = serve_faulty(
        Faults(
            reword=lambda q: german.format(q[:9]) if zlib.crc32(q.encode()) % 3 else q,
            shadow_ratio=0.0,
        )
    )
    found = measure_drift(traffic, gather_drift(traffic), embedder)
    assert judge("traffic_drift", found)["status"] == "alarm"
    for metric in ("language", "question_length"):
        assert find(found, metric).outcome == "past"


def test_languages_are_told_apart():
    told = detect_languages([
        "How do I restart the server after a change?",
        "Wie starte ich den Server nach einer Änderung neu?",
        "Comment redémarrer le serveur après une modification ?",
        None,
    ])  # fmt: skip
    assert told[:3] == ["en", "de", "fr"]


def test_a_quiet_router_serves_as_before(quiet):
    found = measure_slices(quiet)
    assert judge("served_by_slices", found)["status"] == "ok"
    assert {m.slice.split("=")[0] for m in found} > {"topic", "route_reason", "hour_block"}


def test_worse_sources_are_drift_of_the_retrieval_score(serve_faulty, embedder):
    """Half of the docs left the index: what is asked is as before, and found from farther away."""
    traffic = serve_faulty(Faults(score_shift=-0.1, shadow_ratio=0.0))
    found = measure_drift(traffic, gather_drift(traffic), embedder)
    row = judge("traffic_drift", found)
    assert (row["status"], row["metric"]) == ("alarm", "retrieval_score")
    assert find(found, "topic").p_value > 0.01


def test_a_router_that_moved_is_caught_with_topics_held_fixed(serve_faulty):
    found = measure_slices(serve_faulty(Faults(canary_ratio=0.7, shadow_ratio=0.0)))
    assert judge("served_by_slices", found)["status"] == "alarm"


def test_quiet_arms_are_drawn_by_chance(quiet):
    row = judge("assignment_audit", measure_assignment(quiet))
    assert row["status"] == "ok", row["detail"]


def test_an_arm_that_shares_an_input_with_the_prompt_leaks(serve_faulty):
    """The draw reads the question, which the prompt is made from: the arms ask different things."""
    asked = {ask.conversation_id: ask.question for ask in plan_week(2, START + WEEK)}

    def draw(*, salt, conversation_id):
        return zlib.crc32(f"{salt}{asked[conversation_id][:60]}".encode()) / 2**32

    found = measure_assignment(serve_faulty(Faults(draw_arm=draw, shadow_ratio=0.0)))
    row = judge("assignment_audit", found)
    assert row["status"] == "alarm"
    assert find(found, "arm_from_prompt").outcome == "past"
    assert find(found, "arm_from_prompt").number > 0.9


def test_a_draw_that_is_not_even_breaks_the_sample_ratio(serve_faulty):
    def draw(*, salt, conversation_id):
        return (zlib.crc32(f"{salt}{conversation_id}".encode()) / 2**32) ** 2

    found = measure_assignment(serve_faulty(Faults(draw_arm=draw, shadow_ratio=0.0)))
    assert judge("assignment_audit", found)["status"] == "alarm"
    assert find(found, "sample_ratio").outcome == "past"


def test_warm_models_hide_nothing(quiet):
    found = measure_cold_starts(quiet, PLAN)
    assert judge("cold_start_report", found)["status"] == "ok"


def test_cold_starts_that_move_the_99th_percentile_alarm(serve_faulty):
    traffic = serve_faulty(Faults(cold_ratio=0.08, shadow_ratio=0.0))
    found = measure_cold_starts(traffic, PLAN)
    assert judge("cold_start_report", found)["status"] == "alarm"
    assert {m.metric: m.outcome for m in found} == {"p99_gap_ms": "past", "cold_ratio": "past"}
    assert find(found, "p99_gap_ms").number > 10_000


def test_a_stratified_sample_and_a_random_one_stand_for_the_traffic(quiet):
    lots = np.random.default_rng(7).random(quiet.asks.height) < 0.6
    samples = {
        "stratified": draw_stratified(quiet.asks, 400),
        "shadow_pairs": quiet.asks.filter(pl.Series(lots)),
    }
    found = measure_samples(quiet, samples)
    assert judge("sample_audit", found)["status"] == "ok"
    assert samples["stratified"].height == 400
    by_day = add_strata(samples["stratified"])["weekday"].value_counts()["count"]
    whole = add_strata(quiet.asks)["weekday"].value_counts()["count"]
    assert abs(by_day.max() / 400 - whole.max() / quiet.asks.height) < 0.02


def test_what_curation_chose_by_its_queue_is_compared_by_time_and_not_by_route(quiet):
    """The queue puts what fell back first, and names of each question the latest trace."""
    queue = find_candidates(quiet.asks.lazy(), tables.CURATION_DECISIONS.to_frame())
    chosen = take_curated(quiet.asks, queue.head(queue.height // 2)["trace_id"])
    found = measure_samples(quiet, {CURATED: chosen})
    row = judge("sample_audit", found)
    assert {m.slice for m in found} == {f"{CURATED} by {s}" for s in ("hour_block", "weekday")}
    assert row["status"] == "ok", row["detail"]


def test_shadow_pairs_of_mornings_alone_are_caught(serve_faulty):
    """The shadow's budget of a day is spent before noon."""
    traffic = serve_faulty(Faults(shadow_calls_per_day=50))
    paired = traffic.asks.filter(
        pl.col("trace_id").is_in(traffic.shadows["parent_trace_id"].implode())
    )
    found = measure_samples(traffic, {"shadow_pairs": paired})
    row = judge("sample_audit", found)
    assert row["status"] == "alarm"
    assert {m.outcome for m in found if "hour_block" in m.slice} == {"past"}


HOURS = (9, 10, 11, 12)


@pytest.fixture(scope="module")
def spans(tmp_path_factory):
    """A training in each day's HOURS, as the provenance of its adapter tells it."""
    home = Home(tmp_path_factory.mktemp("trained"))
    for day in range(7):
        end = START + WEEK + timedelta(days=day, hours=max(HOURS) + 1)
        told = {"trained_at": end.isoformat(), "training_seconds": 3600.0 * len(HOURS)}
        path = home.adapters / f"midweight@{day}" / "provenance.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(told), encoding="utf-8")
    return find_training(home)


def test_training_that_slows_nothing_does_not_alarm(quiet, spans):
    row = judge("pool_separation", measure_separation(quiet, spans, PLAN))
    assert row["status"] != "alarm"


def test_training_that_slows_answers_alarms_by_the_hours_it_ran(serve_faulty, spans):
    traffic = serve_faulty(Faults(slow_hours=HOURS, slow_factor=2.5, shadow_ratio=0.0))
    found = measure_separation(traffic, spans, PLAN)
    assert judge("pool_separation", found)["status"] == "alarm"
    assert find(found, "p99_ratio").number > 1.5
    assert {m.slice for m in found if m.outcome == "shown"} == {f"hour={h:02d}" for h in HOURS}


def test_one_accelerator_for_both_alarms_and_a_shared_processor_does_not(quiet):
    shared = replace(PLAN, serving_devices=("cuda:0", "cuda:1"), training_devices=("cuda:1",))
    apart = replace(PLAN, serving_devices=("cuda:0",), training_devices=("cuda:1",))
    assert judge("pool_separation", measure_separation(quiet, [], shared))["status"] == "alarm"
    for plan in (apart, PLAN):
        found = measure_separation(quiet, [], plan)
        assert find(found, "shared_accelerators").outcome == "within"


def test_traces_of_the_index_are_quiet_and_of_another_embedder_alarm(quiet, serve_faulty):
    own = [measure_fingerprints(quiet, {}, INDEX)]
    assert judge("embedder_probe", own)["status"] == "ok"
    foreign = serve_faulty(Faults(embedder_fingerprint="a newer model", shadow_ratio=0.0))
    row = judge("embedder_probe", [measure_fingerprints(foreign, {}, INDEX)])
    assert row["status"] == "alarm"
    assert row["number"] == foreign.asks.height
    release = foreign.asks["release_id"][0]
    pinned = {release: (INDEX[0], "a newer model")}
    assert measure_fingerprints(foreign, pinned, INDEX).outcome == "within"


class Changed:
    """The embedder after its provider changed it a little behind its name."""

    def __init__(self, inner, noise):
        self._inner, self._noise = inner, noise
        self.dimension, self.fingerprint = inner.dimension, inner.fingerprint

    def embed(self, texts):
        rows = self._inner.embed(texts)
        moved = rows + np.random.default_rng(0).normal(size=rows.shape) * self._noise
        return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)


def test_an_embedder_that_changed_behind_its_name_is_caught(embedder):
    texts = tuple(text for questions in QUESTIONS.values() for text in questions)
    vectors = embedder.embed(texts)
    probes = Probes(texts=texts[:64], stored=vectors[:64], neighbours=vectors)
    same = measure_embedder(probes, embedder, place="local")
    assert judge("embedder_probe", same)["status"] == "ok"
    drifted = measure_embedder(probes, Changed(embedder, 0.01), place="hosted")
    assert {m.metric: m.outcome for m in drifted} == {
        "min_cosine": "past", "overlap_at_10": "past",
    }  # fmt: skip
    assert judge("embedder_probe", drifted)["status"] == "alarm"
    rounding = measure_embedder(probes, Changed(embedder, 1e-5), place="local")
    assert judge("embedder_probe", rounding)["status"] == "ok"
