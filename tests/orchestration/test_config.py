"""The config file: what is wrong is said by key, value, legal values and line."""

from pathlib import Path

import pytest

from orchestration.bindings import Bindings
from orchestration.config import load_config, read_config, read_secret
from orchestration.definitions import fingerprint_stage
from serving.errors import InvalidInputError

GOOD = """\
home: ./made
product:
  name: mine
  corpus: {path: pages}
seeds: {path: seeds.jsonl}
eval: {golden: golden.jsonl}
teacher: {model: extractive-v1, license: MIT, trainable: true}
judge: {model: extractive-judge-v1, epoch: "2026-11"}
students:
  compact: {base_model: some/base, revision: 0123abc}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "product.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problem(folder: Path, text: str) -> str:
    with pytest.raises(InvalidInputError) as error:
        read_config(write(folder, text))
    return str(error.value)


def test_paths_are_relative_to_the_file(tmp_path):
    config = read_config(write(tmp_path, GOOD))
    assert config.home == tmp_path / "made"
    assert config.product.corpus.path == tmp_path / "pages"
    assert config.seeds.path == tmp_path / "seeds.jsonl"
    assert config.eval.golden == tmp_path / "golden.jsonl"


def test_pages_can_be_left_out(tmp_path):
    assert read_config(write(tmp_path, GOOD)).product.corpus.exclude == ()
    text = GOOD.replace("{path: pages}", '{path: pages, exclude: ["drafts/**"]}')
    config = read_config(write(tmp_path, text))
    assert config.product.corpus.exclude == ("drafts/**",)
    assert Bindings(config, lambda _: None).corpus.exclude == ("drafts/**",)
    assert fingerprint_stage("corpus", config) != fingerprint_stage(
        "corpus", read_config(write(tmp_path, GOOD))
    )


def test_the_environment_chooses_file_and_home(tmp_path):
    path = write(tmp_path, GOOD)
    config = load_config({"UNDERSTUDY_CONFIG": str(path), "UNDERSTUDY_HOME": str(tmp_path / "h")})
    assert config.source == path
    assert config.home == tmp_path / "h"


def test_the_committed_default_is_valid():
    config = load_config({})
    assert config.teacher.provider == "extractive"
    assert config.home.name == ".understudy"
    assert config.home.parent == Path(__file__).resolve().parents[2]


def test_an_unknown_key_names_the_key_its_line_and_the_legal_keys(tmp_path):
    text = problem(
        tmp_path, GOOD.replace("seeds: {path: seeds.jsonl}", "seeds:\n  pth: seeds.jsonl")
    )
    assert "seeds.pth (line 6): unknown key" in text
    assert "paraphrases_per_medoid" in text
    assert "seeds.path" in text
    assert "missing" in text


def test_a_misspelt_section_names_the_sections_that_exist(tmp_path):
    text = problem(tmp_path, GOOD + "routr: {}\n")
    assert "routr (line 11): unknown key" in text
    assert "router" in text


def test_a_wrong_value_is_shown(tmp_path):
    text = problem(tmp_path, GOOD + "router: {min_retrieval_score: 1.5}\n")
    assert "router.min_retrieval_score (line 11)" in text
    assert "found 1.5" in text


@pytest.mark.parametrize("alias", ["latest", "gpt-5-latest", "main"])
def test_aliases_are_refused_where_a_snapshot_is_meant(tmp_path, alias):
    text = problem(tmp_path, GOOD.replace("extractive-v1", alias))
    assert "teacher.model" in text
    assert "alias" in text


def test_broken_yaml_names_the_line(tmp_path):
    text = problem(tmp_path, "product:\n  name: [unclosed\nseeds: 1\n")
    assert "line 3" in text or "line 2" in text


def test_a_rule_over_several_sections_does_not_repeat_the_file(tmp_path):
    found = problem(tmp_path, GOOD + "releases: {tiers: [compact, lora]}\n")
    assert "must end with the default_recipe compact" in found
    assert "{'" not in found
    assert len(found) < 600


def test_a_missing_file_says_which_variable_to_set(tmp_path):
    with pytest.raises(InvalidInputError, match="UNDERSTUDY_CONFIG"):
        read_config(tmp_path / "none.yaml")


def test_a_named_secret_must_be_set_and_is_never_in_the_message():
    with pytest.raises(InvalidInputError, match=r"\$TEACHER_KEY"):
        read_secret("TEACHER_KEY", {})
    assert read_secret("TEACHER_KEY", {"TEACHER_KEY": "s3cret"}) == "s3cret"
    assert read_secret(None, {}) is None


@pytest.mark.parametrize(
    "line",
    [
        "api_key_env: sk-live-1234567890",
        "base_url: https://user:sk-live-1234567890@host/v1",
        "base_url: https://host/v1?key=sk-live-1234567890",
        "base_url: sk-live-1234567890",
    ],
)
def test_a_secret_pasted_into_the_config_is_refused_and_not_repeated(tmp_path, line):
    key = line.split(":")[0]
    quoted = f'{key}: "{line.split(": ", 1)[1]}"'
    text = problem(tmp_path, GOOD.replace("trainable: true", f"trainable: true, {quoted}"))
    assert f"teacher.{key} (line 7)" in text
    assert "sk-live" not in text


def test_a_secret_beside_another_mistake_is_not_repeated(tmp_path):
    text = problem(
        tmp_path,
        GOOD.replace("trainable: true", "trainable: true, provider: openai, api_key_env: SK_LIVE"),
    )
    assert "base_url" in text
    assert "SK_LIVE" not in text


def test_a_home_that_is_no_local_folder_is_refused(tmp_path):
    assert "home (line 1): must be a local folder" in problem(
        tmp_path, GOOD.replace("./made", "s3://bucket/made")
    )
    with pytest.raises(InvalidInputError, match="UNDERSTUDY_HOME"):
        load_config({"UNDERSTUDY_HOME": "s3://bucket/made"})


@pytest.mark.parametrize("name", ["../up", "a b", "-x", "a@b"])
def test_a_student_name_must_do_as_a_folder_name(tmp_path, name):
    text = problem(tmp_path, GOOD.replace("compact:", f"{name!r}:"))
    assert f"students.{name} (line 10)" in text


def test_a_key_given_twice_names_both_lines(tmp_path):
    text = problem(tmp_path, GOOD + "router: {}\nrouter: {min_retrieval_score: 0.1}\n")
    assert "router on line 11 and again on line 12" in text
    nested = problem(tmp_path, GOOD.replace("trainable: true", "trainable: true, license: MIT"))
    assert "license on line 7 and again on line 7" in nested


def test_the_router_sends_long_prompts_to_the_teacher_by_default(tmp_path):
    assert read_config(write(tmp_path, GOOD)).router.long_context_tokens == 6000
