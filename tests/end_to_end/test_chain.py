"""The whole chain on a product of somebody else's: docs to signed release to answer.

The teacher, the embedder, the index, the training process and the server are the real ones; the
student is a tiny random model, so that its quality is nobody's business here.
"""

import json
import os
import sqlite3
from contextlib import closing

import duckdb
import polars as pl
import pytest

from assets import keys, tables
from assets.parity.arms import DEFAULT_ARMS
from orchestration.asking import ask_once
from orchestration.config import read_config
from orchestration.demo import read_report
from orchestration.running import run_chain
from resources.answer_store import FILE_NAME
from serving.errors import InvalidInputError
from serving.home import Home
from serving.models.protocols import NoProgress
from serving.pipeline.snapshot_receipt import RECEIPT
from serving.tracing.segments import read_segment
from tests.product import write_golden, write_product

pytestmark = pytest.mark.real_models
PARTITIONED = {"students", "parity", "releases"}
OF_ALL_RECIPES = {"parity/suitability"}
ON_DEMAND = {key.to_user_string() for key in keys.ON_DEMAND}
NIGHTLY = {f"traces/{mart}" for mart in tables.MARTS}  # by dbt, in a job of their own
MADE = sorted({"/".join(key) for key in tables.BY_KEY} - ON_DEMAND - NIGHTLY)
GONE = "what it made is damaged or gone from disk"
WITHOUT_ROWS = {"labels/teacher_logprobs", "labels/rejected_examples"}
"""This product has no scorer, and no answer need be rejected. No server has run yet either."""


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    """The chain, run once. Models prepared by an earlier run are shared through a link."""
    folder = tmp_path_factory.mktemp("product")
    before = dict(os.environ)
    config = read_config(write_product(folder))
    outcome = run_chain(config, progress=NoProgress(), recipe="tiny")
    yield config, outcome
    os.environ.clear()
    os.environ.update(before)


def read(config, key: str) -> pl.DataFrame:
    return pl.read_parquet(find_table(config, key))


def find_table(config, key: str):
    is_partitioned = key.split("/")[0] in PARTITIONED and key not in OF_ALL_RECIPES
    return Home(config.home).table(key, "tiny" if is_partitioned else None)


def read_answer_keys(config) -> set[str]:
    with closing(sqlite3.connect(Home(config.home).answer_cache / FILE_NAME)) as store:
        return {key for (key,) in store.execute("select key from answers")}


def test_the_chain_runs_to_a_verdict(product):
    config, outcome = product
    assert outcome.succeeded, outcome.failure
    assert sorted(asset.key for asset in outcome.planned) == MADE
    report = read_report(config, "tiny")
    assert report["verdict"]["verdict"] in {"PROMOTE", "HOLD", "INCONCLUSIVE"}
    rows = report["sections"]["parity"]["tables"]["parity"]
    assert {row["arm"] for row in rows if row["kind"] == "arm"} == set(DEFAULT_ARMS)


def test_every_table_has_its_declared_schema_and_opens_in_duckdb(product):
    config, _ = product
    for key in MADE:
        frame = read(config, key)
        assert frame.schema == tables.BY_KEY[tuple(key.split("/"))], key
        (rows,) = duckdb.sql(f"select count(*) from '{find_table(config, key)}'").fetchall()[0]  # noqa: S608
        assert rows == frame.height
        assert rows > 0 or key in WITHOUT_ROWS or key.startswith("traces/"), key


def test_a_second_run_buys_nothing_and_makes_nothing(product):
    config, _ = product
    cached = read_answer_keys(config)
    again = run_chain(config, progress=NoProgress(), recipe="tiny")
    assert again.planned == ()
    assert read_answer_keys(config) == cached


def test_a_forced_rerun_of_labels_and_training_reuses_every_answer_and_the_adapter(product):
    config, _ = product
    home = Home(config.home)
    before = read_answer_keys(config)
    adapter = read(config, "students/student_adapter")["adapter"].item()
    outcome = run_chain(
        config,
        progress=NoProgress(),
        recipe="tiny",
        select=["labels/teacher_answers", "students"],
        force=True,
    )
    assert outcome.succeeded, outcome.failure
    assert read_answer_keys(config) == before
    assert read(config, "students/student_adapter")["adapter"].item() == adapter
    assert [p.name for p in home.adapters.iterdir()] == [adapter]


def test_labels_are_what_the_production_pipeline_answered(product):
    config, _ = product
    answers = read(config, "labels/teacher_answers")
    hot = answers.filter(pl.col("question").str.contains("hot does the kiln"))
    assert "1300" in hot["answer"][0]
    assert hot["citations"][0].to_list() == ["docs:index/1"]
    weather = answers.filter(pl.col("question").str.contains("football"))
    assert weather["refused"].all()


def test_the_release_answers_with_a_citation_and_leaves_a_trace(product):
    config, _ = product
    body = ask_once(config, "What does the display error E4 mean?")
    assert body["served_by"] in {"teacher", "student"}
    assert body["citations"][0]["id"] == "docs:reference/errors/1"
    assert "thermocouple" in body["answer"]
    refused = ask_once(config, "Who won the football match yesterday?")
    assert refused["refused"]
    assert refused["citations"] == []
    traced = [
        record["trace_id"]
        for segment in Home(config.home).traces.glob("*.seg*")
        for record in read_segment(segment)
    ]
    assert {body["trace_id"], refused["trace_id"]} <= set(traced)


def test_the_golden_reads_are_counted(product):
    config, _ = product
    report = read_report(config, "tiny")
    readers = report["sections"]["provenance"]["tables"]["golden_set_readers"]
    assert {row["reader"] for row in readers} >= {
        f"{name}:tiny"
        for name in ("arm_answers", "graded_answers", "parity_report", "gate_verdict")
    }
    assert report["golden_set_reads"] == sum(row["count"] for row in readers)


def test_a_fact_that_is_on_no_page_stops_every_run_until_it_is_mended(product):
    config, _ = product
    page = config.product.corpus.path / "reference" / "errors.mdx"
    text = page.read_text(encoding="utf-8")
    made_before = read(config, "labels/teacher_answers")
    try:
        page.write_text(text.replace("thermocouple", "sensor"), encoding="utf-8")
        for _ in range(2):  # a failed check must still stop the run after the one it failed in
            outcome = run_chain(config, progress=NoProgress(), recipe="tiny")
            assert not outcome.succeeded
            assert "g3" in outcome.failure
            assert "thermocouple" in outcome.failure
            assert read(config, "labels/teacher_answers").equals(made_before)
        with pytest.raises(InvalidInputError, match="golden_facts_occur_in_gold_pages"):
            run_chain(
                config, progress=NoProgress(), recipe="tiny", select=["paraphrases"], force=True
            )
    finally:
        page.write_text(text, encoding="utf-8")
    assert run_chain(config, progress=NoProgress(), recipe="tiny").succeeded
    assert run_chain(config, progress=NoProgress(), recipe="tiny").planned == ()


def plan(config, **options) -> dict[str, str]:
    outcome = run_chain(config, progress=NoProgress(), recipe="tiny", dry_run=True, **options)
    return {asset.key: asset.reason for asset in outcome.planned}


def test_a_new_trace_makes_the_trace_table_stale_and_nothing_that_trains(product):
    config, _ = product
    run_chain(config, progress=NoProgress(), recipe="tiny", select=["traces"])
    trace_id = ask_once(config, "How thick is a glaze layer?")["trace_id"]
    planned = plan(config)
    assert planned["traces/hourly_records"] == "traces/trace_segments changed"
    # Advice to people reads what was asked; no label, student or release does.
    elsewhere = {key for key in planned if not key.startswith("traces/")}
    assert elsewhere == {"parity/suitability"}
    assert run_chain(config, progress=NoProgress(), recipe="tiny").succeeded
    assert trace_id in read(config, "traces/trace_records")["trace_id"]
    assert plan(config) == {}


def test_what_is_gone_from_disk_is_planned_again_and_a_dry_run_makes_nothing(product, tmp_path):
    config, _ = product
    home = Home(config.home)
    adapter = home.adapters / read(config, "students/student_adapter")["adapter"].item()
    index = home.root / read(config, "corpus/vector_index")["uri"].item()
    curve = home.table("students/training_curve", "tiny")
    told = []
    for path, key in (
        (curve, "students/training_curve"),
        (adapter, "students/student_adapter"),
        (index, "corpus/vector_index"),
    ):
        path.rename(tmp_path / "aside")
        try:
            assert plan(config, announce=told.append)[key] == GONE
            assert not path.exists()
        finally:
            (tmp_path / "aside").rename(path)
    receipt = (index / RECEIPT).read_text(encoding="utf-8")
    (index / RECEIPT).write_text("{}", encoding="utf-8")  # a damaged snapshot is none
    assert plan(config)["corpus/vector_index"] == GONE
    (index / RECEIPT).write_text(receipt, encoding="utf-8")
    assert len(told) == 3
    assert plan(config) == {}


def test_a_selection_without_what_it_is_made_from_says_what_to_add(product, tmp_path):
    config, _ = product
    fresh = config.model_copy(update={"home": tmp_path / "fresh"})
    with pytest.raises(InvalidInputError) as refused:
        plan(fresh, select=["eval_set"])
    assert "corpus/pages was never made" in refused.value.found
    assert "--select corpus" in refused.value.next_step
    assert set(plan(fresh, select=["eval_set", "corpus", "seeds"])) >= {"corpus/pages"}


def test_a_changed_golden_file_is_refused_before_anything_is_made(product):
    config, _ = product
    path = config.eval.golden
    before = read(config, "eval_set/golden_cases")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        changed = json.loads(lines[0]) | {"question": "Another question?"}
        path.write_text("\n".join([json.dumps(changed), *lines[1:]]) + "\n", encoding="utf-8")
        outcome = run_chain(config, progress=NoProgress(), recipe="tiny", select=["eval_set"])
        assert not outcome.succeeded
        assert "sha256" in outcome.failure
        assert read(config, "eval_set/golden_cases").equals(before)
    finally:
        write_golden(path.parent)


def test_a_damaged_prepared_model_stops_the_run_with_both_hashes(product):
    config, _ = product
    (weights,) = Home(config.home).models.glob("*/model.safetensors")
    original = weights.read_bytes()
    try:
        weights.write_bytes(original + b"x")
        outcome = run_chain(
            config, progress=NoProgress(), recipe="tiny", select=["eval_set"], force=True
        )
        assert not outcome.succeeded
        assert "expected sha256 53aa51172d14" in outcome.failure
        assert "it is prepared anew" in outcome.failure
    finally:
        weights.write_bytes(original)
