"""What is told of a training that fails, or has nothing to train on: the reason, not its status."""

import errno
import math
import sys
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from assets import tables
from assets.students.adapters import REQUIRED_FACTS
from assets.students.checks import loss_went_down, no_training_example_is_cut
from assets.students.recipe import Recipe
from assets.students.reporting import raise_failure, report_failure
from assets.students.spec import TrainingSpec
from assets.students.training_set import build_training_set, refuse_empty
from orchestration.failures import describe_failure
from serving.errors import InvalidInputError
from serving.models.causal_lm import hash_base_model
from tests.tiny_student import make_base, make_labelled, make_tokenizer

ROOT = Path(__file__).parents[3]


@pytest.fixture
def spec(tmp_path) -> TrainingSpec:
    """A training on a base of its own, which a test may spoil."""
    base = make_base(tmp_path / "base")
    examples = make_labelled(8)
    frame = build_training_set(examples, make_tokenizer(), context_tokens=512).frame
    frame.write_parquet(tmp_path / "training_set.parquet")
    return TrainingSpec(
        training_set=tmp_path / "training_set.parquet",
        recipe=Recipe(student="tiny", rank=4, batch_size=4, alpha=1.0, dtype="float32"),
        base_folder=base,
        base_hash=hash_base_model(base),
        adapters_folder=tmp_path / "adapters",
        facts=dict.fromkeys(REQUIRED_FACTS, "known"),
        reports=tmp_path / "reports.jsonl",
    )


def train_under_dagster(spec: TrainingSpec, folder: Path) -> str:
    """Train as the asset does, and return what `understudy run` would print of the failure."""
    path = folder / "spec.json"
    path.write_text(spec.model_dump_json(), encoding="utf-8")

    @dg.asset
    def adapter(context: dg.AssetExecutionContext, client: dg.PipesSubprocessClient):
        command = [sys.executable, "-m", "assets.students.train", "--spec", str(path)]
        with raise_failure(path):
            client.run(command=command, context=context, cwd=str(ROOT))

    resources = {"client": dg.PipesSubprocessClient()}
    result = dg.materialize([adapter], resources=resources, raise_on_error=False)
    assert not result.success
    return describe_failure(result, folder)


def test_a_base_of_another_hash_is_told_in_the_runs_own_words(spec, tmp_path):
    other = spec.model_copy(update={"base_hash": "0" * 64})
    told = train_under_dagster(other, tmp_path)
    assert "opening the base model" in told
    assert "0" * 64 in told
    assert spec.base_hash in told
    assert "code 1" not in told


def test_a_loss_that_is_no_number_is_told_with_its_batch(spec, tmp_path):
    steep = spec.recipe.model_copy(update={"learning_rate": 0.9, "lora_alpha": 10**38})
    told = train_under_dagster(spec.model_copy(update={"recipe": steep}), tmp_path)
    assert "on the batch of examples e0" in told
    assert "lower learning_rate" in told


def test_a_training_that_left_no_reason_fails_as_it_failed(tmp_path):
    with pytest.raises(ZeroDivisionError), raise_failure(tmp_path / "spec.json"):
        _ = 1 / 0


def test_a_reason_that_could_not_be_written_hides_nothing(tmp_path, monkeypatch):
    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("assets.students.reporting.write_text_atomically", fill)
    spec = tmp_path / "spec.json"
    report_failure(spec, InvalidInputError("trying", expected="a", found="b", next_step="c"))
    with pytest.raises(ZeroDivisionError), raise_failure(spec):
        _ = 1 / 0


def test_an_empty_training_set_says_where_the_labels_went():
    frame = build_training_set(make_labelled(4), make_tokenizer(), context_tokens=512).frame
    refuse_empty("compact", frame, {"too_long_count": 0})
    elsewhere = frame.with_columns(split=pl.lit("validation"))
    with pytest.raises(InvalidInputError, match="too long 7, left to rules 3") as error:
        refuse_empty("compact", elsewhere, {"too_long_count": 7, "left_to_rules_count": 3})
    assert "compact" in error.value.attempted


def make_curve(*losses: float) -> pl.DataFrame:
    rows = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    return pl.DataFrame(rows, schema=tables.TRAINING_CURVE)


@pytest.mark.parametrize(
    ("losses", "passed", "told"),
    [
        ((2.0, 1.0), True, "was 2, of the last 1"),
        ((1.0, 1.0), False, "was 1, of the last 1"),
        ((1.0, 2.0), False, "of the last 2"),
        ((1.0,), False, "1 steps"),
        ((2.0, math.nan, 1.0), False, "1 of them not finite"),
    ],
)
def test_a_loss_that_did_not_fall_stops_with_its_numbers(losses, passed, told):
    adapter = pl.DataFrame({"kind": ["lora"]})
    result = loss_went_down(make_curve(*losses), adapter)
    assert result.passed is passed
    assert told in result.description


def test_examples_that_are_not_whole_stop_with_their_number():
    labelled = make_labelled(6, splits=("train", "validation"))
    frame = build_training_set(labelled, make_tokenizer(), context_tokens=512).frame
    assert no_training_example_is_cut(frame, labelled).passed
    first = pl.col("example_id") == frame["example_id"][0]
    cut = frame.with_columns(
        answer_ids=pl.when(first).then(pl.col("answer_ids").list.head(1)).otherwise("answer_ids")
    )
    moved = frame.with_columns(split=pl.lit("train"))
    mixed = frame.with_columns(
        answer_ids=pl.when(first).then(None).otherwise("answer_ids"),
        cite_mask=pl.when(first).then(None).otherwise("cite_mask"),
    )
    for broken, told in (
        (cut, "1 broken ones"),
        (moved, "3 in another split"),
        (mixed, "with and without tokens"),
        (frame.clear(), "0 examples to train on"),
    ):
        result = no_training_example_is_cut(broken, labelled)
        assert not result.passed, told
        assert told in result.description
