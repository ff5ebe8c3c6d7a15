"""Students that are prompts, made whole on a real (tiny) base, shipped in a bundle and served."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from assets import tables
from assets.students.factory import FactoryParts, list_examples, make_student, refuse_unfit
from assets.students.prompt_folders import find_student, hash_student
from assets.students.prompt_search import SEARCH_LOG
from assets.students.provenance import find_foreign_files, tabulate_adapter
from assets.students.recipe import parse_recipe
from assets.students.student_folders import is_whole
from resources.students import StudentSettings
from serving.errors import InvalidInputError, ReleaseError
from serving.hashing import folder_sha256
from serving.models.causal_lm import hash_base_model
from serving.models.local_student import LocalStudent
from serving.models.prompted_student import OpenedBase, PromptedStudent, load_prompted_student
from serving.models.protocols import ChatRequest, NoProgress, Price
from serving.models.remote import hash_remote_model
from serving.releases.bundle import VerifiedRelease, build_bundle, verify_bundle
from serving.releases.parts import load_students
from serving.settings import ServerSettings
from tests.chat_stub import ANSWER, ChatStub, serve
from tests.serving.fakes import CannedChatModel, make_manifest
from tests.serving.models.extractive.conftest import WordHashEmbedder
from tests.tiny_student import make_labelled, make_messages

FACTS = {"base_model": "tiny", "teacher_ids": ["t"], "teacher_licenses": ["Apache-2.0"]}
KINDS = {
    "base": {"kind": "base"},
    "medoids": {"kind": "few_shot", "examples": 3},
    "nearest": {"kind": "few_shot", "selection": "nearest", "examples": 3},
    "searched": {
        "kind": "prompt_optimised", "calls": 8, "example_sets": 2, "examples": 2,
        "instructions": ["Quote."],
    },
}  # fmt: skip


def make_recipe(kind, **changes):
    return parse_recipe({"student": "tiny"} | KINDS[kind] | changes, source="here")


def make_examples(count=20):
    labelled = make_labelled(count, splits=("train", "train", "train", "train", "validation"))
    return labelled.with_columns(
        refused=labelled["completion"] == "REFUSE", content_key=labelled["example_id"] + "k"
    )


@pytest.fixture(scope="module")
def base(tiny_base):
    local = LocalStudent.load(
        tiny_base, None, name="base", price=Price(), activation="question", context_tokens=1500,
        dtype="float32",
    )  # fmt: skip
    return OpenedBase(
        model=local,
        identity=hash_base_model(tiny_base),
        count_tokens=local.count_prompt_tokens,
        context_tokens=1500,
        dtype=local.dtype,
    )


def make(folder, recipe, base, *, examples=None, embedder=None):
    parts = FactoryParts(
        base=base,
        open_embedder=lambda: embedder or WordHashEmbedder(),
        max_answer_tokens=8,
        progress=NoProgress(),
    )
    examples = make_examples() if examples is None else examples
    return make_student(recipe, examples, parts=parts, facts=FACTS, adapters_folder=folder)


def ask(model, question="How do I set key 3?"):
    messages = tuple(make_messages(question))
    return asyncio.run(model.complete(ChatRequest(messages=messages, max_tokens=8)))


def open_student(folder, base, embedder=None):
    return load_prompted_student(
        folder,
        base,
        name=folder.name,
        base_identity=base.identity,
        open_embedder=lambda: embedder or WordHashEmbedder(),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_is_made_once_found_again_and_answers(tmp_path, base, kind):
    recipe = make_recipe(kind)
    made = make(tmp_path, recipe, base)
    assert not made.is_reused
    again = make(tmp_path, recipe, base)
    assert again.is_reused
    assert again.adapter == made.adapter
    (folder,) = (path for path in tmp_path.iterdir() if path.name != ".tmp")
    assert str(folder) == made.adapter
    assert find_foreign_files(folder, recipe.kind, folder_sha256(folder)) == []
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["kind"] == recipe.kind
    assert provenance["base_hash"] == base.identity
    assert provenance["teacher_ids"] == ["t"]
    completion = ask(open_student(folder, base))
    assert completion.model == folder.name
    assert completion.completion_tokens >= 1


def test_the_base_kind_is_the_base_and_examples_change_its_answer(tmp_path, base):
    plain = ask(open_student(make_folder(tmp_path, "base", base), base))
    shown = ask(open_student(make_folder(tmp_path, "medoids", base), base))
    alone = ask(base.model)
    assert (plain.text, plain.mean_logprob) == (alone.text, alone.mean_logprob)
    assert shown.prompt_tokens > plain.prompt_tokens
    assert shown.mean_logprob != plain.mean_logprob


def make_folder(tmp_path, kind, base, **options):
    changes = {name: options.pop(name) for name in ("seed", "description") if name in options}
    return Path(make(tmp_path, make_recipe(kind, **changes), base, **options).adapter)


def test_the_search_log_and_what_it_found_are_stored(tmp_path, base):
    folder = make_folder(tmp_path, "searched", base)
    log = pl.read_parquet(folder / "search.parquet")
    found = json.loads((folder / "provenance.json").read_text())["search"]
    assert log.schema == SEARCH_LOG
    assert log.height == found["call_count"] <= 8
    assert set(log["example_id"]) <= set(make_examples().filter(split="validation")["example_id"])
    assert found["agreement_ratio"] >= found["first_agreement_ratio"]


def test_what_can_change_a_student_makes_another(tmp_path, base):
    first = make_folder(tmp_path, "medoids", base)
    assert make_folder(tmp_path, "medoids", base, seed=8) != first
    assert make_folder(tmp_path, "medoids", base, description="why") == first
    assert make_folder(tmp_path, "medoids", replace(base, identity="b2")) != first
    other, fewer = WordHashEmbedder(fingerprint="other"), make_examples(12)
    assert make_folder(tmp_path, "medoids", base, embedder=other) != first
    assert make_folder(tmp_path, "medoids", base, examples=fewer) != first
    plain = make_folder(tmp_path, "base", base)
    assert make_folder(tmp_path, "base", base, examples=fewer) == plain


def test_a_damaged_folder_is_made_anew(tmp_path, base):
    folder = make_folder(tmp_path, "nearest", base)
    key = json.loads((folder / "provenance.json").read_text())["training_key"]
    assert find_student(tmp_path, "tiny", key) == folder
    (folder / "vectors.safetensors").write_bytes(b"cut")
    assert not is_whole(folder, hash_student)
    assert find_student(tmp_path, "tiny", key) is None
    assert find_foreign_files(folder, "few_shot", "recorded") == [
        "its content is not what was recorded"
    ]
    assert make_folder(tmp_path, "nearest", base) == folder
    assert is_whole(folder, hash_student)
    assert (tmp_path / ".damaged" / folder.name).is_dir()


def test_without_an_answer_to_show_nothing_is_made(tmp_path, base):
    refusals = make_examples().filter(pl.col("refused"))
    with pytest.raises(InvalidInputError, match="every one a refusal"):
        make(tmp_path, make_recipe("medoids"), base, examples=refusals)
    with pytest.raises(InvalidInputError, match="found no example"):
        make(tmp_path, make_recipe("medoids"), base, examples=refusals.clear())
    assert list(tmp_path.iterdir()) == []


def test_the_training_set_of_a_kind_without_training_has_ids_and_no_tokens():
    built = list_examples(make_examples(), max_examples=4, seed=7)
    assert built.frame.schema == tables.TRAINING_SET
    assert built.frame["answer_ids"].null_count() == built.frame.height
    assert built.frame.filter(split="train").height == 4
    assert built.not_sampled == 12
    assert built.frame.filter(split="validation").height == 4


@pytest.mark.parametrize("kind", ["lora", "alora", "qlora"])
def test_weights_of_a_model_behind_a_server_are_refused(kind):
    recipe = parse_recipe({"student": "cheap", "kind": kind}, source="here")
    with pytest.raises(InvalidInputError, match=r"students\.cheap\.provider: openai.*few_shot"):
        refuse_unfit("mine", recipe, provider="openai")


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_needs_no_weights(kind):
    refuse_unfit("mine", make_recipe(kind), provider="openai")


def test_four_bits_without_a_gpu_are_refused_before_anything_is_spent(monkeypatch):
    recipe = parse_recipe({"student": "tiny", "kind": "qlora"}, source="here")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InvalidInputError, match="'mine' of kind qlora: expected a CUDA device"):
        refuse_unfit("mine", recipe, provider="local")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("assets.students.quantised.find_spec", lambda _name: None)
    with pytest.raises(InvalidInputError, match="pip install bitsandbytes"):
        refuse_unfit("mine", recipe, provider="local")
    monkeypatch.setattr("assets.students.quantised.find_spec", lambda _name: object())
    refuse_unfit("mine", recipe, provider="local")


def bundle(tmp_path, folder, base, **changes):
    """Build the release of a student's folder and return it verified."""
    recipe = parse_recipe({"student": "tiny"} | KINDS["base"], source="here")
    settings = StudentSettings(
        base_model="tiny", revision="r", context_tokens=1500, max_answer_tokens=8, price=Price()
    )
    row = tabulate_adapter("mine", folder, recipe, settings, list_examples(
        make_examples(), max_examples=None, seed=7).frame)  # fmt: skip
    entry = {
        "kind": "few_shot", "adapter": folder.name, "adapter_sha256": row["adapter_sha256"],
        "base_model": "tiny", "base_revision": "r", "base_hash": base.identity,
        "context_tokens": 1500, "max_answer_tokens": 8,
    }  # fmt: skip
    manifest = make_manifest(students={"tiny": entry | changes})
    release_id = build_bundle(tmp_path / "releases", manifest, {"tiny": folder})
    path = tmp_path / "releases" / release_id
    return VerifiedRelease(folder=path, manifest=verify_bundle(path), sequence=1, parent=None)


def load_served(release, settings):
    """Return the one student of a release as a server loads it, without its breaker."""
    (loaded,) = load_students(release, settings, WordHashEmbedder())
    return loaded.tier.model.inner


@pytest.mark.parametrize("kind", ["base", "medoids", "nearest", "searched"])
def test_serving_loads_a_prompt_from_a_bundle_and_answers_as_the_factory_did(
    tmp_path, base, tiny_base, kind
):
    folder = make_folder(tmp_path / "adapters", kind, base)
    release = bundle(tmp_path, folder, base, kind=make_recipe(kind).kind, base_model=str(tiny_base))
    settings = ServerSettings(home=tmp_path)
    served = load_served(release, settings)
    assert isinstance(served, PromptedStudent)
    assert served.count_prompt_tokens("a key") == base.count_tokens("a key")
    expected, found = ask(open_student(folder, base)), ask(served)
    assert (found.text, found.model) == (expected.text, folder.name)
    assert served.dtype


def test_a_release_of_another_base_is_refused(tmp_path, base, tiny_base):
    folder = make_folder(tmp_path / "adapters", "base", base)
    release = bundle(tmp_path, folder, base, base_model=str(tiny_base), base_hash="beef")
    with pytest.raises(ReleaseError, match="hash of the base model"):
        load_served(release, ServerSettings(home=tmp_path))


def test_a_cheap_model_behind_a_server_is_a_student_too(tmp_path):
    """Made and released without a tokenizer; served through the same client as a teacher."""
    stub = ChatStub()
    with serve(stub) as url:
        identity = hash_remote_model("openai", "cheap-2026-01-01", url)
        remote = OpenedBase(
            model=CannedChatModel("cheap"), identity=identity, count_tokens=len,
            context_tokens=4000,
        )  # fmt: skip
        folder = make_folder(tmp_path / "adapters", "medoids", remote)
        release = bundle(
            tmp_path, folder, remote, base_model="cheap-2026-01-01", base_revision="remote",
            engine="openai", base_url=url, api_key_env="CHEAP_KEY", context_tokens=4000,
        )  # fmt: skip
        with pytest.raises(InvalidInputError, match="CHEAP_KEY"):
            load_served(release, ServerSettings(home=tmp_path))
        settings = ServerSettings(home=tmp_path, environment={"CHEAP_KEY": "k"})
        served = load_served(release, settings)

        async def ask_and_close():
            completion = await served.complete(
                ChatRequest(messages=tuple(make_messages("How?")), max_tokens=8)
            )
            await served.close()
            return completion

        completion = asyncio.run(ask_and_close())
    assert (completion.text, completion.model) == (ANSWER, folder.name)
    assert list(stub.calls) == [f"Sources:\n{make_sources()}\n\nQuestion: How?"]


def make_sources():
    return make_messages("x")[0]["content"].partition("Sources:\n")[2]
