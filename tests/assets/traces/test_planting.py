"""Planted errors among served traffic: shown as any other, caught or not, trained on never."""

import json
from datetime import timedelta

import polars as pl
import pytest
from typer.testing import CliRunner

from assets import tables
from assets.monitoring.curation import measure_curation
from assets.traces.admission import admit_decisions
from assets.traces.checks import planted_errors_are_caught
from assets.traces.deciding import (
    Reviewer,
    decide_trace,
    find_open_escalation,
    find_trace,
    open_decisions,
)
from assets.traces.escalating import find_escalations
from assets.traces.hours import find_folder
from assets.traces.planting import audit_plants, open_plants, plant_errors, scan_reviewed
from assets.traces.requesting import DeletionRequest, open_deletions, request_deletion
from orchestration import cli
from orchestration.forgetting import hash_training_set
from serving.errors import InvalidInputError
from serving.home import Home
from tests.assets.monitoring.judging import judge
from tests.assets.monitoring.weeks import START, WEEK, serve_week

ADA = Reviewer(name="ada", kind="human")
LATER = START + WEEK


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Home:
    """A served week with ten planted errors; ada catches eight."""
    home = Home(tmp_path_factory.mktemp("planting") / "home")
    serve_week(home.root, START, seed=5, asks_per_day=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERSTUDY_HOME", str(home.root))
        done = CliRunner().invoke(cli.app, ["curate", "plant", "--count", "10"])
    assert done.exit_code == 0, done.output
    return home


def decide(home: Home, trace_id: str, verdict: str) -> None:
    folder, journal = find_folder(home), open_decisions(home)
    journal.append(decide_trace(
        find_trace(folder, trace_id), verdict=verdict, reviewer=ADA, decided_at=LATER,
        reason_code="wrong_answer" if verdict == "rejected" else "recurring",
        shown_at=LATER - timedelta(seconds=20),
        escalation_id=find_open_escalation(folder, journal.read(), trace_id),
    ))  # fmt: skip


def audit(home: Home) -> dict:
    plants, decisions = open_plants(find_folder(home)).read(), open_decisions(home).read()
    blank = [tables.BY_KEY[key].to_frame() for key in
             (("seeds", "seed_questions"), ("traces", "admissions"))]  # fmt: skip
    asked = pl.DataFrame(
        schema={"trace_id": pl.String, "env": pl.String, "question_hash": pl.String}
    )
    found = measure_curation(*blank, decisions, tables.ESCALATIONS.to_frame(), asked, plants)
    return judge("curation_audit", [m for m in found if m.metric == "planted_errors_caught"])


def test_planted_errors_measure_who_reviews(home, monkeypatch):
    folder = find_folder(home)
    plants = open_plants(folder).read()
    monkeypatch.setenv("UNDERSTUDY_HOME", str(home.root))
    listing = ["curate", "list", "--escalations", "--limit", "500", "--json"]
    listed = json.loads(CliRunner().invoke(cli.app, listing).stdout)
    assert {*plants["trace_id"]} <= {row["trace_id"] for row in listed}
    assert all(row["question"] for row in listed)  # nothing tells a planted one from the others
    queue = find_escalations(scan_reviewed(folder), open_decisions(home).read())
    waiting = queue.filter(pl.col("trace_id").is_in(plants["trace_id"].to_list()))
    assert waiting.height == 10
    assert set(waiting["reason"]) == {"high_stakes"}
    for row in plants.to_dicts():
        shown, asked, answered = (
            find_trace(folder, row[name])
            for name in ("trace_id", "question_trace_id", "answer_trace_id")
        )
        assert shown["question"] == asked["question"]
        assert shown["answer"] == answered["answer"]
        pages = [{hit["chunk_id"].rsplit("/", 1)[0] for hit in t["retrieved"]}
                 for t in (asked, answered)]  # fmt: skip
        assert pages[0].isdisjoint(pages[1])
        assert len(row["trace_id"]) == len(row["question_trace_id"])
    assert audit(home)["status"] == "inconclusive"
    ids = plants["trace_id"].to_list()
    for trace_id in ids[:8]:
        decide(home, trace_id, "rejected")
    assert audit(home)["status"] == "ok"

    def check():
        return planted_errors_are_caught(queue, open_decisions(home).read(), home)

    assert check().passed
    for trace_id in ids[8:]:
        decide(home, trace_id, "accepted")
    result = check()
    assert not result.passed
    assert result.severity.value == "WARN"
    assert result.metadata["missed"].value == sorted(ids[8:])
    row = audit(home)
    assert (row["status"], row["number"]) == ("alarm", pytest.approx(0.8))
    admitted = admit_decisions(
        open_decisions(home).read(), open_deletions(home).read(), handwritten_count=5000
    )
    assert set(admitted.filter(pl.col("decision") == "accepted")["reason"]) == {"not_trainable"}
    first = plants.row(0, named=True)
    request = DeletionRequest(
        kind="trace", value=first["question_trace_id"], reason="asked", requested_by="ada",
        requested_at=LATER,
    )  # fmt: skip
    request_deletion(home, request, hash_training_set=hash_training_set)
    quoted = open_decisions(home).read().filter(trace_id=first["trace_id"])["question"].to_list()
    assert quoted == [None]
    assert audit_plants(plants, open_decisions(home).read()).decided_count == 10


def test_more_errors_than_the_traffic_gives_are_refused(home):
    with pytest.raises(InvalidInputError, match="planting 100000 errors"):
        plant_errors(find_folder(home), 100_000, planted_at=LATER)
