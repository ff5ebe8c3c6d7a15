"""A student that learns from soft targets, made by the product's own chain.

The scorer is the student's architecture with other random weights. It finds no text of the teacher
likely, so the floor under that probability is lowered here, and the little it says is read.
"""

import functools
import json
import math
import os

import polars as pl
import pytest
import yaml

from assets.labels import assets as labels
from assets.labels.soft_targets import gather_soft_targets
from orchestration.config import read_config
from orchestration.running import run_chain
from serving.home import Home
from serving.models.causal_lm import hash_base_model
from serving.models.protocols import NoProgress
from tests.product import write_product
from tests.tiny_student import make_base

pytestmark = pytest.mark.real_models

SCORED = 12  # fewer than there are: the others stay hard, and meet the soft ones in a batch
MADE = (
    "corpus", "traces", "seeds", "eval_set", "paraphrases", "labels",
    "students/training_set", "students/student_adapter", "students/training_curve",
)  # fmt: skip


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    folder = tmp_path_factory.mktemp("product")
    before = dict(os.environ)
    path = write_product(folder)
    config = yaml.safe_load(path.read_text())
    config["scorer"] = {
        "provider": "local", "model": str(make_base(folder / "scorer", seed=1)),
        "revision": "test", "maximum_examples": SCORED,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(config))
    recipe = folder / "recipes" / "tiny.yaml"
    keys = yaml.safe_load(recipe.read_text()) | {"alpha": 0.3, "epochs": 2}
    recipe.write_text(yaml.safe_dump(keys))
    with pytest.MonkeyPatch.context() as patch:
        without_floor = functools.partial(gather_soft_targets, minimum_mean_probability=0.0)
        patch.setattr(labels, "gather_soft_targets", without_floor)
        config = read_config(path)
        outcome = run_chain(config, progress=NoProgress(), recipe="tiny", select=MADE)
    assert outcome.succeeded, outcome.failure
    yield Home(config.home), folder / "scorer"
    os.environ.clear()
    os.environ.update(before)


def read(home: Home, key: str) -> pl.DataFrame:
    return pl.read_parquet(home.table(key, "tiny" if key.startswith("students") else None))


def test_a_scorer_of_the_config_fills_the_table_of_soft_targets(product):
    home, scorer = product
    stored = read(home, "labels/teacher_logprobs")
    scored = stored.filter(source="scorer")
    assert scored.height == SCORED < stored.height
    assert scored["scorer_hash"].unique().to_list() == [hash_base_model(scorer)]
    assert scored["soft_ok"].explode().all()
    assert not stored.filter(source="none")["soft_ok"].explode().any()


def test_the_student_trains_on_them(product):
    home, _ = product
    row = read(home, "students/student_adapter").row(0, named=True)
    provenance = json.loads((home.adapters / row["adapter"] / "provenance.json").read_text())
    soft = read(home, "labels/teacher_logprobs").filter(pl.col("soft_ok").list.any())
    trained = read(home, "students/training_set").filter(split="train")
    met = trained.join(soft, on=["example_id", "token_hash"], how="semi").height
    assert 0 < met < trained.height
    assert provenance["training_example_counts"]["train_with_soft_targets"] == met
    assert provenance["logprobs_hash"]
    losses = read(home, "students/training_curve")["soft_loss"].drop_nulls().to_list()
    assert losses
    assert all(math.isfinite(value) and value > 0 for value in losses)
