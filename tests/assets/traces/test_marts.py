"""The dbt marts over traces that the server wrote: contracts, figures, checks, readers."""

import re
from pathlib import Path

import dagster as dg
import duckdb
import polars as pl
import pytest

from assets import tables
from assets.traces.hours import find_folder, list_hours, scan_hours
from orchestration.config import load_config
from orchestration.curate_cli import compact
from orchestration.definitions import NIGHTLY_TRACES, build_nightly_defs
from serving.home import Home
from tests.assets.traces.served import make_keys, plan_days, serve_plan

PROJECT = Path(__file__).resolve().parents[3] / "dbt_traces"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The job on an empty home, and again on two days of traffic, where it is never a whole hour.

    Every question has a shadow, and the student wavers.
    """
    config = load_config({"UNDERSTUDY_HOME": str(tmp_path_factory.mktemp("marts") / "home")})
    home = Home(config.home)
    definitions = build_nightly_defs(config)
    job = definitions.resolve_job_def(NIGHTLY_TRACES)
    instance = dg.DagsterInstance.ephemeral()
    marts = [dg.AssetKey(["traces", name]) for name in tables.MARTS]
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setenv("TZ", "Asia/Kathmandu")
        first, empty = (
            job.execute_in_process(instance=instance, asset_selection=marts),
            read_marts(home),
        )
        plan = plan_days(2, 80)
        serve_plan(
            home.root, plan, keys=make_keys(home.root, 12), has_shadows=True, has_doubts=True
        )
        compact(home)
        second = job.execute_in_process(instance=instance)
    return home, definitions, empty, (first, second)


def read_marts(home: Home) -> dict[str, pl.DataFrame]:
    return {name: pl.read_parquet(home.table(f"traces/{name}")) for name in tables.MARTS}


def read_asked(home: Home) -> pl.DataFrame:
    """Return what users asked: the hours without the shadows' answers."""
    records = scan_hours(list_hours(find_folder(home))).collect()
    asked = records.filter(pl.col("selection_mode").ne_missing("shadow"))
    assert records.height == 2 * asked.height
    return asked


def read(home: Home, name: str) -> pl.DataFrame:
    return pl.read_parquet(home.table(f"traces/{name}"))


def test_an_empty_home_gives_empty_typed_marts(built):
    _, _, empty, _ = built
    assert {name: frame.height for name, frame in empty.items()} == dict.fromkeys(tables.MARTS, 0)
    for name, schema in tables.MARTS.items():
        assert empty[name].schema == schema, name


def test_every_mart_keeps_its_contract_and_every_check_passed(built):
    home, definitions, _, runs = built
    for name, schema in tables.MARTS.items():
        assert read(home, name).schema == schema, name
        assert home.table(f"traces/{name}").stat().st_mode & 0o077 == 0
    graph = definitions.resolve_asset_graph()
    declared = {c for c in graph.asset_check_keys if c.asset_key.path[0] == "traces"}
    for run in runs:  # the first made marts alone
        assert run.success
        failed = [e.check_name for e in run.get_asset_check_evaluations() if not e.passed]
        assert set(failed) <= {"trace_records_meet_expectations"}
    evaluated = {e.asset_check_key for e in runs[1].get_asset_check_evaluations()}
    assert evaluated == declared


def test_the_marts_add_up_to_the_hours(built):
    home = built[0]
    records = read_asked(home)
    asks = read(home, "asks")
    assert asks.height == records.height
    assert asks["cost_usd"].sum() == pytest.approx(records["cost_usd"].sum())
    assert read(home, "attempts").height == records["attempts"].list.len().sum()
    assert read(home, "served_by_hourly")["ask_count"].sum() == records.height
    savings = read(home, "savings_daily")
    assert savings["ask_count"].sum() == records.filter(pl.col("outcome") == "answered").height
    fallbacks = read(home, "fallbacks")
    assert fallbacks.height == records.filter(pl.col("selection_mode") == "fallback").height > 0
    kinds = {*asks["client_kind"]}
    assert kinds == {"docs_site", "ide", "support_agent", "cli"}
    requests = read(home, "escalation_requests")
    assert requests.height == records["escalation_requested"].sum() > 0
    latency = read(home, "latency_percentiles")
    assert latency["attempt_count"].sum() == read(home, "attempts")["latency_ms"].count()
    assert (latency["p50_ms"] <= latency["p99_ms"]).all()


def test_candidates_and_sessions_are_what_a_person_should_see(built):
    home = built[0]
    records = read_asked(home)
    candidates = read(home, "retrain_candidates")
    assert candidates.height > 0
    chosen = records.filter(pl.col("question_hash").is_in(candidates["question_hash"].to_list()))
    assert not chosen["is_injection"].any()
    sessions = read(home, "unhappy_sessions")
    assert sessions.height > 0
    named = ["key_id", "conversation_id", "env"]
    assert sessions.select(named).is_unique().all()
    counts = records.group_by(named).len()
    joined = sessions.join(counts, on=named, nulls_equal=True)
    assert joined["ask_count"].to_list() == joined["len"].to_list()
    assert joined.height == sessions.height


def test_a_valid_answer_that_was_doubted_fell_back_for_doubt(built):
    home = built[0]
    reasons = read(home, "fallbacks")["reason"]
    assert {*reasons} == {"low_confidence", "uncited_statement"}
    doubted = read_asked(home).filter(pl.col("route_reason") == "low_confidence")
    assert (reasons == "low_confidence").sum() == doubted.height > 0


def test_days_and_hours_are_utc_s_on_a_machine_that_is_elsewhere(built):
    home = built[0]
    at, is_answered = pl.col("asked_at"), pl.col("outcome") == "answered"
    asked = read_asked(home)
    days = asked.filter(is_answered).group_by(at.dt.date().alias("asked_date")).len()
    told = read(home, "savings_daily").select("asked_date", len=pl.col("ask_count").cast(pl.UInt32))
    assert told.sort("asked_date").equals(days.sort("asked_date"))
    hours = {*asked["asked_at"].dt.truncate("1h")}
    assert {*read(home, "served_by_hourly")["asked_hour"]} == hours
    assert {*read(home, "latency_percentiles")["asked_hour"]} <= hours


def test_what_duckdb_alone_spells_so_is_in_macros():
    for path in (PROJECT / "models").rglob("*.sql"):
        own = re.sub(r"{{.*?}}|--.*", "", path.read_text())
        assert not re.search(r"\b(len|unnest|regexp_extract|list_\w+)\(|\[", own), path.name


def test_duckdb_reads_marts_and_hours(built):
    home = built[0]
    hours = find_folder(home) / "date=*" / "hour=*.parquet"
    with duckdb.connect() as lake:
        lake.read_parquet(str(hours)).create_view("hours")
        lake.read_parquet(str(home.table("traces/asks"))).create_view("asks")
        query = "select (select count(*) from hours), (select count(*) from asks)"
        ((count, asks),) = lake.sql(query).fetchall()
    assert count == 2 * asks > 300


def test_a_mart_hangs_on_the_hours_and_on_nothing_that_trains(built):
    graph = built[1].resolve_asset_graph()
    for name in tables.MARTS:
        node = graph.get(dg.AssetKey(["traces", name]))
        assert node.parent_keys == {dg.AssetKey(["traces", "hourly_records"])}
        assert node.group_name == "traces"
        assert node.owners
        assert "dbt" in node.kinds
        assert {key.path[0] for key in graph.get(node.key).child_keys} <= {"traces"}
        shown = [c.name for c in node.metadata["dagster/column_schema"].columns]
        assert shown == tables.MARTS[name].names()
    chain = built[1].resolve_job_def("whole_chain")
    assert not {dg.AssetKey(["traces", name]) for name in tables.MARTS} & set(
        chain.asset_layer.executable_asset_keys
    )
