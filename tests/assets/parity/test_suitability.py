"""Suitability: the rules one by one, and kinds told apart on questions of two topics."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest

from assets import tables
from assets.parity.prices import StatedPrice
from assets.parity.suitability import KindMeasures, advise, gather_asked, measure_suitability
from assets.parity.worth_checks import every_question_is_of_one_kind
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
        ({"repetitive_ratio": None}, "measure_first"),
        ({"cost_ratio": None}, "measure_first"),
        ({"cost_ratio": None, "high_stakes_ratio": 0.2}, "keep_teacher"),
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
    asked = gather_asked(
        rows,
        RouterPolicy(),
        cost="paid",
        price=StatedPrice(input_usd_per_mtok=3.0, output_usd_per_mtok=15.0),
    )
    assert asked["cost_usd"].to_list() == [0.1, None, 0.1]  # what is not known is no zero
    assert asked["page"].to_list() == ["guides/setup", "index", "no page"]


def test_the_same_questions_give_the_same_table():
    labelled = pl.DataFrame(schema={"question": pl.String, "is_checkable": pl.Boolean})
    made = [
        measure_suitability(frame, labelled, source="seeds", embedder=TopicEmbedder())
        for frame in (write_asked(), write_asked().reverse())
    ]
    assert made[0].equals(made[1])
    assert set(made[0]["checkable_ratio"]) == {None}


LABELLED = pl.DataFrame(
    {
        "question": [f"{topic} label {n}" for topic in ("install", "lawsuit") for n in range(10)],
        "is_checkable": [True] * 20,
    }
)


def test_seeds_say_nothing_of_volume_and_repetition_and_the_advice_says_so():
    """Each seed stands there once, so a share of repeats would be 0 whatever users ask."""
    seeds = write_asked().unique("question").with_columns(is_high_stakes=False)
    table = measure_suitability(seeds, LABELLED, source="seeds", embedder=TopicEmbedder())
    for name in ("volume_ratio", "repetitive_ratio"):
        assert table[name].null_count() == table.height
    assert table["cost_ratio"].sum() == pytest.approx(1.0)
    known = table.filter(pl.col("labelled_count") > 0)
    assert set(known["advice"]) == {"measure_first"}
    assert set(known["reason"]) == {
        "seeds hold each question once: nobody knows how often it is asked"
    }


@pytest.mark.parametrize("cost", [None, 0.0], ids=["not stated", "stated as 0"])
def test_without_a_price_there_is_no_share_of_cost_and_no_kind_is_too_rare_to_pay(cost):
    asked = write_asked().with_columns(
        cost_usd=pl.lit(cost, dtype=pl.Float64), is_high_stakes=False
    )
    table = measure_suitability(asked, LABELLED, source="traffic", embedder=TopicEmbedder())
    assert table["cost_ratio"].null_count() == table.height
    known = table.filter(pl.col("labelled_count") > 0)
    assert set(known["advice"]) == {"measure_first"}
    assert known["reason"].str.contains("cost is not known").all()
    found = every_question_is_of_one_kind(table)
    assert not found.passed
    assert "no price above 0" in str(found.description)


def test_a_kind_of_which_one_cost_is_known_is_shared_by_what_is_known():
    costs = [0.01] + [None] * 62
    asked = write_asked().with_columns(cost_usd=pl.Series(costs, dtype=pl.Float64))
    table = measure_suitability(asked, LABELLED, source="traffic", embedder=TopicEmbedder())
    assert sorted(table["cost_ratio"].drop_nulls()) == [1.0]
    assert table["cost_ratio"].null_count() == table.height - 1
    assert table["cost_ratio"][0] == 1.0


@pytest.mark.parametrize("source", ["traffic", "seeds"])
def test_the_check_passes_on_shares_that_add_up_and_not_on_others(source):
    table = measure_suitability(write_asked(), LABELLED, source=source, embedder=TopicEmbedder())
    assert every_question_is_of_one_kind(table).passed
    torn = table.with_columns(pl.col("cost_ratio") * 0.5)
    assert not every_question_is_of_one_kind(torn).passed


def test_nothing_asked_is_an_error():
    with pytest.raises(InvalidInputError, match="serve some traffic"):
        measure_suitability(
            write_asked().clear(), write_asked(), source="seeds", embedder=TopicEmbedder()
        )
