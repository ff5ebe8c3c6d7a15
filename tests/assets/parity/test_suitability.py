"""Suitability: the rules one by one, and kinds told apart on questions of two topics."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest

from assets import tables
from assets.parity.suitability import KindMeasures, advise, gather_asked, measure_suitability
from serving.errors import InvalidInputError
from serving.pipeline.router import RouterPolicy
from tests.counting_embedder import CountingEmbedder

GOOD = {
    "cost_ratio": 0.3,
    "repetitive_ratio": 0.6,
    "checkable_ratio": 0.95,
    "high_stakes_ratio": 0.0,
}


class TopicEmbedder(CountingEmbedder):
    """Questions with the same first word are nearly the same question."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        topics = super().embed([text.split()[0] for text in texts])
        rows = topics + 0.05 * super().embed(texts)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("changed", "advice"),
    [
        ({}, "distil"),
        ({"high_stakes_ratio": 0.2}, "keep_teacher"),
        ({"checkable_ratio": None}, "measure_first"),
        ({"checkable_ratio": 0.4}, "keep_teacher"),
        ({"checkable_ratio": 0.7}, "measure_first"),
        ({"cost_ratio": 0.01}, "keep_teacher"),
        ({"repetitive_ratio": 0.1}, "measure_first"),
    ],
)
def test_each_rule_decides(changed, advice):
    found, reason = advise(KindMeasures(**{**GOOD, **changed}))
    assert found == advice
    assert reason


def write_asked() -> pl.DataFrame:
    frequent = [f"install step {number}" for number in range(30)]
    rare = [f"lawsuit {number}" for number in range(3)]
    return pl.DataFrame(
        {
            "question": [*frequent, *frequent, *rare],
            "page": ["guides/install"] * 60 + ["legal/lawsuits"] * 3,
            "cost_usd": [0.01] * 63,
            "is_high_stakes": [False] * 60 + [True] * 3,
        }
    )


def test_kinds_are_told_apart_and_measured():
    labelled = pl.DataFrame(
        {
            "question": [f"install label {n}" for n in range(10)],
            "is_checkable": [True] * 9 + [False],
        }
    )
    table = measure_suitability(write_asked(), labelled, source="traffic", embedder=TopicEmbedder())
    assert table["question_count"].sum() == 63
    assert table["cost_ratio"].sum() == pytest.approx(1.0)
    assert table["cost_ratio"].is_sorted(descending=True)
    by_topic = table.with_columns(topic=pl.col("kind").str.split(" ").list.first())
    stakes = by_topic.filter(topic="legal/lawsuits")
    assert set(stakes["advice"]) == {"keep_teacher"}
    frequent = by_topic.filter(pl.col("topic") == "guides/install", pl.col("labelled_count") > 0)
    assert not frequent.is_empty()
    assert (frequent["repetitive_ratio"] >= 0.5).all()
    assert by_topic["labelled_count"].sum() == 10


def test_no_word_of_a_user_stands_in_a_table_that_outlives_its_deletion():
    labelled = pl.DataFrame(schema={"question": pl.String, "is_checkable": pl.Boolean})
    table = measure_suitability(write_asked(), labelled, source="traffic", embedder=TopicEmbedder())
    assert table["kind"].is_unique().all()
    text = table.write_csv()
    assert not [question for question in write_asked()["question"] if question in text]


def test_a_question_is_about_the_page_that_its_answer_cites_else_the_best_one_found():
    found = {"content_hash": "h", "score": 0.9}
    rows = pl.DataFrame(
        {
            "question": ["a", "b", "c"],
            "citations": [["docs:guides/setup/3"], [], []],
            "retrieved": [[{"chunk_id": "docs:index/1", **found}]] * 2 + [[]],
            "paid": [0.1, None, 0.1],
        },
        schema_overrides={"citations": tables.TEXTS, "retrieved": tables.RETRIEVED},
    )
    asked = gather_asked(rows, RouterPolicy(), cost="paid")
    assert asked["page"].to_list() == ["guides/setup", "index", "no page"]


def test_the_same_questions_give_the_same_table():
    labelled = pl.DataFrame(schema={"question": pl.String, "is_checkable": pl.Boolean})
    made = [
        measure_suitability(frame, labelled, source="seeds", embedder=TopicEmbedder())
        for frame in (write_asked(), write_asked().reverse())
    ]
    assert made[0].equals(made[1])
    assert set(made[0]["checkable_ratio"]) == {None}


def test_nothing_asked_is_an_error():
    with pytest.raises(InvalidInputError, match="serve some traffic"):
        measure_suitability(
            write_asked().clear(), write_asked(), source="seeds", embedder=TopicEmbedder()
        )
