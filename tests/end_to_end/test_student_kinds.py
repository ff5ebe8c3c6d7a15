"""Every kind of student through the whole chain: made, measured, released, served.

Labels are bought once; each recipe is a partition of its own. The base is a tiny random model (and
once a model behind a server), so that quality is nobody's business here.
"""

import json
import os

import polars as pl
import pytest
import yaml

from orchestration.asking import ask_once
from orchestration.config import read_config
from orchestration.demo import read_report
from orchestration.running import run_chain
from serving.errors import InvalidInputError
from serving.home import Home
from serving.models.protocols import NoProgress
from serving.releases.bundle import load_current, load_public_key
from tests.chat_stub import ChatStub, serve
from tests.product import write_product

pytestmark = pytest.mark.real_models

TRAINED = {
    "rank": 4, "lora_alpha": 8, "learning_rate": 0.01, "batch_size": 4, "epochs": 10, "alpha": 1.0,
    "max_examples": 16, "target_modules": ["q_proj", "v_proj"],
}  # fmt: skip
RECIPES = {
    "answer": {"student": "tiny", "kind": "alora", "activation": "answer", **TRAINED},
    "plain": {"student": "tiny", "kind": "base"},
    "nearest": {"student": "tiny", "kind": "few_shot", "selection": "nearest", "examples": 3},
    "searched": {
        "student": "tiny", "kind": "prompt_optimised", "calls": 8, "example_sets": 2,
        "examples": 2, "instructions": ["Quote the sources."],
    },
    "behind_a_server": {"student": "cheap", "kind": "few_shot", "examples": 3},
}  # fmt: skip
GPU = {"student": "tiny", "kind": "qlora"}


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    folder = tmp_path_factory.mktemp("product")
    before = dict(os.environ)
    path = write_product(folder)
    for name, recipe in {**RECIPES, "gpu": GPU, "foreign": GPU | {"student": "cheap"}}.items():
        (folder / "recipes" / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    with serve(ChatStub()) as url:
        config = yaml.safe_load(path.read_text())
        config["students"]["cheap"] = {
            "provider": "openai", "base_model": "cheap-2026-01-01", "base_url": url,
            "max_answer_tokens": 24, "context_tokens": 4096,
        }  # fmt: skip
        path.write_text(yaml.safe_dump(config))
        yield read_config(path)
    os.environ.clear()
    os.environ.update(before)


def read(config, key: str, recipe: str) -> pl.DataFrame:
    return pl.read_parquet(Home(config.home).table(key, recipe))


@pytest.mark.parametrize("name", RECIPES)
def test_the_chain_makes_measures_and_releases_every_kind(product, name):
    outcome = run_chain(product, progress=NoProgress(), recipe=name)
    assert outcome.succeeded, outcome.failure
    home, kind = Home(product.home), RECIPES[name]["kind"]
    row = read(product, "students/student_adapter", name).row(0, named=True)
    assert (row["kind"], row["recipe"]) == (kind, name)
    assert (row["activation"] is None) == (kind != "alora")
    provenance = json.loads((home.adapters / row["adapter"] / "provenance.json").read_text())
    assert provenance["index_fingerprint"]
    answers = read(product, "parity/arm_answers", name).filter(arm="student")
    assert answers["error"].null_count() == answers.height, "the student answered every case"
    assert answers["model"].unique().to_list() == [row["adapter"]]
    rows = read_report(product, name)["sections"]["parity"]["tables"]["parity"]
    assert {row["arm"] for row in rows if row["kind"] == "arm"} >= {"teacher", "student", "routed"}
    assert read(product, "students/training_curve", name).is_empty() == (kind != "alora")
    if kind == "prompt_optimised":
        log = home.adapters / row["adapter"] / "search.parquet"
        asked = set(read(product, "students/held_out_answers", name)["example_id"])
        assert asked.isdisjoint(pl.read_parquet(log)["example_id"])
    again = run_chain(product, progress=NoProgress(), recipe=name)
    assert again.planned == ()


@pytest.mark.parametrize("name", ["behind_a_server", "nearest"])
def test_the_server_answers_with_a_released_prompt(product, name):
    run = run_chain(
        product, progress=NoProgress(), recipe=name, select=["releases/release_bundle"], force=True
    )
    assert run.succeeded, run.failure
    home = Home(product.home)
    release = load_current(home.releases, load_public_key(home.keys))
    (student,) = release.manifest.students.values()
    assert student.kind == "few_shot"
    body = ask_once(product, "What does the display error E4 mean?")
    assert body["citations"][0]["id"] == "docs:reference/errors/1"


@pytest.mark.parametrize(
    ("name", "found"),
    [("gpu", "a CUDA device"), ("foreign", "a student with provider local")],
)
def test_a_recipe_that_cannot_be_made_is_refused_before_a_label_is_bought(
    product, tmp_path, monkeypatch, name, found
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    fresh = product.model_copy(update={"home": tmp_path / "fresh"})
    with pytest.raises(InvalidInputError, match=found):
        run_chain(fresh, progress=NoProgress(), recipe=name)
    assert not (tmp_path / "fresh" / "labels").exists()
