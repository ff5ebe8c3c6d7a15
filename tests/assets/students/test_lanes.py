"""The contaminated lane: only its recipes read the golden questions."""

import polars as pl
import pytest

from assets import tables
from assets.students.lanes import add_leak, cap_harvested
from assets.students.recipe import parse_recipe
from serving.errors import InvalidInputError

CLEAN = pl.DataFrame([{"example_id": "a"}], schema=tables.LABELLED_EXAMPLES)
LEAKED = pl.DataFrame([{"example_id": "g"}], schema=tables.LABELLED_EXAMPLES)


def test_a_contaminated_recipe_draws_from_both():
    assert add_leak(CLEAN, LEAKED)["example_id"].to_list() == ["a", "g"]


def test_a_contaminated_recipe_without_its_table_says_how_to_make_it():
    with pytest.raises(InvalidInputError, match="--select labels/contaminated_examples"):
        add_leak(CLEAN, tables.LABELLED_EXAMPLES.to_frame())


def test_the_lane_is_another_student_and_the_clean_one_is_the_same_as_ever():
    recipes = [
        parse_recipe({"student": "tiny", **lane}, source="test")
        for lane in ({}, {"lane": "clean"}, {"lane": "contaminated"})
    ]
    plain, clean, contaminated = (recipe.fingerprint for recipe in recipes)
    assert plain == clean != contaminated


def write_examples(own: int, harvested: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    sources = ["handwritten"] * own + ["harvested"] * harvested
    seeds = [{"question_id": f"s{n}", "source": source} for n, source in enumerate(sources)]
    rows = [
        {"example_id": f"e{n}", "seed_id": f"s{n}", "split": "train"} for n in range(len(sources))
    ]
    held_out = [{"example_id": "v", "seed_id": f"s{own}", "split": "validation"}]
    labelled = pl.DataFrame(rows + held_out, schema=tables.LABELLED_EXAMPLES)
    return labelled, pl.DataFrame(seeds, schema=tables.SEED_QUESTIONS)


@pytest.mark.parametrize(
    ("own", "harvested", "ratio", "kept"),
    [
        (30, 10, 0.5, 10),
        (30, 100, 0.5, 30),
        (30, 100, 0.25, 10),
        (30, 9, 0.0, 0),
        (0, 9, 1.0, 9),
        (0, 9, 0.5, 9),
    ],
)
def test_production_fills_no_more_than_its_share(own, harvested, ratio, kept):
    labelled, seeds = write_examples(own, harvested)
    capped = cap_harvested(labelled, seeds, maximum_ratio=ratio, seed=7)
    assert capped.filter(pl.col("split") == "train").height == own + kept
    assert capped.filter(pl.col("split") == "validation").height == 1


def test_one_more_example_reshuffles_none():
    small, seeds = write_examples(30, 100)
    large, more = write_examples(30, 101)
    before = set(cap_harvested(small, seeds, maximum_ratio=0.5, seed=7)["example_id"])
    after = set(cap_harvested(large, more, maximum_ratio=0.5, seed=7)["example_id"])
    assert len(before ^ after) <= 2
