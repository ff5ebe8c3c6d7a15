"""A deletion reaches everything: after it and a run, a canary is nowhere in the whole home."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from assets import tables
from assets.traces.checks import deleted_traces_are_gone, no_published_adapter_learned_from_deleted
from assets.traces.curating import open_deletions
from assets.traces.deciding import Reviewer, decide_trace, find_trace, open_decisions
from assets.traces.forgetting import find_descendants, purge_descendants
from assets.traces.hours import find_folder
from orchestration import cli
from orchestration.config import load_config
from orchestration.curate_cli import compact
from orchestration.definitions import build_defs
from resources.answer_store import AnswerStore
from resources.embeddings import VectorStore
from serving.home import Home
from serving.pipeline.questions import normalise_question
from tests.assets.traces.served import make_keys, plan_days, serve_plan

CANARY = "zanzibar-heliotrope"
ASKED = f'Where do I put the "{CANARY}" variable of my project?'
REPHRASED = f"In which file does the {CANARY} setting belong?"
OTHER = "Where are environment variables read from?"
TAUGHT = "compact@aaaaaaaaaaaa"
INNOCENT = "compact@bbbbbbbbbbbb"
EARLIER = "compact@cccccccccccc"
DIMENSION = 4


def lay(home: Home, key: str, *rows: dict[str, object], partition: str | None = None) -> None:
    schema = tables.BY_KEY[tuple(key.split("/"))]
    path = home.table(key, partition)
    path.parent.mkdir(parents=True, exist_ok=True)
    blank = dict.fromkeys(schema)
    pl.DataFrame([blank | row for row in rows], schema=schema).write_parquet(path)


def lay_descendants(home: Home, trace_id: str) -> None:
    """Write what a chain leaves of one harvested seed, and of a hand-written one beside it."""
    lay(home, "seeds/seed_questions",
        {"question_id": "s1", "text": ASKED, "source": "harvested", "source_trace_id": trace_id},
        {"question_id": "s2", "text": OTHER, "source": "handwritten"})  # fmt: skip
    grown = [("s1", "s1", ASKED), ("p1", "s1", REPHRASED), ("s2", "s2", OTHER)]
    lay(home, "paraphrases/seed_clusters", {"question_id": "s1"}, {"question_id": "s2"})
    lay(home, "paraphrases/paraphrases", {"question_id": "p1", "seed_id": "s1", "text": REPHRASED})
    lay(home, "paraphrases/guarded_questions",
        *({"question_id": q, "seed_id": s, "text": t} for q, s, t in grown))  # fmt: skip
    for table in ("labels/teacher_answers", "labels/labelled_examples"):
        lay(home, table, *(
            {"question_id": q, "seed_id": s, "question": t, "content_key": f"k-{q}"}
            | ({"example_id": f"e-{q}"} if table.endswith("examples") else {})
            for q, s, t in grown
        ))  # fmt: skip
    lay(home, "labels/judged_answers", {"content_key": "k-p1", "question_id": "p1"},
        {"content_key": "k-s2", "question_id": "s2", "rationale": "sound"})  # fmt: skip
    lay(home, "labels/teacher_logprobs", {"example_id": "e-p1"}, {"example_id": "e-s2"})
    for recipe, adapter, examples in (("taught", TAUGHT, ("e-p1", "e-s2")),
                                      ("innocent", INNOCENT, ("e-s2",))):  # fmt: skip
        lay(home, "students/training_set", *({"example_id": e} for e in examples),
            partition=recipe)  # fmt: skip
        lay(home, "students/student_adapter", {"adapter": adapter}, partition=recipe)
    held_out = ({"example_id": "e-s1", "seed_id": "s1", "question": ASKED},
                {"example_id": "e-s2", "seed_id": "s2", "question": OTHER})  # fmt: skip
    lay(home, "students/held_out_answers", *held_out, partition="taught")
    for adapter in (TAUGHT, INNOCENT, EARLIER):
        folder = home.adapters / adapter
        folder.mkdir(parents=True)
        told = {"trained_at": datetime.now(UTC).isoformat()}
        (folder / "provenance.json").write_text(json.dumps(told))
    release = home.releases / "r1"
    release.mkdir(parents=True)
    (home.releases / "CURRENT").write_text(json.dumps({"release_id": "r1"}))
    (release / "manifest.json").write_text(json.dumps({"students": {"c": {"adapter": TAUGHT}}}))


async def keep_answers(home: Home) -> None:
    """Keep answers as the paid models do: of the labels, and of the rewriting of the seed."""
    store = AnswerStore(home.answer_cache)
    rewritten = json.dumps([REPHRASED, ASKED])  # an answer that is JSON inside JSON
    for key, text in (("k-s1", "It is in .env."), ("k-p1", "In .env."), ("k-s2", "In .env too."),
                      ("rewriting", rewritten), ("judging", f"It asks: {ASKED}")):  # fmt: skip
        await store.keep(key, json.dumps({"text": text, "cost_usd": 0.1}))
    old = home.answer_cache / "k-" / "k-p1.json"
    old.parent.mkdir()
    old.write_text(json.dumps({"text": "In .env."}))
    store.close()


def keep_vectors(home: Home) -> VectorStore:
    store = VectorStore(home.embeddings / "e0e0.sqlite", dimension=DIMENSION)
    unit = np.eye(DIMENSION, dtype=np.float32)
    texts = (ASKED, normalise_question(REPHRASED), OTHER)
    store.write({text: unit[n] for n, text in enumerate(texts)})
    return store


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Home:
    """A home that served, curated and trained on the canary."""
    home = Home(tmp_path_factory.mktemp("forgetting") / "home")
    plan = plan_days(0.3, 40)
    plan[-1] = replace(plan[-1], question=ASKED)
    customers = make_keys(home.root, 12)
    trace_id = serve_plan(home.root, plan, keys=customers, feedback=[f"{CANARY} is wrong"])[-1]
    compact(home)
    now = datetime.now(UTC)
    trace = find_trace(find_folder(home), trace_id)
    assert CANARY in trace["question"]
    open_decisions(home).append(decide_trace(
        trace, verdict="accepted", reason_code="recurring", reviewer=Reviewer(name="ada",
        kind="human"), shown_at=now - timedelta(hours=1), decided_at=now - timedelta(hours=1),
    ))  # fmt: skip
    run_traces(home)
    lay_descendants(home, trace_id)
    asyncio.run(keep_answers(home))
    keep_vectors(home).close()
    return home


def run_traces(home: Home) -> dg.ExecuteInProcessResult:
    """Make what a run makes of the traces, with the checks."""
    definitions = build_defs(load_config({"UNDERSTUDY_HOME": str(home.root)}))
    made = [
        node.key
        for node in definitions.resolve_asset_graph().asset_nodes
        if node.key.path[0] == "traces" and node.is_materializable
    ]
    job = definitions.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        instance=dg.DagsterInstance.ephemeral(), asset_selection=made, raise_on_error=False
    )


def find_canary(home: Home) -> set[str]:
    """Return the files that hold the canary: bytes, and the cells of Parquet, which compresses."""
    found = set()
    for path in (path for path in home.root.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.suffix == ".parquet":
            data += pl.read_parquet(path, hive_partitioning=False).write_json().encode()
        if CANARY.encode() in data:
            found.add(path.relative_to(home.root).as_posix())
    return found


@pytest.fixture(scope="module")
def forgotten(home):
    before = find_canary(home)
    trace_id = open_decisions(home).read()["trace_id"][0]
    descendants = find_descendants(home, [trace_id])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERSTUDY_HOME", str(home.root))
        done = CliRunner().invoke(
            cli.app, ["curate", "forget", "trace", trace_id, "--reviewer", "ada"]
        )
    assert done.exit_code == 0, done.output
    return before, descendants, done.output


def test_the_canary_was_everywhere_and_is_nowhere(home, forgotten):
    before, _, _ = forgotten
    places = {part for path in before for part in Path(path).parts}
    assert {"segments", "feedback", "curation_decisions.jsonl", "trace_records.parquet",
            "feedback.parquet", "seed_questions.parquet", "paraphrases.parquet",
            "guarded_questions.parquet", "teacher_answers.parquet", "labelled_examples.parquet",
            "held_out_answers", "cache"} <= places  # fmt: skip
    assert find_canary(home) <= {"lake/traces/feedback.parquet"}  # made anew by the run below
    run = run_traces(home)
    assert run.success
    assert find_canary(home) == set()


def test_what_grew_from_it_is_gone_and_what_did_not_stays(home, forgotten):
    _, descendants, told = forgotten
    assert descendants.question_ids == {"s1", "p1"}
    assert descendants.content_keys == {"k-s1", "k-p1"}
    kept = {key: pl.read_parquet(home.table(key, part)) for key, part in (
        ("seeds/seed_questions", None), ("labels/labelled_examples", None),
        ("labels/judged_answers", None), ("labels/teacher_logprobs", None),
        ("students/training_set", "taught"), ("students/held_out_answers", "taught"),
    )}  # fmt: skip
    assert {key: frame.height for key, frame in kept.items()} == dict.fromkeys(kept, 1)
    store = AnswerStore(home.answer_cache)
    found = {key for key in ("k-s1", "k-p1", "k-s2", "rewriting", "judging") if store.find(key)}
    store.close()
    assert found == {"k-s2"}
    vectors = VectorStore(home.embeddings / "e0e0.sqlite", dimension=DIMENSION)
    assert set(vectors.read([ASKED, normalise_question(REPHRASED), OTHER])) == {OTHER}
    vectors.close()
    assert "kept answers and vectors" in " ".join(told.split())


@pytest.mark.usefixtures("forgotten")
def test_adapters_that_may_have_learned_it_are_marked_and_a_published_one_warns(home):
    tombstones = open_deletions(home).read()
    assert tombstones["adapters"].to_list() == [[TAUGHT, EARLIER]]
    result = no_published_adapter_learned_from_deleted(tombstones, home)
    assert not result.passed
    assert result.severity == dg.AssetCheckSeverity.WARN
    assert result.metadata["published_and_marked"].value == [TAUGHT]
    manifest = home.releases / "r1" / "manifest.json"
    manifest.write_text(json.dumps({"students": {"c": {"adapter": INNOCENT}}}))
    assert no_published_adapter_learned_from_deleted(tombstones, home).passed
    assert deleted_traces_are_gone(tombstones, home).passed


def test_an_interrupted_purge_finds_everything_again(tmp_path):
    other = Home(tmp_path / "home")
    lay_descendants(other, "t1")
    first = find_descendants(other, ["t1"])
    pl.read_parquet(other.table("paraphrases/paraphrases")).clear().write_parquet(
        other.table("paraphrases/paraphrases")
    )
    again = find_descendants(other, ["t1"])
    assert again.question_ids == first.question_ids
    assert purge_descendants(other, again)
    assert purge_descendants(other, again) == {}
