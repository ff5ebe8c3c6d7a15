from pathlib import Path

import pytest
import yaml

from assets.students.recipe import (
    BaseRecipe,
    PromptRecipe,
    Recipe,
    SearchRecipe,
    load_recipe,
    parse_recipe,
)
from serving.errors import InvalidInputError

SHIPPED = Path(__file__).parents[3] / "config" / "recipes"


def write(tmp_path, **keys):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


def test_a_recipe_file_is_read_and_written_back(tmp_path):
    path = write(tmp_path, student="compact", rank=4, target_modules=["q_proj"], alpha=1.0)
    recipe = load_recipe(path)
    assert (recipe.rank, recipe.target_modules, recipe.alpha) == (4, ("q_proj",), 1.0)
    assert (recipe.activation, recipe.seed, recipe.temperature) == ("question", 7, 2.0)
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"lerning_rate": 1e-3}, "lerning_rate: unknown key in kind alora; legal: student, "),
        ({"activation": "source"}, "activation: Input should be 'question', 'answer' or 'all'"),
        ({"kind": "alora", "activation": "all"}, "kind alora acts from question or answer, not"),
        ({"kind": "lora", "activation": "answer"}, "kind lora acts from all, not from answer"),
        ({"kind": "adapter"}, "a kind among lora, alora, qlora, base, few_shot, prompt_optimised"),
        ({"kind": ["lora"]}, r"kind among .*found \['lora'\]"),
        ({"kind": "few_shot", "rank": 4}, "rank: unknown key in kind few_shot; legal: .*selection"),
        ({"kind": "lora", "selection": "nearest"}, "selection: unknown key in kind lora"),
        ({"kind": "base", "examples": 3}, "examples: unknown key in kind base"),
        ({"kind": "few_shot", "examples": 2, "refusals": 2}, r"refusals \(2\) must be fewer than"),
        ({"kind": "prompt_optimised", "calls": 0}, "calls: .*greater than or equal to 1"),
        ({"kind": "prompt_optimised", "instructions": [""]}, "instructions.0: "),
        ({"citation_boost_on": "tokens"}, "citation_boost_on: .*'citations' or 'placebo'"),
        ({"predicted_delta": {"Exact match": 0.1}}, "predicted_delta"),
        ({"predicted_delta": {"exact_match": float("nan")}}, "predicted_delta.exact_match: "),
        ({"alpha": 0.3, "sources": 1}, r"soft targets \(alpha 0.3\) are of a prompt with all"),
        ({"alpha": 1.0, "sources": 0}, "sources: .*greater than 0"),
        ({"alpha": 1.5}, "alpha: .*less than or equal to 1; found 1.5"),
        ({"citation_boost": 0.5}, "citation_boost: .*greater than or equal to 1"),
        ({"rank": "many"}, "rank: .*integer.*found 'many'"),
        ({"target_modules": []}, "target_modules: "),
        ({"dtype": "float16"}, "dtype: Input should be 'auto', 'bfloat16' or 'float32'"),
        ({"temperature": 0}, "temperature: "),
        ({"student": ""}, "student: "),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_file(tmp_path, keys, found):
    path = write(tmp_path, **({"student": "compact"} | keys))
    with pytest.raises(InvalidInputError, match=found) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["- a list", "a: [", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=r"mine\.yaml"):
        load_recipe(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="config/recipes"):
        load_recipe(tmp_path / "none.yaml")


def test_the_fingerprint_is_of_what_changes_the_adapter():
    recipe = Recipe(student="compact")
    assert recipe.model_copy(update={"description": "why"}).fingerprint == recipe.fingerprint
    assert recipe.model_copy(update={"seed": 8}).fingerprint != recipe.fingerprint


@pytest.mark.parametrize(
    ("keys", "model", "kind", "activation"),
    [
        ({}, Recipe, "alora", "question"),
        ({"activation": "all"}, Recipe, "lora", "all"),
        ({"activation": "answer"}, Recipe, "alora", "answer"),
        ({"kind": "lora"}, Recipe, "lora", "all"),
        ({"kind": "qlora"}, Recipe, "qlora", "all"),
        ({"kind": "qlora", "activation": "question"}, Recipe, "qlora", "question"),
        ({"kind": "base"}, BaseRecipe, "base", None),
        ({"kind": "few_shot", "selection": "nearest"}, PromptRecipe, "few_shot", None),
        ({"kind": "prompt_optimised"}, SearchRecipe, "prompt_optimised", None),
    ],
)
def test_the_kind_chooses_the_keys_and_where_an_adapter_acts(keys, model, kind, activation):
    recipe = parse_recipe({"student": "compact"} | keys, source="here")
    assert type(recipe) is model
    assert recipe.kind == kind
    assert getattr(recipe, "activation", None) == activation
    assert parse_recipe(yaml.safe_load(recipe.to_yaml()), source="here") == recipe


def test_the_default_recipes_fingerprint_is_what_it_was():
    """Another one would make every student again: no refactoring may change it."""
    assert load_recipe(SHIPPED / "compact.yaml").fingerprint == "c68dc2cc8928e5ed"


def test_a_prediction_is_no_part_of_the_fingerprint():
    plain = parse_recipe({"student": "compact", "kind": "base"}, source="here")
    words = {"predicted_delta": {"exact_match": -0.1}, "compared_with": "compact"}
    assert parse_recipe(plain.model_dump() | words, source="here").fingerprint == plain.fingerprint


def test_every_shipped_recipe_says_its_kind_and_every_experiment_what_it_expects():
    files = {path.stem: path for path in SHIPPED.glob("*.yaml")}
    recipes = {name: load_recipe(path) for name, path in files.items()}
    for name, path in files.items():
        assert "kind" in yaml.safe_load(path.read_text()), name
        assert recipes[name].compared_with in {None, *files}, name
        assert bool(recipes[name].predicted_delta) == bool(recipes[name].compared_with), name
    assert {recipe.kind for recipe in recipes.values()} == {
        "lora", "alora", "qlora", "base", "few_shot", "prompt_optimised",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("hard_only", "alpha", 1.0),
        ("soft_only", "alpha", 0.0),
        ("no_citation_boost", "citation_boost", 1.0),
        ("placebo_boost", "citation_boost_on", "placebo"),
    ],
)
def test_an_experiment_changes_one_key(name, key, value):
    recipe = load_recipe(SHIPPED / f"{name}.yaml")
    against = load_recipe(SHIPPED / f"{recipe.compared_with}.yaml")
    assert getattr(recipe, key) == value
    assert recipe.model_copy(update={key: getattr(against, key)}).fingerprint == against.fingerprint
