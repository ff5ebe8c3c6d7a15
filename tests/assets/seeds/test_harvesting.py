"""Harvested seeds: nothing enters without a standing decision, and nothing twice."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from assets import tables
from assets.seeds.checks import (
    at_most_three_harvested_seeds_share_a_matter,
    every_harvested_seed_was_admitted,
)
from assets.seeds.harvesting import decide_admission, find_unadmitted, harvest_seeds
from serving.hashing import content_hash

START = datetime(2026, 5, 1, tzinfo=UTC)
ADMISSIBLE = {
    "text": "how do I restart the kiln",
    "source_trace_id": "t1",
    "env": "prod",
    "decision": "accepted",
    "reviewer": "ada",
    "reviewer_kind": "human",
    "reason_code": "recurring",
    "rubric_version": "1",
    "decided_at": START,
    "trainable": True,
}


def harvest(*changes: dict) -> pl.DataFrame:
    rows = [
        ADMISSIBLE | {"source_trace_id": f"t{n}", "decided_at": START + timedelta(hours=n)} | change
        for n, change in enumerate(changes)
    ]
    return pl.DataFrame(rows, schema=tables.HARVESTED_QUESTIONS)


def embed_by_hash(texts):
    """One random direction per text, but for texts that share their first word."""
    return np.stack(
        [
            (lambda v: v / np.linalg.norm(v))(
                np.random.default_rng(sum(text.split()[0].encode())).normal(size=64)
            )
            for text in texts
        ]
    ).astype(np.float32)


def grow(frame: pl.DataFrame, known=()):
    return harvest_seeds(frame, known_texts=list(known), embed=embed_by_hash)


def test_an_accepted_question_becomes_a_seed_with_its_trace():
    made = grow(harvest({"text": "  how do I\nrestart the kiln "}))
    (row,) = made.seeds.to_dicts()
    assert made.seeds.schema == tables.SEED_QUESTIONS
    assert (row["text"], row["source"]) == ("how do I restart the kiln", "harvested")
    assert (row["source_trace_id"], row["added_at"]) == ("t0", START)
    assert made.dropped_by_reason == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"decision": None}, "not_accepted"),
        ({"decision": "rejected"}, "not_accepted"),
        ({"decision": "Accepted"}, "not_accepted"),
        ({"decided_at": None}, "undated"),
        ({"reviewer": None}, "no_reviewer"),
        ({"reviewer": "  "}, "no_reviewer"),
        ({"env": "staging"}, "not_production"),
        ({"env": None}, "not_production"),
        ({"trainable": False}, "not_trainable"),
        ({"trainable": None}, "not_trainable"),
        ({"source_trace_id": ""}, "no_trace"),
        ({"source_trace_id": None}, "no_trace"),
        ({"text": " \n"}, "not_askable"),
        ({"text": None}, "not_askable"),
        ({"text": "\u200b\u00ad"}, "not_askable"),
        ({"text": "\ufdfa" * 300}, "not_askable"),  # one character, eighteen once normalised
        ({"text": "x" * 4001}, "not_askable"),
    ],
)
def test_what_lacks_a_term_of_admission_is_dropped_under_its_reason(change, reason):
    made = grow(harvest(change, {"text": "why is the kiln cold"}))
    assert made.seeds["text"].to_list() == ["why is the kiln cold"]
    assert made.dropped_by_reason == {reason: 1}


def test_a_later_decision_takes_an_earlier_one_back_whatever_the_order_of_rows():
    frame = harvest(
        {"source_trace_id": "t", "decision": "rejected", "decided_at": START + timedelta(days=1)},
        {"source_trace_id": "t", "decision": "accepted", "decided_at": START},
    )
    assert grow(frame).seeds.is_empty()
    assert decide_admission(frame)["reason"].to_list() == ["not_accepted"]
    assert grow(frame).dropped_by_reason == {"not_accepted": 1, "superseded": 1}


def test_a_text_that_is_a_seed_already_is_dropped_and_counted():
    made = grow(
        harvest({"text": "Why one?"}, {"text": "when two"}, {"text": "When, two!"}), ["why ONE"]
    )
    assert made.seeds["text"].to_list() == ["when two"]
    assert made.dropped_by_reason == {"same_text": 2}


def test_a_near_duplicate_of_a_seed_or_of_an_earlier_one_is_dropped():
    frame = harvest({"text": "kiln cold"}, {"text": "glaze thin"}, {"text": "glaze too thin"})
    made = grow(frame, known=["kiln is cold"])
    assert made.seeds["text"].to_list() == ["glaze thin"]
    assert made.dropped_by_reason == {"near_duplicate": 2}


def test_the_id_is_the_texts_so_the_split_stays_when_the_trace_changes():
    first = grow(harvest({"source_trace_id": "a"})).seeds["question_id"].item()
    assert grow(harvest({"source_trace_id": "b"})).seeds["question_id"].item() == first


def test_a_seed_is_the_question_as_production_asks_it_and_invisible_characters_give_no_id():
    veiled = grow(harvest({"text": "re\u200bset the pass\u00adword\u2026"}))
    plain = grow(harvest({"text": "reset the password\u2026"}))
    assert veiled.seeds["text"].to_list() == ["reset the password..."]
    assert veiled.seeds["question_id"].to_list() == plain.seeds["question_id"].to_list()
    written = content_hash("harvested", "reset the password\u2026")  # as before it was normalised
    assert plain.seeds["question_id"].to_list() == [written]


def test_nothing_harvested_embeds_nothing():
    def refuse(texts):
        raise AssertionError(texts)

    made = harvest_seeds(tables.HARVESTED_QUESTIONS.to_frame(), known_texts=["a"], embed=refuse)
    assert made.seeds.is_empty()


class Harvested:
    def __init__(self, frame: pl.DataFrame) -> None:
        self.frame = frame

    def fingerprint(self) -> str:
        return "test"

    def read(self) -> pl.DataFrame:
        return self.frame


def test_the_check_finds_a_seed_whose_decision_was_taken_back():
    frame = harvest({"text": "why one"}, {"text": "how two"})
    seeds = grow(frame).seeds
    assert find_unadmitted(seeds, frame) == []
    taken_back = harvest({"text": "why one"}, {"text": "how two", "decision": "rejected"})
    result = every_harvested_seed_was_admitted(seeds, harvested=Harvested(taken_back))
    assert not result.passed
    assert result.metadata["unadmitted_ids"].value == [seeds["question_id"][1]]
    assert every_harvested_seed_was_admitted(seeds, harvested=Harvested(frame)).passed


def test_a_seed_planted_under_an_admitted_trace_with_another_text_is_found():
    frame = harvest({"text": "why one"})
    planted = grow(frame).seeds.with_columns(text=pl.lit("something else"))
    assert find_unadmitted(planted, frame) == planted["question_id"].to_list()


def test_a_fourth_seed_about_one_matter_in_the_table_fails_its_check():
    """However it came there: the harvest itself drops it."""
    directions = np.eye(8, dtype=np.float32)  # one for each number of words
    by_texts = SimpleNamespace(embed=lambda texts: directions[[len(t.split()) for t in texts]])
    made = grow(harvest(*({"text": f"{name} is lit"} for name in ("kiln", "oven", "stove"))))
    check = at_most_three_harvested_seeds_share_a_matter
    assert check(made.seeds, embedder=by_texts).passed
    fourth = made.seeds.tail(1).with_columns(question_id=pl.lit("flood"), text=pl.lit("hob is lit"))
    told = check(pl.concat([made.seeds, fourth]), embedder=by_texts)
    assert not told.passed
    assert told.metadata["crowded_ids"].value == ["flood"]
    assert check(made.seeds.clear(), embedder=by_texts).passed
