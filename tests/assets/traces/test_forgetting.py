"""A deletion reaches everything: after it and a run, a canary is nowhere in the whole home."""

import asyncio
import contextlib
import json
import shlex
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from assets import tables
from assets.paraphrases.rewriting import write_rewrite_request
from assets.traces.checks import deleted_traces_are_gone, no_published_adapter_learned_from_deleted
from assets.traces.deciding import Reviewer, decide_trace, find_trace, open_decisions
from assets.traces.deleting import mark_deleted
from assets.traces.forgetting import Descendants, find_descendants
from assets.traces.hours import find_folder
from assets.traces.requesting import find_remains, find_unfinished, open_deletions
from assets.traces.tainting import find_adapters
from orchestration import cli
from orchestration.config import load_config
from orchestration.curate_cli import compact
from orchestration.definitions import build_defs
from orchestration.forgetting import hash_training_set
from resources import erasing
from resources.answer_store import AnswerStore
from resources.embeddings import VectorStore
from serving.home import Home
from serving.pipeline.questions import normalise_question
from tests.assets.traces.served import START, make_keys, plan_days, serve_plan

CANARY = "zanzibar-heliotrope"
ASKED = f'Where do I put the "{CANARY}" variable of my project?'
REPHRASED = f"In which file does the {CANARY} setting belong?"
OTHER = "Where are environment variables read from?"
TAUGHT = "compact@aaaaaaaaaaaa"
INNOCENT = "compact@bbbbbbbbbbbb"
EARLIER = "compact@cccccccccccc"
BEFORE = "compact@dddddddddddd"
SHOWN = "compact@eeeeeeeeeeee"
PLAIN = "compact@ffffffffffff"
DIMENSION = 4
SAID = f"The {CANARY} belongs in a file."
RATIONALE = "Names the file that the user wants, as the first source does."


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
    lay(home, "labels/judged_answers", {"content_key": "k-p1", "question_id": "p1",
        "rationale": RATIONALE},
        {"content_key": "k-s2", "question_id": "s2", "rationale": "sound"})  # fmt: skip
    lay(home, "labels/teacher_logprobs", {"example_id": "e-p1"}, {"example_id": "e-s2"})
    held_out = ({"example_id": "e-s1", "seed_id": "s1", "question": ASKED, "raw": f"{SAID} [1]"},
                {"example_id": "e-s2", "seed_id": "s2", "question": OTHER})  # fmt: skip
    lay(home, "students/held_out_answers", *held_out, partition="taught")
    lay_adapters(home)


def lay_adapters(home: Home) -> None:
    """Write students: of today's training sets, of an earlier one, and two that are prompts."""
    later = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    papers = {
        EARLIER: {"data_hash": "of-a-training-set-that-is-gone", "trained_at": later},
        BEFORE: {"data_hash": "gone-too", "trained_at": START.isoformat()},
        SHOWN: {"data_hash": "of-labels", "example_ids": ["e-s1"], "trained_at": later},
        PLAIN: {"data_hash": None, "example_ids": [], "trained_at": later},
    }
    for recipe, adapter, examples in (("taught", TAUGHT, ("e-p1", "e-s2")),
                                      ("innocent", INNOCENT, ("e-s2",))):  # fmt: skip
        lay(home, "students/training_set", *({"example_id": e} for e in examples),
            partition=recipe)  # fmt: skip
        lay(home, "students/student_adapter", {"adapter": adapter}, partition=recipe)
        rows = pl.read_parquet(home.table("students/training_set", recipe))
        papers[adapter] = {"data_hash": hash_training_set(rows), "trained_at": later}
    for adapter, told in papers.items():
        folder = home.adapters / adapter
        folder.mkdir(parents=True)
        (folder / "provenance.json").write_text(json.dumps(told))
    release = home.releases / "r1"
    release.mkdir(parents=True)
    (home.releases / "CURRENT").write_text(json.dumps({"release_id": "r1"}))
    (release / "manifest.json").write_text(json.dumps({"students": {"c": {"adapter": TAUGHT}}}))


async def keep_answers(home: Home) -> None:
    """Keep answers as the paid models do: of labels, of the rewriting of the seed, of the judge."""
    store = AnswerStore(home.answer_cache)
    count = load_config({}).seeds.paraphrases_per_medoid
    request = write_rewrite_request(ASKED, count=count, temperature=1, seed=3)
    rewriting = request.messages[-1]["content"]
    for key, asked, text in (
        ("k-s1", ASKED, "It is in .env."), ("k-p1", REPHRASED, "In .env."),
        ("k-s2", OTHER, "In .env too."), ("rewriting", rewriting, '["Which?", "Where?"]'),
        ("dropped", "another prompt", json.dumps([REPHRASED])),  # JSON inside JSON
        ("judging", "a judge's prompt", json.dumps({"rationale": RATIONALE})),
    ):  # fmt: skip
        await store.keep(key, json.dumps({"text": text, "cost_usd": 0.1}), asked=asked)
    old = home.answer_cache / "ab" / "abcd.json"
    old.parent.mkdir()
    old.write_text(json.dumps({"text": f"It asks: {ASKED}"}))
    store.close()


def keep_vectors(home: Home) -> VectorStore:
    store = VectorStore(home.embeddings / "e0e0.sqlite", dimension=DIMENSION)
    unit = np.eye(DIMENSION, dtype=np.float32)
    texts = (ASKED, normalise_question(REPHRASED), OTHER, SAID)
    store.write({text: unit[n] for n, text in enumerate(texts)})
    return store


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Home:
    """A home that served, curated and trained on the canary."""
    home = Home(tmp_path_factory.mktemp("forgetting") / "home")
    plan = plan_days(0.3, 40)
    plan[-1] = replace(plan[-1], question=ASKED)
    customers = make_keys(home.root, 12)
    said = [f"{CANARY} is wrong"]
    trace_id = serve_plan(home.root, plan, keys=customers, feedback=said, has_shadows=True)[-1]
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


@pytest.fixture(scope="module")
def untouched(home, tmp_path_factory) -> Home:
    """The same home before anything is forgotten."""
    copy = tmp_path_factory.mktemp("untouched") / "home"
    shutil.copytree(home.root, copy)
    return Home(copy)


def run_traces(home: Home) -> dg.ExecuteInProcessResult:
    """Make what a run makes of the traces, with the checks."""
    definitions = build_defs(load_config({"UNDERSTUDY_HOME": str(home.root)}))
    made = [
        node.key
        for node in definitions.resolve_asset_graph().asset_nodes
        if node.key.path[0] == "traces" and node.is_materializable
    ]
    job = definitions.resolve_implicit_global_asset_job_def()
    notes = home.root / "dagster"
    notes.mkdir(exist_ok=True)
    with dg.DagsterInstance.local_temp(str(notes)) as instance:
        return job.execute_in_process(instance=instance, asset_selection=made, raise_on_error=False)


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


def ask_to_forget(home: Home, *arguments: str):
    return run_command(home, "curate", "forget", *arguments, "--reviewer", "ada")


def run_command(home: Home, *arguments: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERSTUDY_HOME", str(home.root))
        return CliRunner().invoke(cli.app, arguments)


@pytest.fixture(scope="module")
def forgotten(home, untouched):
    trace_id = open_decisions(home).read()["trace_id"][0]
    before = find_canary(untouched)
    descendants = find_descendants(home, Descendants(trace_ids=frozenset({trace_id})))
    done = ask_to_forget(home, "trace", trace_id)
    assert done.exit_code == 0, done.output
    return before, descendants, " ".join(done.output.split())


def test_the_canary_was_everywhere_and_is_nowhere(home, forgotten):
    before, _, _ = forgotten
    places = {part for path in before for part in Path(path).parts}
    assert {"segments", "feedback", "curation_decisions.jsonl", "trace_records.parquet",
            "feedback.parquet", "seed_questions.parquet", "paraphrases.parquet",
            "guarded_questions.parquet", "teacher_answers.parquet", "labelled_examples.parquet",
            "held_out_answers", "cache"} <= places  # fmt: skip
    assert "dagster" not in places  # what a run notes outlives the tables
    assert list((home.root / "dagster").rglob("*.db"))
    assert find_canary(home) == set()
    run = run_traces(home)
    assert run.success
    assert find_canary(home) == set()
    assert find_remains(home) == {}


@pytest.mark.usefixtures("forgotten")
def test_the_shadow_of_a_question_goes_with_it(home):
    (named,) = open_deletions(home).read()["trace_ids"]
    (asked,) = {*open_decisions(home).read()["trace_id"]}
    assert len(named) == 2
    assert asked in named
    late = pl.DataFrame({"trace_id": ["s", "t"], "parent_trace_id": [asked, None]})
    assert mark_deleted(late, open_deletions(home).read()).to_list() == [True, False]


def test_what_grew_from_it_is_gone_and_what_did_not_stays(home, forgotten):
    _, descendants, told = forgotten
    assert descendants.question_ids == {"s1", "p1"}
    kept = {key: pl.read_parquet(home.table(key, part)) for key, part in (
        ("seeds/seed_questions", None), ("labels/labelled_examples", None),
        ("labels/judged_answers", None), ("labels/teacher_logprobs", None),
        ("students/training_set", "taught"), ("students/held_out_answers", "taught"),
    )}  # fmt: skip
    assert {key: frame.height for key, frame in kept.items()} == dict.fromkeys(kept, 1)
    store = AnswerStore(home.answer_cache)
    keys = ("k-s1", "k-p1", "k-s2", "rewriting", "dropped", "judging", "abcd")
    assert {key for key in keys if store.find(key)} == {"k-s2"}
    store.close()
    vectors = VectorStore(home.embeddings / "e0e0.sqlite", dimension=DIMENSION)
    assert set(vectors.read([ASKED, normalise_question(REPHRASED), OTHER, SAID])) == {OTHER}
    vectors.close()
    assert "9 kept answers and vectors" in told


@pytest.mark.usefixtures("forgotten")
def test_adapters_that_may_have_learned_it_are_marked_and_a_published_one_warns(home, forgotten):
    tombstones = open_deletions(home).read()
    assert tombstones["adapters"].to_list() == [[TAUGHT, EARLIER, SHOWN]]
    assert tombstones["doubtful_adapters"].to_list() == [[EARLIER]]
    assert f"no longer at hand: {EARLIER}" in forgotten[2]
    result = no_published_adapter_learned_from_deleted(tombstones, home)
    assert not result.passed
    assert result.severity == dg.AssetCheckSeverity.WARN
    assert result.metadata["published_and_marked"].value == [TAUGHT]
    assert result.metadata["adapters_in_doubt"].value == [EARLIER]
    manifest = home.releases / "r1" / "manifest.json"
    manifest.write_text(json.dumps({"students": {"c": {"adapter": INNOCENT}}}))
    assert no_published_adapter_learned_from_deleted(tombstones, home).passed
    assert deleted_traces_are_gone(tombstones, home).passed


def test_an_adapter_is_judged_by_the_training_set_it_names_and_not_by_todays(tmp_path):
    home = Home(tmp_path / "home")
    lay_descendants(home, "t1")
    gone = find_descendants(home, Descendants(trace_ids=frozenset({"t1"})))
    # Each recipe's set was made anew since: what today's say of "taught" is true of "innocent".
    sets = [home.table("students/training_set", recipe) for recipe in ("taught", "innocent")]
    frames = [pl.read_parquet(path) for path in sets]
    for path, frame in zip(sets, reversed(frames), strict=True):
        frame.write_parquet(path)
    assert find_adapters(home, gone, hash_training_set).learned == {TAUGHT, SHOWN}
    pl.concat(frames).write_parquet(sets[0])
    pl.concat(frames).write_parquet(sets[1])
    found = find_adapters(home, gone, hash_training_set)
    assert found.learned == {SHOWN}
    assert found.doubtful == {TAUGHT, INNOCENT, EARLIER, BEFORE}  # no decision says since when


@pytest.mark.parametrize("file", [
    "answers.sqlite", "e0e0.sqlite", "seed_questions.parquet",
    "guarded_questions.parquet", "labelled_examples.parquet", "taught.parquet",
    "curation_decisions.jsonl", "deletions.jsonl", "trace_records.parquet", "hour=",
])  # fmt: skip
def test_what_was_interrupted_is_completed_by_the_same_request(untouched, tmp_path, file):
    """One file after the other cannot be written; a night may compact before anybody asks again."""
    home = Home(tmp_path / "home")
    shutil.copytree(untouched.root, home.root)
    trace_id = open_decisions(home).read()["trace_id"][0]
    with hold_file(home, file):
        assert ask_to_forget(home, "trace", trace_id).exit_code != 0
    assert find_canary(home)
    is_requested = file in {"trace_records.parquet", "hour="}  # what is left is compaction's
    assert bool(find_unfinished(home)) is not is_requested
    tombstones = open_deletions(home).read()
    assert not deleted_traces_are_gone(tombstones, home).passed
    compact(home)
    told = find_unfinished(home) or [f"understudy curate forget trace {trace_id} --reviewer ada"]
    assert is_requested or told[0] in str(deleted_traces_are_gone(tombstones, home).description)
    again = run_command(home, *shlex.split(told[0])[1:])
    assert again.exit_code == 0, again.output
    assert find_canary(home) == set()
    assert (find_remains(home), find_unfinished(home)) == ({}, [])
    last = open_deletions(home).read().row(-1, named=True)
    assert last["adapters"] == [TAUGHT, EARLIER, SHOWN]
    assert last["doubtful_adapters"] == [EARLIER]


@contextlib.contextmanager
def hold_file(home: Home, name: str) -> Iterator[None]:
    """Let no writer have a file: SQLite waits for a lock, and the disk takes no other copy."""

    def refuse(path: Path, target: Path) -> Path:
        if Path(target).name.startswith(name):
            raise OSError(28, "No space left on device")
        return replace_file(path, target)

    replace_file = Path.replace
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as held:
        patch.setattr(Path, "replace", refuse)
        patch.setattr(erasing, "LOCK_SECONDS", 0.05)
        for store in home.root.rglob(name) if name.endswith(".sqlite") else ():
            other = held.enter_context(contextlib.closing(sqlite3.connect(store)))
            other.execute("begin immediate")
        yield
