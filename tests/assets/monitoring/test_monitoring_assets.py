"""The job over all monitors, on a home without traffic and on one whose week was served."""

from datetime import timedelta

import dagster as dg
import numpy as np
import polars as pl
import pytest

from assets import keys, tables
from assets.eval_set.suites import BEHAVIOURS
from assets.monitoring.alarms import MONITORS
from assets.monitoring.assets import disagreement_clusters
from assets.monitoring.curation import measure_curation
from assets.monitoring.measurements import MonitoringPlan
from assets.seeds.harvesting import harvest_seeds
from assets.traces.admission import admit_decisions, select_harvest
from assets.traces.deciding import Reviewer, decide_trace, find_trace, open_decisions
from assets.traces.escalating import find_escalations
from assets.traces.hours import find_folder, list_hours, scan_hours
from assets.traces.planting import PLANTS
from orchestration.config import load_config
from orchestration.curate_cli import compact
from orchestration.definitions import build_defs
from orchestration.jobs import NIGHTLY_MONITORING
from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.home import Home
from serving.pipeline.indexing import IndexedChunk, build_index, plan_index
from tests.assets.monitoring.judging import judge
from tests.assets.monitoring.weeks import QUESTIONS, START, WEEK, serve_week
from tests.assets.traces.served import make_keys, plan_days, serve_plan
from tests.counting_embedder import CountingEmbedder

EMBEDDER = CountingEmbedder("e0e0")
UPSTREAM = (
    keys.SEED_QUESTIONS, keys.CURATION_DECISIONS, keys.ADMISSIONS, keys.ESCALATIONS,
    keys.EVAL_EMBEDDINGS,
)  # fmt: skip


def lay_upstream(home: Home, *, filler: str = "") -> None:
    """Write what the chain leaves of a corpus of seed questions, and empty tables of the rest."""
    texts = [text + filler for questions in QUESTIONS.values() for text in questions][:80]
    chunks = [
        IndexedChunk(chunk_id=f"docs:page/{n}", content_hash=content_hash(text), title="Page",
                     url="", heading_path=("Page",), text=text)
        for n, text in enumerate(texts)
    ]  # fmt: skip
    plan = plan_index(
        chunks, maximum_tokens=EMBEDDER.maximum_tokens, count_tokens=EMBEDDER.count_tokens
    )
    vectors = EMBEDDER.embed(plan.texts)
    fingerprint = build_index(home.index, chunks, plan, np.asarray(vectors), "e0e0")
    rows = {
        "index_fingerprint": fingerprint, "embedder_fingerprint": "e0e0", "chunk_count": 80,
        "dimension": EMBEDDER.dimension, "uri": f"index/{fingerprint}",
    }  # fmt: skip
    write(home, keys.VECTOR_INDEX, pl.DataFrame([rows], schema=tables.VECTOR_INDEX))
    for key in UPSTREAM:
        write(home, key, tables.BY_KEY[tuple(key.path)].to_frame())


def write(home: Home, key: dg.AssetKey, frame: pl.DataFrame) -> None:
    path = home.table("/".join(key.path))
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path)


def run_job(root, *, embedder=EMBEDDER, selection=None, **plan):
    config = load_config({"UNDERSTUDY_HOME": str(root)})
    definitions = build_defs(config, live_embedder=embedder, monitoring_plan=MonitoringPlan(**plan))
    job = definitions.resolve_job_def(NIGHTLY_MONITORING)
    instance = dg.DagsterInstance.ephemeral()
    return job.execute_in_process(instance=instance, asset_selection=selection)


def read(home: Home, name: str) -> pl.DataFrame:
    return pl.read_parquet(home.table(f"monitoring/{name}"))


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    home = Home(tmp_path_factory.mktemp("empty") / "home")
    lay_upstream(home)
    return home, run_job(home.root)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    home = Home(tmp_path_factory.mktemp("served") / "home")
    for seed in (1, 2):
        serve_week(home.root, START + (seed - 1) * WEEK, seed=seed, asks_per_day=80)
    lay_upstream(home)
    return home, run_job(home.root, until=START + 2 * WEEK)


def test_a_home_without_traffic_is_inconclusive_and_not_an_error(empty):
    home, run = empty
    assert run.success
    status = dict(read(home, "alarms").select("monitor", "status").iter_rows())
    assert set(status) == set(MONITORS)
    assert set(status.values()) == {"inconclusive"}
    for name, schema in ((k.path[1], tables.BY_KEY[tuple(k.path)]) for k in monitoring_keys()):
        assert read(home, name).schema == schema, name
        assert home.table(f"monitoring/{name}").stat().st_mode & 0o077 == 0
    assert (home.reports / "monitoring" / "alarms.html").exists()


def monitoring_keys() -> list[dg.AssetKey]:
    return [key for key in keys.ON_DEMAND if key.path[0] == "monitoring"]


def test_what_cannot_be_told_warns_and_is_never_passed(empty):
    _, run = empty
    results = {e.check_name: e for e in run.get_asset_check_evaluations()}
    quiet = [e for name, e in results.items() if name == "traffic_is_what_it_was"]
    assert [e.passed for e in quiet] == [False]
    assert quiet[0].severity == dg.AssetCheckSeverity.WARN
    assert results["every_monitor_is_judged_once"].passed
    assert all(e.passed for e in run.get_asset_check_evaluations() if e.blocking)


def test_a_served_week_is_judged_and_reported(served):
    home, run = served
    assert run.success
    alarms = read(home, "alarms").rows_by_key("monitor", named=True, unique=True)
    # The index of this home is not the one that the canned retriever names.
    assert alarms["embedder_probe"]["status"] == "alarm"
    assert alarms["embedder_probe"]["metric"] == "foreign_traces"
    told = read(home, "embedder_probe").filter(metric="min_cosine")
    assert told["outcome"].to_list() == ["within"]
    for name in ("served_by_slices", "cold_start_report", "traffic_drift"):
        assert alarms[name]["status"] == "ok", alarms[name]
    # 80 asks a day may leave the area under the curve an interval that holds its limit.
    assert alarms["assignment_audit"]["status"] in ("ok", "inconclusive")
    failed = {e.check_name: e for e in run.get_asset_check_evaluations() if not e.passed}
    assert failed["embedder_is_that_of_the_index"].severity == dg.AssetCheckSeverity.ERROR
    report = (home.reports / "monitoring" / "drift.html").read_text(encoding="utf-8")
    assert "question_length" in report
    assert not any(text in report for text in next(iter(QUESTIONS.values())))


class Changed(CountingEmbedder):
    """The embedder of the index after its provider changed it a little behind its name."""

    def embed(self, texts):
        rows = super().embed(texts)
        moved = rows + 0.05 * np.roll(rows, 1, axis=1)
        return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)


def test_an_embedder_that_changed_is_caught_by_the_index_it_built(tmp_path):
    home = Home(tmp_path)
    lay_upstream(home)
    probe = [keys.EMBEDDER_PROBE]
    assert run_job(home.root, embedder=Changed("e0e0"), selection=probe).success
    (told,) = read(home, "embedder_probe").filter(metric="min_cosine").to_dicts()
    assert (told["outcome"], told["n"]) == ("past", 64)
    assert 0.99 < told["number"] < 0.9999


def test_chunks_of_several_windows_are_probed_too(tmp_path):
    home = Home(tmp_path)
    lay_upstream(home, filler=" more" * 2 * EMBEDDER.maximum_tokens)
    assert run_job(home.root, selection=[keys.EMBEDDER_PROBE]).success
    (told,) = read(home, "embedder_probe").filter(metric="min_cosine").to_dicts()
    assert (told["outcome"], told["n"]) == ("within", 64)


class Recut(Changed):
    """One that counts other tokens besides, so that long chunks are cut otherwise."""

    def count_tokens(self, texts):
        return [2 * count for count in super().count_tokens(texts)]


def test_an_embedder_that_counts_otherwise_too_is_caught(tmp_path):
    home = Home(tmp_path)
    lay_upstream(home)
    assert run_job(home.root, embedder=Recut("e0e0"), selection=[keys.EMBEDDER_PROBE]).success
    (told,) = read(home, "embedder_probe").filter(metric="min_cosine").to_dicts()
    assert (told["outcome"], told["n"]) == ("past", 64)


def test_clusters_are_not_compared_with_a_registry_of_another_embedder(tmp_path):
    """It would hold none of them, and each kind that a suite measures would alarm as unknown."""
    registered = pl.DataFrame(
        {
            "case_id": ["b1"], "suite": [BEHAVIOURS], "embedder_fingerprint": ["other"],
            "vector": [[1.0] * EMBEDDER.dimension],
        },
        schema_overrides=tables.EVAL_EMBEDDINGS,
    )  # fmt: skip
    make = disagreement_clusters.op.compute_fn.decorated_fn
    rest = (Home(tmp_path), MonitoringPlan(until=START), EMBEDDER)
    with pytest.raises(InvalidInputError, match="e0e0, found vectors of other"):
        make(registered, *rest)
    own = registered.with_columns(embedder_fingerprint=pl.lit("e0e0"))
    assert make(own, *rest).value.is_empty()


def test_the_demo_s_chain_makes_no_monitor():
    chain = build_defs().resolve_job_def("whole_chain")
    assert not {key for key in chain.asset_layer.executable_asset_keys if key in monitoring_keys()}


def seeds_of(*rows):
    return pl.DataFrame(
        [
            {"question_id": f"q{n}", "text": text, "source": "harvested", "source_trace_id": trace}
            for n, (text, trace) in enumerate(rows)
        ],
        schema=dict.fromkeys(("question_id", "text", "source", "source_trace_id"), pl.String),
    )


ADMITTED = pl.DataFrame({"trace_id": ["t1"], "is_admitted": [True]})
NOBODY = (tables.CURATION_DECISIONS.to_frame(), tables.ESCALATIONS.to_frame())
UNPLANTED = PLANTS.to_frame()


def test_staging_s_questions_among_the_seeds_alarm(tmp_path):
    """A row of the harvest that no decision admits, from a staging key's traffic."""
    staged = serve_week(tmp_path / "home", START, seed=3, env="staging", asks_per_day=2)
    asked = staged.select("trace_id", "env", "question_hash")
    prod = pl.DataFrame({"trace_id": ["t1"], "env": ["prod"], "question_hash": ["h"]})
    asked = pl.concat([asked, prod])
    leaked = staged.row(0, named=True)
    sound = measure_curation(
        seeds_of(("Asked by a user?", "t1")), ADMITTED, *NOBODY, asked, PLANTS.to_frame()
    )
    assert {m.outcome for m in sound if m.n} == {"within"}
    seeds = seeds_of(("Asked by a user?", "t1"), (leaked["question"], leaked["trace_id"]))
    found = measure_curation(seeds, ADMITTED, *NOBODY, asked, UNPLANTED)
    outcomes = {m.metric: m.outcome for m in found if m.outcome != "inconclusive"}
    assert outcomes == dict.fromkeys(
        ("undecided_seeds", "seeds_not_of_production", "canaries_leaked"), "past"
    )
    assert judge("curation_audit", found)["status"] == "alarm"


def test_decisions_about_staging_admit_nothing_and_ones_that_lie_about_it_alarm(tmp_path):
    """From staging's traffic to the audit: decisions, admission, harvest, seeds."""
    staged = serve_week(tmp_path / "home", START, seed=4, env="staging", asks_per_day=12)
    at = START + 2 * WEEK
    rows = staged.filter(~pl.col("is_injection"), ~pl.col("escalation_requested"))
    lines = [
        decide_trace(
            row, verdict="accepted", reason_code="weak_spot", shown_at=None, decided_at=at,
            reviewer=Reviewer(name="triage", kind="automation"),
        )
        for row in rows.unique("question_hash", maintain_order=True).iter_rows(named=True)
    ]  # fmt: skip

    def harvest(lines):
        decisions = pl.DataFrame(lines, schema=tables.CURATION_DECISIONS)
        admitted = admit_decisions(decisions, tables.DELETIONS.to_frame(), handwritten_count=10_000)
        seeds = harvest_seeds(select_harvest(admitted), known_texts=[], embed=EMBEDDER.embed).seeds
        admissions = admitted.with_columns(is_admitted=pl.col("reason") == "")
        asked = staged.select("trace_id", "env", "question_hash")
        found = measure_curation(seeds, admissions, decisions, NOBODY[1], asked, PLANTS.to_frame())
        return {*admitted["reason"]}, seeds, {m.metric: m.outcome for m in found}, found

    reasons, seeds, _, found = harvest(lines)
    assert (reasons, seeds.height) == ({"not_production"}, 0)
    assert judge("curation_audit", found)["status"] == "inconclusive"  # nothing was harvested
    reasons, seeds, outcomes, found = harvest(
        [x | {"env": "prod", "trainable": True} for x in lines]
    )
    assert "" in reasons
    assert seeds.height > 10
    assert outcomes["undecided_seeds"] == "within"
    assert outcomes["seeds_not_of_production"] == outcomes["canaries_leaked"] == "past"
    assert judge("curation_audit", found)["status"] == "alarm"


def test_automation_that_closes_what_users_contested_alarms_and_so_does_haste(tmp_path):
    """The consumer's own automation writes the decisions, past the rule that refuses it."""
    home = Home(tmp_path)
    serve_plan(home.root, plan_days(1, 60), keys=make_keys(home.root, 12))
    compact(home)
    folder, journal = find_folder(home), open_decisions(home)
    records = scan_hours(list_hours(folder))
    waiting = find_escalations(records, journal.read())
    for row in waiting.unique("trace_id").rows(named=True):
        at = row["opened_at"] + timedelta(minutes=1)
        line = decide_trace(
            find_trace(folder, row["trace_id"]), verdict="rejected", reason_code="unclear",
            reviewer=Reviewer(name="router", kind="human"), shown_at=at, decided_at=at,
            escalation_id=row["escalation_id"],
        )  # fmt: skip
        journal.append(line | {"reviewer_kind": "automation"})
    asked = records.select("trace_id", "env", "question_hash").collect()

    def measure():
        decisions = journal.read()
        closed = find_escalations(records, decisions)
        found = measure_curation(seeds_of(), ADMITTED, decisions, closed, asked, UNPLANTED)
        return {m.metric: m.outcome for m in found}, judge("curation_audit", found)

    outcomes, row = measure()
    assert waiting.height > 1
    assert outcomes["closed_by_automation"] == outcomes["hasty_ratio"] == "past"
    assert row["status"] == "alarm"
    journal.path.unlink()
    assert measure()[1]["status"] == "inconclusive"  # nothing was closed yet
