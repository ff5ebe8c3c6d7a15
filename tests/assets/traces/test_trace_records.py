"""Records of a server that really ran, as a table, and the promises it keeps or breaks."""

import asyncio
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from assets import tables
from assets.check_results import report_outcome
from assets.expectations import SuiteOutcome
from assets.traces.expectations import evaluate_traces
from assets.traces.records import tabulate_records
from resources.traces import SealedSegments
from serving.hashing import content_hash
from serving.tracing.record import TRACE_FIELDS
from serving.tracing.segments import SegmentWriter
from tests.assets.traces.conftest import QUESTIONS, serve_questions

NOW = datetime.now(UTC) + timedelta(hours=1)
FEW_ANSWERED = "at least 95% of the questions were answered"


def broken(outcome: SuiteOutcome) -> dict[str, list[str]]:
    return {promise.statement: [row.id for row in promise.rows] for promise in outcome.broken}


@pytest.fixture
def records(segments) -> pl.DataFrame:
    return tabulate_records(SealedSegments(segments).read())


def test_the_table_holds_the_fields_of_the_record_in_order():
    assert tuple(tables.TRACE_RECORDS.names()) == TRACE_FIELDS


def test_what_a_server_wrote_becomes_a_typed_table(records):
    assert records.schema == tables.TRACE_RECORDS
    assert records.height == 6
    assert records["trace_id"].is_sorted()
    kinds = records.select("outcome", "refused", "selection_mode").rows()
    assert kinds == [
        ("answered", False, "rule"), ("answered", False, "rule"), ("answered", False, "rule"),
        ("answered", True, "rule"), ("answered", False, "fallback"),
        ("upstream-failed", None, "fallback"),
    ]  # fmt: skip
    age = datetime.now(UTC) - records["asked_at"].min()
    assert timedelta(0) <= age < timedelta(hours=1)
    assert records["attempts"].list.len().to_list() == [1, 1, 1, 1, 2, 2]


def test_the_records_of_a_sound_server_keep_every_promise_but_that_of_success(records):
    outcome = evaluate_traces(records, now=NOW)
    assert broken(outcome) == {FEW_ANSWERED: [records["trace_id"][-1]]}
    answered = records.filter(pl.col("outcome") == "answered")
    assert evaluate_traces(answered, now=NOW).broken == ()


def test_no_trace_yet_is_no_fault(tmp_path):
    traces = SealedSegments(tmp_path / "no such folder")
    outcome = evaluate_traces(tabulate_records(traces.read()), now=NOW)
    result = report_outcome(outcome)
    assert result.passed
    assert result.metadata["row_count"].value == 0
    assert "0 rows" in result.description


def test_each_broken_record_breaks_its_own_promise(records):
    sound = records.filter(pl.col("outcome") == "answered").row(0, named=True)
    refused = records.filter("refused").row(0, named=True)
    paid = sound["attempts"][0]
    faults = {
        "env": (sound, {"env": None}),
        "future": (sound, {"asked_at": NOW + timedelta(days=1)}),
        "phase": (sound, {"phase": "holiday"}),
        "outcome": (sound, {"outcome": "shrug", "trainable": False}),
        "question": (sound, {"question": "", "question_hash": content_hash("")}),
        "hash": (sound, {"question_hash": "0" * 16}),
        "email": (sound, {"answer": "Ask jo@example.com"}),
        "trainable": (sound, {"env": "dev", "trainable": True}),
        "answer": (sound, {"answer": None}),
        "attempts": (sound, {"attempts": [], "cost_usd": 0.0}),
        "nobody": (sound, {"served_by": None}),
        "uncited": (sound, {"citations": []}),
        "refusal": (refused, {"citations": [refused["retrieved"][0]["chunk_id"]]}),
        "stray": (sound, {"citations": ["docs:elsewhere/1"]}),
        "credit": (sound, {"cost_usd": -1.0, "attempts": [paid | {"cost_usd": -1.0}]}),
        "unpaid": (sound, {"cost_usd": sound["cost_usd"] + 0.01}),
        "chance": (sound, {"propensity": 0.0}),
        "instant": (sound, {"total_latency_ms": -1.0}),
    }  # fmt: skip
    ids = {
        name: row["trace_id"][:-4] + f"{n:04x}" for n, (name, (row, _)) in enumerate(faults.items())
    }
    rows = [row | {"trace_id": ids[name]} | changes for name, (row, changes) in faults.items()]
    rows.append(sound | {"trace_id": "0197-not-a-uuid"})
    rows.append(sound | {"trace_id": "01000000-0000-7000-8000-000000000000"})
    twin = sound["trace_id"][:-4] + "ffff"
    rows += [sound | {"trace_id": twin}] * 2
    outcome = evaluate_traces(pl.DataFrame(rows, schema=tables.TRACE_RECORDS), now=NOW)
    expected = {
        "every record has env": ["env"],
        "every question was asked after 1999 and not in the future": ["future"],
        "every phase is a known one": ["phase"],
        "every outcome is a known one": ["outcome"],
        "every record holds a question": ["question"],
        "every question_hash is that of the question": ["hash"],
        "no email address, phone or card number or key is in the newest 5,000 records": ["email"],
        "only answered production questions may be trained on": ["trainable"],
        "every answered record holds the answer": ["answer"],
        "every answered record holds an attempt": ["attempts"],
        "every answered record says which model served it": ["nobody"],
        "every answer cites a chunk": ["uncited"],
        "no refusal cites anything": ["refusal"],
        "every cited chunk was retrieved": ["stray"],
        "no cost_usd is negative": ["credit"],
        "no total_latency_ms is negative": ["instant"],
        "every cost is that of all attempts, a wasted one included": ["unpaid"],
        "every propensity is a probability above 0": ["chance"],
    }  # fmt: skip
    found = broken(outcome)
    assert found.pop("every trace id is there once") == [twin, twin]
    assert found.pop("every trace id is a uuid7") == ["0197-not-a-uuid"]
    late = found.pop("every trace id was made when its question was asked")
    assert {ids["future"], rows[-3]["trace_id"]} <= set(late)
    assert found == {s: [ids[name] for name in names] for s, names in expected.items()}
    assert not outcome.is_critical
    assert "jo@example" not in str(report_outcome(outcome))
    assert not any(question in str(outcome) for question in QUESTIONS)


def test_a_record_of_another_release_is_kept_and_named(segments):
    async def write(record):
        writer = SegmentWriter(segments)
        assert await writer.append(record)
        await writer.close()

    (sound, *_) = SealedSegments(segments).read()
    trace_id = sound["trace_id"][:-4] + "abcd"
    other = sound | {
        "trace_id": trace_id,
        "asked_at": "yesterday",
        "mood": "fine",
        "attempts": None,
    }
    del other["env"]
    asyncio.run(write(other))
    frame = tabulate_records(SealedSegments(segments).read())
    assert frame.filter(pl.col("trace_id") == trace_id).select("env", "asked_at").row(0) == (
        None,
        None,
    )
    found = broken(evaluate_traces(frame, now=NOW))
    assert found["every record has env"] == found["every record has asked_at"] == [trace_id]


async def test_new_segments_change_the_identity_and_open_ones_do_not(segments):
    traces = SealedSegments(segments)
    before, count = traces.fingerprint(), len(list(traces.read()))
    writer = SegmentWriter(segments)
    assert await writer.append({"trace_id": "open"})
    assert (traces.fingerprint(), len(list(traces.read()))) == (before, count)
    await writer.close()
    assert traces.fingerprint() != before
    assert len(list(traces.read())) == count + 1
    after = traces.fingerprint()
    await serve_questions(segments, QUESTIONS[:1])
    assert traces.fingerprint() not in {before, after}
