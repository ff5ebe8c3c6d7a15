"""Curated production questions enter the chain like seeds, and leave it with their decision."""

import os
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
import yaml

from assets import tables
from orchestration.config import read_config
from orchestration.running import run_chain
from serving.home import Home
from serving.models.protocols import NoProgress
from tests.product import write_product

pytestmark = pytest.mark.real_models

STAGES = ["corpus", "seeds", "eval_set", "paraphrases"]


def decide(trace: str, text: str, **change) -> dict:
    return {
        "text": text,
        "source_trace_id": trace,
        "env": "prod",
        "decision": "accepted",
        "reviewer": "ada",
        "reviewer_kind": "human",
        "reason_code": "recurring",
        "rubric_version": "1",
        "decided_at": datetime(2026, 5, 1, tzinfo=UTC),
        "trainable": True,
    } | change


@pytest.fixture
def product(tmp_path):
    path = write_product(tmp_path)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values["seeds"]["harvested"] = "harvested.parquet"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    before = dict(os.environ)
    yield read_config(path), tmp_path / "harvested.parquet"
    os.environ.clear()
    os.environ.update(before)


def write(path, *rows: dict) -> None:
    pl.DataFrame(list(rows), schema=tables.HARVESTED_QUESTIONS).write_parquet(path)


def run(config) -> list[str]:
    outcome = run_chain(config, progress=NoProgress(), recipe="tiny", select=STAGES)
    assert outcome.succeeded, outcome.failure
    return [asset.key for asset in outcome.planned]


def read(config, key: str) -> pl.DataFrame:
    return pl.read_parquet(Home(config.home).table(key))


def find_files(config, text: str) -> list[Path]:
    """Return the tables a question stands in, and the stores that keep what was made of it."""
    tables_with_it = [
        file
        for file in config.home.rglob("*.parquet")
        if file.is_relative_to(Home(config.home).lake)
        and any(text in column for column in pl.read_parquet(file).select(pl.col(pl.String)))
    ]
    stores = list(config.home.rglob("*.sqlite*"))
    assert stores
    return tables_with_it + stores


def test_harvested_questions_are_clustered_guarded_and_taken_back(product):
    config, path = product
    accepted = decide("t1", "is it dangerous to open the lid while it is hot")
    write(
        path,
        accepted,
        decide("t2", "HOW hot does the kiln get?"),  # a hand-written seed already
        decide("t3", "from staging", env="staging"),
        decide("t4", "not trainable", trainable=False),
        decide("t5", "not decided", decision=None, reviewer=None, decided_at=None),
        decide("t6", "Display says E4, which part do I swap?"),  # a golden case
    )
    run(config)
    seeds = read(config, "seeds/seed_questions")
    harvested = seeds.filter(pl.col("source") == "harvested")
    assert dict(harvested.select("source_trace_id", "text").iter_rows()) == {
        "t1": accepted["text"],
        "t6": "Display says E4, which part do I swap?",
    }
    assert set(read(config, "paraphrases/seed_clusters")["question_id"]) == set(
        seeds["question_id"]
    )
    guarded = read(config, "paraphrases/guarded_questions")
    verdicts = dict(guarded.select("text", "verdict").iter_rows())
    assert verdicts[accepted["text"]] == "kept"
    assert verdicts["Display says E4, which part do I swap?"] == "rejected"

    holding = find_files(config, accepted["text"])
    assert {"seed_questions.parquet", "guarded_questions.parquet"} <= {f.name for f in holding}
    assert [str(file) for file in holding if file.stat().st_mode & 0o077] == []

    assert run(config) == []
    later = datetime(2026, 6, 1, tzinfo=UTC)
    write(path, accepted, decide("t1", accepted["text"], decision="rejected", decided_at=later))
    assert run(config)[0] == "seeds/seed_questions"
    assert read(config, "seeds/seed_questions")["source"].unique().to_list() == ["handwritten"]
    assert accepted["text"] not in read(config, "paraphrases/guarded_questions")["text"].to_list()


def test_a_harvest_of_another_shape_stops_the_run_and_names_the_columns(product):
    config, path = product
    pl.DataFrame({"text": ["why"], "trace": ["t1"]}).write_parquet(path)
    outcome = run_chain(config, progress=NoProgress(), recipe="tiny", select=["seeds"])
    assert not outcome.succeeded
    assert "decision is missing" in outcome.failure
    assert "trace is not declared" in outcome.failure


def test_a_forced_run_keeps_when_each_seed_was_added(product):
    config, path = product
    write(path)

    def force() -> pl.DataFrame:
        outcome = run_chain(
            config, progress=NoProgress(), recipe="tiny", select=["seeds"], force=True
        )
        assert outcome.succeeded, outcome.failure
        return read(config, "seeds/seed_questions")

    first = force()
    assert force().equals(first)
