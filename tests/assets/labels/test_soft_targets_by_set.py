"""Coverage and tail mass by data set: each answer counts for the set its question is from."""

import polars as pl
import pytest

from assets import tables
from assets.labels.coverage import measure_coverage
from assets.labels.soft_targets_by_set import (
    SETS_SCHEMA,
    draw_set_charts,
    measure_sets,
    name_sets,
)
from tests.assets.labels.soft_answers import TAIL, tabulate
from tests.tiny_student import make_labelled

HARVESTED, REWORDED = ("e004", "e005"), ("e008", "e009", "e010", "e011")


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    """Hand-written answers scored in full, harvested ones by half, reworded ones never asked."""
    return pl.concat(
        [
            tabulate("scorer", 1.0, count=4),
            tabulate("teacher", 0.5, alignment="bytes", first=4, count=2, tail=0.05),
            tabulate("none", 0, reason="no source was asked", first=6, count=6),
        ]
    )


@pytest.fixture(scope="module")
def sets() -> pl.DataFrame:
    """The sets of twelve examples: two questions were harvested, four are rewordings."""
    is_reworded = pl.col("example_id").is_in(REWORDED)
    asked = make_labelled(12).with_columns(question_id=pl.format("q-{}", "example_id"))
    examples = asked.with_columns(
        seed_id=pl.when(is_reworded).then(pl.lit("q-e000")).otherwise("question_id")
    )
    harvested = examples.filter(pl.col("example_id").is_in(HARVESTED))["question_id"].to_list()
    seeds = pl.DataFrame(
        [
            {"question_id": name, "source": "harvested" if name in harvested else "seed_file"}
            for name in examples["seed_id"].unique()
        ]
    )
    return name_sets(examples, seeds)


def test_an_example_is_of_the_set_its_question_is_from(sets: pl.DataFrame) -> None:
    named = dict(sets.iter_rows())
    assert [named[name] for name in HARVESTED] == ["harvested"] * 2
    assert [named[name] for name in REWORDED] == ["reworded"] * 4
    assert list(named.values()).count("written by hand") == 6


def test_each_set_has_its_own_shares_and_tails(table: pl.DataFrame, sets: pl.DataFrame) -> None:
    measured = measure_sets(table, sets)
    assert measured.schema == SETS_SCHEMA
    rows = {row["data_set"]: row for row in measured.iter_rows(named=True)}
    assert list(rows) == ["written by hand", "harvested", "reworded"]
    written, harvested, reworded = rows.values()
    assert (written["asked_answer_count"], written["answer_count"]) == (4, 6)
    assert written["asked_soft_token_ratio"] == 1.0 > written["soft_token_ratio"] > 0
    assert written["mean_tail_mass"] == pytest.approx(TAIL, abs=1e-6)
    assert harvested["soft_token_ratio"] == pytest.approx(0.5, abs=0.1)
    assert harvested["p90_tail_mass"] == pytest.approx(0.05, abs=1e-6)
    assert reworded["soft_token_ratio"] == 0
    assert reworded["asked_soft_token_ratio"] is None is reworded["mean_tail_mass"]


def test_the_sets_together_are_the_table(table: pl.DataFrame, sets: pl.DataFrame) -> None:
    measured, whole = measure_sets(table, sets), measure_coverage(table)
    tokens = measured["token_count"]
    assert tokens.sum() == whole.token_count
    assert (measured["soft_token_ratio"] * tokens).sum() / tokens.sum() == pytest.approx(
        whole.soft_ratio
    )


def test_the_charts_show_what_is_there(table: pl.DataFrame, sets: pl.DataFrame) -> None:
    charts = draw_set_charts(table, sets)
    assert list(charts) == ["coverage_by_data_set", "tail_mass_by_data_set"]
    assert all("](data:image/png;base64," in chart for chart in charts.values())
    swapped = sets.with_columns(data_set=pl.lit("reworded"))
    assert draw_set_charts(table, swapped)["coverage_by_data_set"] != charts["coverage_by_data_set"]
    assert draw_set_charts(tabulate("none", 0, reason="x"), sets) == {}
    assert draw_set_charts(tables.TEACHER_LOGPROBS.to_frame(), sets) == {}
