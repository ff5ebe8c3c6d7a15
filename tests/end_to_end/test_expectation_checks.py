"""A broken row in each table with a suite: exactly its check fails, and names the row.

The rows come in the way they would in production: through the hand-written files, the tables of the
stage before, and a server that traces.
"""

import asyncio
import hashlib
import json
import os

import dagster as dg
import polars as pl
import pytest

from assets import keys, tables
from assets.labels.judging import AXES, RUBRIC_VERSION
from orchestration.config import read_config
from orchestration.definitions import build_defs
from orchestration.running import run_chain
from serving.home import Home
from serving.models.protocols import NoProgress
from serving.pipeline.prompt import PromptFormat
from serving.tracing.segments import SegmentWriter, read_segment
from tests.assets.traces.conftest import QUESTIONS, serve_questions
from tests.product import SEEDS, write_product
from tests.serving.fakes import HITS


@pytest.fixture
def config(tmp_path):
    before = dict(os.environ)
    yield read_config(write_product(tmp_path))
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def materialize(config, instance, *assets: dg.AssetKey):
    """Make assets; return the run and the check evaluations that failed in it."""
    job = build_defs(config, progress=NoProgress()).resolve_job_def("whole_chain")
    result = job.execute_in_process(
        asset_selection=list(assets), instance=instance, raise_on_error=False
    )
    evaluations = result.get_asset_check_evaluations()
    assert evaluations, "no check ran"
    return result, [e for e in evaluations if not e.passed]


def read_failing(evaluation: dg.AssetCheckEvaluation) -> dict[str, list[str]]:
    rows = evaluation.metadata["failing_rows"].value
    return {statement: [row["id"] for row in found] for statement, found in rows.items()}


def edit_line(path, number: int, **changes) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | changes)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_broken_seed_stops_the_run_by_its_id(config, instance):
    edit_line(config.seeds.path, 3, text="?!")
    result, (failed,) = materialize(config, instance, keys.SEED_QUESTIONS)
    assert not result.success
    assert failed.check_name == "seed_questions_meet_expectations"
    assert failed.severity == dg.AssetCheckSeverity.ERROR
    assert read_failing(failed)["every seed has a letter or a digit in it"] == ["s03"]
    assert "s03" in failed.description


def test_seeds_without_the_out_of_scope_tag_warn_and_the_run_goes_on(config, instance):
    result, (failed,) = materialize(config, instance, keys.SEED_QUESTIONS)
    assert result.success
    assert failed.severity == dg.AssetCheckSeverity.WARN
    assert list(read_failing(failed)) == [
        "5% to 50% of the handwritten seeds are tagged out_of_scope"
    ]
    again = run_chain(config, progress=NoProgress(), recipe="tiny", select=["seeds"])
    assert again.succeeded
    planned = run_chain(config, progress=NoProgress(), recipe="tiny", select=["seeds"]).planned
    assert planned == ()  # a warning is no reason to make a table again


def test_a_broken_golden_case_stops_the_run_by_its_id(config, instance):
    path = config.eval.golden
    edit_line(path, 2, bucket="out_of_scope")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".lock").write_text(f"{digest}  {path.name}\n", encoding="utf-8")
    result, (failed,) = materialize(config, instance, keys.PAGES, keys.GOLDEN_CASES)
    assert not result.success
    assert failed.check_name == "golden_cases_meet_expectations"
    assert read_failing(failed) == {"every out-of-scope case expects a refusal": ["g2"]}


def test_a_bucket_of_another_size_than_it_was_frozen_with_stops_the_run(config, instance):
    frozen = config.eval.model_copy(update={"cases_by_bucket": {"answerable": 6, "boundary": 3}})
    changed = config.model_copy(update={"eval": frozen})
    _, (failed,) = materialize(changed, instance, keys.PAGES, keys.GOLDEN_CASES)
    assert list(read_failing(failed)) == [
        "the set has 3 boundary cases, as eval.cases_by_bucket says"
    ]


def write_labels(config) -> None:
    """Write what the stages before would; the answer of s07 cites a source too far."""
    prompt, answers = PromptFormat(), []
    for number, question in enumerate(SEEDS):
        cited = "[9]" if number == 7 else "[1]"
        raw = "REFUSE" if number % 4 == 0 else f"Put environment variables in a .env file. {cited}"
        request = prompt.write_request(question, HITS)
        answers.append(
            {name: None for name in tables.TEACHER_ANSWERS}
            | {
                "question_id": f"s{number:02}", "seed_id": f"s{number:02}", "question": question,
                "messages": [dict(message) for message in request.messages], "raw": raw,
                "refused": raw == "REFUSE", "citations": [], "retrieved": [],
                "validator_verdict": "valid", "teacher_id": "extractive-v1",
                "prompt_version": prompt.version, "index_fingerprint": "feed",
                "content_key": f"k{number}",
            }
        )  # fmt: skip
    judged = [
        {name: None for name in tables.JUDGED_ANSWERS}
        | {"content_key": row["content_key"], "question_id": row["question_id"], "axis": axis}
        | {"score": 5, "rater_kind": "model", "rater_id": config.judge.model}
        | {"judge_epoch": config.judge.epoch, "rubric_version": RUBRIC_VERSION}
        for row in answers
        for axis in AXES
    ]
    guarded = [
        {name: None for name in tables.GUARDED_QUESTIONS}
        | {"question_id": row["question_id"], "text": row["question"], "verdict": "kept"}
        for row in answers
    ]
    seeds = [{"question_id": row["question_id"], "source": "handwritten"} for row in answers]
    for key, rows, schema in (
        ("seeds/seed_questions", seeds, tables.SEED_QUESTIONS),
        ("paraphrases/guarded_questions", guarded, tables.GUARDED_QUESTIONS),
        ("labels/teacher_answers", answers, tables.TEACHER_ANSWERS),
        ("labels/judged_answers", judged, tables.JUDGED_ANSWERS),
    ):
        path = Home(config.home).table(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(rows, schema=schema).write_parquet(path)


def test_a_broken_label_stops_the_run_by_its_id(config, instance):
    write_labels(config)
    result, (failed,) = materialize(config, instance, keys.LABELLED_EXAMPLES)
    assert not result.success
    assert failed.check_name == "labelled_examples_meet_expectations"
    examples = pl.read_parquet(Home(config.home).table("labels/labelled_examples"))
    broken = examples.filter(pl.col("question_id") == "s07")["example_id"].item()
    assert read_failing(failed) == {"every citation is one of the sources in the prompt": [broken]}
    rows = failed.metadata["failing_rows"].value
    assert rows["every citation is one of the sources in the prompt"][0]["value"] == "[9]"
    assert "`[9]`" in failed.metadata["broken_promises"].value


def test_a_broken_trace_warns_by_its_id_and_quotes_nothing(config, instance):
    home = Home(config.home)

    async def serve_and_break() -> str:
        await serve_questions(home.traces)
        (segment,) = home.traces.glob("*.seg")
        sound = next(iter(read_segment(segment)))
        broken = sound | {"trace_id": sound["trace_id"][:-4] + "beef", "served_by": "nobody"}
        writer = SegmentWriter(home.traces)
        assert await writer.append(broken)
        await writer.close()
        return broken["trace_id"]

    trace_id = asyncio.run(serve_and_break())
    materialize(config, instance, keys.HOURLY_RECORDS)
    result, (failed,) = materialize(config, instance, keys.TRACE_RECORDS)
    assert result.success
    assert failed.check_name == "trace_records_meet_expectations"
    assert failed.severity == dg.AssetCheckSeverity.WARN
    assert read_failing(failed) == {"every served_by is a known one": [trace_id]}
    table = home.table("traces/trace_records")
    assert pl.read_parquet(table).height == len(QUESTIONS) + 1
    assert table.stat().st_mode & 0o777 == 0o600
    stored = "".join(str(event) for event in result.all_events)
    assert trace_id in stored
    assert "environment variables" not in stored


def test_traces_are_read_again_only_when_a_server_sealed_more(config):
    def run():
        return run_chain(config, progress=NoProgress(), recipe="tiny", select=["traces"])

    assert {asset.reason for asset in run().planned} == {"never made"}
    assert run().planned == ()
    asyncio.run(serve_questions(Home(config.home).traces, QUESTIONS[:1]))
    outcome = run()
    planned = {asset.key: asset.reason for asset in outcome.planned}
    assert planned["traces/hourly_records"] == "traces/trace_segments changed"
    assert "traces/trace_records" in planned
    assert outcome.succeeded
    assert run().planned == ()
