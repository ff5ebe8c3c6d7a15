import pytest
import yaml

from assets.students.recipe import Recipe, load_recipe
from serving.errors import InvalidInputError


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
        ({"lerning_rate": 1e-3}, "lerning_rate: unknown key; legal: student, "),
        ({"activation": "answer"}, "activation: Input should be 'question' or 'all'"),
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
