"""Skills in the config: whose recipe, which pages, and what is refused before anything runs."""

from pathlib import Path

import pytest

from assets.releases.skills import SkillTerms
from orchestration.bindings import Bindings
from orchestration.config import Config
from orchestration.definitions import fingerprint_stage
from serving.errors import InvalidInputError
from serving.models.protocols import NoProgress
from tests.orchestration.products import read_product

STUDENTS = "  compact: {base_model: some/base, revision: 0123abc}\n"
RECIPES = {
    "compact": "",
    "glaze": "",
    "leaked": "lane: contaminated\n",
    "shown": "kind: few_shot\n",
}


def read(folder: Path, skills: str = "") -> Config:
    rest = STUDENTS + (f"releases:\n  skills:\n{skills}" if skills else "")
    recipes = {name: f"student: compact\n{more}" for name, more in RECIPES.items()}
    return read_product(folder, rest, recipes=recipes)


def test_the_skills_of_the_config_are_terms_of_the_release(tmp_path):
    skills = (
        "    glazing: {adapter: glaze, pages: [guides/glazing]}\n"
        "    safety: {adapter: shown, high_stakes: true}\n"
    )
    bindings = Bindings(read(tmp_path, skills), NoProgress())
    assert bindings.release_terms.skills == {
        "glazing": SkillTerms(recipe="glaze", pages=("guides/glazing",)),
        "safety": SkillTerms(recipe="shown", high_stakes=True),
    }


def test_there_are_none_by_default_and_one_makes_releases_stale_alone(tmp_path):
    plain = read(tmp_path)
    assert Bindings(plain, NoProgress()).release_terms.skills == {}
    skilled = read(tmp_path, "    glazing: {adapter: glaze}\n")
    stages = ("students", "parity", "releases")
    assert [fingerprint_stage(s, plain) == fingerprint_stage(s, skilled) for s in stages] == [
        True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("skills", "told"),
    [
        ("    a: {adapter: glaze, page: [x]}\n", r"skills\.a\.page \(line 12\): unknown key; legal "
         "here: adapter, high_stakes, pages"),
        ("    a: {pages: [x]}\n", r"releases\.skills\.a\.adapter \(line 12\): missing"),
        ("    'a b': {adapter: glaze}\n", r"releases\.skills\.a b .*should match pattern"),
        ("    a: {adapter: glaze, pages: [x/, y]}\n    b: {adapter: glaze, pages: [/x]}\n",
         r"releases \(line 10\): the page x is of a and of b"),
        ("    a: {adapter: glaze, pages: [/]}\n", r"a page of the skill a is empty"),
    ],
)  # fmt: skip
def test_what_serving_would_refuse_is_refused_by_key_and_line(tmp_path, skills, told):
    with pytest.raises(InvalidInputError, match=told):
        read(tmp_path, skills)


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("glze", "which is no recipe"),
        ("compact", "which is the default recipe"),
        ("leaked", "which is of the contaminated lane"),
    ],
)
def test_a_recipe_that_cannot_serve_a_skill_is_refused_before_anything_runs(tmp_path, recipe, told):
    bindings = Bindings(read(tmp_path, f"    a: {{adapter: {recipe}}}\n"), NoProgress())
    with pytest.raises(InvalidInputError, match=rf"skill a.*glaze, shown.*{recipe}, {told}"):
        bindings.to_resources()
