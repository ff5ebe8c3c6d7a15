"""Models in the config: which providers there are, which names are pinned."""

import shutil

import pytest

from assets.releases.bundling import AdapterServer
from orchestration.bindings import Bindings
from orchestration.config import read_config
from orchestration.definitions import fingerprint_stage
from serving.errors import InvalidInputError
from serving.models.protocols import NoProgress
from serving.models.remote import hash_remote_model
from tests.serving.fakes import make_manifest

FILE = """\
home: ./made
product: {{name: mine, corpus: {{path: pages}}}}
seeds: {{path: seeds.jsonl}}
eval: {{golden: golden.jsonl}}
teacher: {{{teacher}, license: MIT, trainable: true}}
judge: {{model: extractive-judge-v1, epoch: {epoch}}}
{scorer}
students:
  compact: {{base_model: some/base, revision: {revision}}}
"""
OPENAI = "provider: openai, base_url: 'https://host/v1'"


def read(
    folder, *, teacher="model: extractive-v1", epoch="'2026-11'", revision="0123abc", scorer=""
):
    path = folder / "product.yaml"
    text = FILE.format(teacher=teacher, epoch=epoch, revision=revision, scorer=scorer)
    path.write_text(text, encoding="utf-8")
    return read_config(path)


def test_a_model_in_a_folder_is_relative_to_the_file_and_a_hubs_name_stays(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "models" / "mine").mkdir(parents=True)
    text = FILE.format(
        teacher="model: extractive-v1",
        epoch="'2026-11'",
        revision="0123abc",
        scorer="scorer: {model: ./gone, revision: local}",
    )
    text += "  larger: {base_model: models/mine, revision: local}\n"
    (tmp_path / "product.yaml").write_text(text, encoding="utf-8")
    config = read_config(tmp_path / "product.yaml")
    assert config.students["larger"].base_model == str(tmp_path / "models" / "mine")
    assert config.students["compact"].base_model == "some/base"
    assert config.scorer.model == str(tmp_path / "gone")
    assert config.embedder.model == "sentence-transformers/all-MiniLM-L6-v2"
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path, moved, ignore=shutil.ignore_patterns("elsewhere"))
    again = read_config(moved / "product.yaml")
    assert again.scorer.model == str(moved / "gone")
    assert fingerprint_stage("labels", again) == fingerprint_stage("labels", config)


@pytest.mark.parametrize(
    "name",
    ["gpt-4o", "gpt-4o-mini", "openai/gpt-4o", "o3", "o3-mini", "claude-3-5-sonnet",
     "claude-opus-5", "gemini-2.0-flash", "mistral-large", "deepseek-chat", "grok-4",
     "command-r-plus"],
)  # fmt: skip
def test_a_family_is_no_snapshot_unless_its_owner_vouches_for_it(tmp_path, name):
    with pytest.raises(InvalidInputError, match=r"dated snapshot.*pinned: true"):
        read(tmp_path, teacher=f"{OPENAI}, model: '{name}'")
    vouched = read(tmp_path, teacher=f"{OPENAI}, model: '{name}', pinned: true")
    assert vouched.teacher.model == name


@pytest.mark.parametrize(
    "name",
    ["gpt-4o-2024-08-06", "gpt-4-0613", "claude-3-5-sonnet-20241022", "gemini-1.5-pro-002",
     "claude-3-5-sonnet@20241022", "mistral-large-2411", "command-r-08-2024", "my-model-7b-2026-05",
     "meta-llama/Llama-3.1-8B-Instruct", "big-model-v2"],
)  # fmt: skip
def test_a_dated_or_self_hosted_name_is_a_snapshot(tmp_path, name):
    assert read(tmp_path, teacher=f"{OPENAI}, model: '{name}'").teacher.model == name


@pytest.mark.parametrize("alias", ["latest", "gpt-4o-latest", "llama3:latest", "main"])
def test_an_alias_is_refused_whoever_vouches_for_it(tmp_path, alias):
    with pytest.raises(InvalidInputError, match="alias"):
        read(tmp_path, teacher=f"{OPENAI}, model: '{alias}', pinned: true")


@pytest.mark.parametrize(
    "place",
    [
        {"revision": "main"},
        {"epoch": "current"},
        {"scorer": "scorer: {model: some/base, revision: main}"},
        {"scorer": "scorer: {provider: vllm, model: a-latest, base_url: 'http://h/v1'}"},
    ],
)
def test_revisions_epochs_and_scorers_are_pinned_too(tmp_path, place):
    with pytest.raises(InvalidInputError, match="alias"):
        read(tmp_path, **place)


@pytest.mark.parametrize(
    ("teacher", "match"),
    [
        ("provider: vllm, model: m-1", "vllm needs base_url"),
        ("provider: anthropic, model: m-1, top_logprobs: 5", "anthropic reports no logprobs"),
        ("model: extractive-v1, top_logprobs: 5", "extractive reports no logprobs"),
        (f"{OPENAI}, model: m-1, top_logprobs: 21", "less than or equal to 20"),
        (f"{OPENAI}, model: m-1, structured_output: yaml", "json_schema"),
    ],
)
def test_what_a_provider_does_not_offer_is_refused(tmp_path, teacher, match):
    with pytest.raises(InvalidInputError, match=match):
        read(tmp_path, teacher=teacher)


def test_anthropic_needs_no_base_url_and_a_vllm_scorer_does(tmp_path):
    assert read(tmp_path, teacher="provider: anthropic, model: m-1").teacher.base_url is None
    with pytest.raises(InvalidInputError, match="vllm needs base_url"):
        read(tmp_path, scorer="scorer: {provider: vllm, model: some/base, revision: abc}")


@pytest.mark.parametrize(
    ("student", "match"),
    [
        ("abc, provider: openai", "openai needs base_url"),
        ("abc, base_url: 'https://host/v1'", "base_url needs a provider"),
        ("abc, provider: extractive", "provider"),
        ("abc, provider: anthropic, budget_usd: -1", "greater than or equal to 0"),
    ],
)
def test_a_student_behind_a_server_says_where(tmp_path, student, match):
    with pytest.raises(InvalidInputError, match=match):
        read(tmp_path, revision=student)


@pytest.mark.parametrize(
    ("name", "match"), [("gpt-4o-mini", "dated snapshot"), ("mine-latest", "alias")]
)
def test_a_student_behind_a_server_is_pinned_like_a_teacher(tmp_path, name, match):
    path = tmp_path / "product.yaml"
    read(tmp_path)
    text = path.read_text().replace("some/base", name).replace("revision: 0123abc", OPENAI)
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=match):
        read_config(path)


@pytest.mark.parametrize(
    ("change", "is_today"),
    [
        ({}, True),
        ({"base_url": "https://host/v1/"}, True),
        ({"base_url": "https://elsewhere/v1"}, False),
        ({"provider": "vllm"}, False),
        ({"model": "big-model-v3"}, False),
    ],
)
def test_a_releases_teacher_is_todays_only_if_it_is_served_where_todays_is(
    tmp_path, change, is_today
):
    config = read(tmp_path, teacher=f"{OPENAI}, model: big-model-v2")
    entry = {"provider": "openai", "base_url": "https://host/v1", "model": "big-model-v2"} | change
    manifest = make_manifest(teacher=entry)
    assert Bindings(config, NoProgress()).is_todays_teacher(manifest) is is_today


def test_a_release_names_the_server_that_holds_a_students_adapters(tmp_path):
    def read_with(serving):
        read(tmp_path)
        path = tmp_path / "product.yaml"
        path.write_text(f"{path.read_text()}serving: {{adapters: {serving}}}\n")
        return read_config(path)

    served = "{base_url: 'http://127.0.0.1:8000/v1', api_key_env: VLLM_KEY}"
    bindings = Bindings(read_with(f"{{compact: {served}}}"), NoProgress())
    terms = bindings.release_terms.students["compact"]
    assert terms.adapter_server == AdapterServer(
        provider="vllm", base_url="http://127.0.0.1:8000/v1", api_key_env="VLLM_KEY"
    )
    assert (terms.engine, terms.base_url) == ("local", None)  # of recipes that are no ordinary LoRA
    # It is trained and judged here all the same.
    assert bindings.students.find("compact").revision == "0123abc"
    with pytest.raises(InvalidInputError, match=r"adapters\.other needs a student other"):
        read_with(f"{{other: {served}}}")


def test_teacher_and_judge_have_a_budget_each(tmp_path):
    path = tmp_path / "product.yaml"
    read(tmp_path)
    text = path.read_text().replace("judge: {model", "judge: {budget_usd: 0.5, model")
    path.write_text(text)
    bindings = Bindings(read_config(path), NoProgress())
    assert (bindings.teacher.meter.budget_usd, bindings.judge.meter.budget_usd) == (25.0, 0.5)


def test_a_student_behind_a_server_is_counted_asked_and_released_without_a_tokenizer(tmp_path):
    config = read(tmp_path, revision=f"abc, {OPENAI}, price: {{input_usd_per_mtok: 1.0}}")
    bindings = Bindings(config, NoProgress())
    assert bindings.count_student_tokens("a" * 40) == 10
    base = bindings.students.open_base("compact")
    assert base.identity == hash_remote_model("openai", "some/base", "https://host/v1")
    assert (base.model.name, base.model.price.input_usd_per_mtok) == ("some/base", 1.0)
    assert base.model.meter.budget_usd == 5.0
    with pytest.raises(InvalidInputError, match=r"provider local.*found provider openai"):
        bindings.students.tokenizer("compact")
    assert bindings.students.find("compact").revision == "remote"


def test_a_local_student_names_what_runs_it_and_release_and_factory_are_told(tmp_path):
    config = read(tmp_path, revision="0123abc, local_engine: openvino")
    bindings = Bindings(config, NoProgress())
    assert config.students["compact"].local_engine == "openvino"
    assert bindings.students.find("compact").local_engine == "openvino"
    assert bindings.release_terms.students["compact"].local_engine == "openvino"
    with pytest.raises(InvalidInputError, match="local_engine"):
        read(tmp_path, revision="0123abc, local_engine: tensorflow")
    remote = "provider: openai, base_url: 'https://host/v1', pinned: true"
    with pytest.raises(InvalidInputError, match="local_engine is for provider local"):
        read(tmp_path, revision=f"0123abc, {remote}, local_engine: openvino")
