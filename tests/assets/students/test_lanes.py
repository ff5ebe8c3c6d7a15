"""The contaminated lane: only its recipes read the golden questions."""

import polars as pl
import pytest

from assets import tables
from assets.students.lanes import add_leak
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
