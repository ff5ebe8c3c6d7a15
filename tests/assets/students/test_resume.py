"""A training that is killed anywhere and started again ends with the adapter of one that was not.

Equal to the last bit on a CPU: the sha in the adapter's name, and every loss of the curve.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from assets.students import steps
from assets.students.checkpoints import CHECKPOINTS, Checkpoints
from assets.students.diverging import DivergedError
from assets.students.soft_rows import find_byte_order
from assets.students.train import run_training
from tests.assets.students.soft_table import SOFT, write_soft_table
from tests.assets.students.training_cases import (
    TIMINGS,
    make_spec,
    read_curve,
    train,
    weights_of,
)
from tests.tiny_student import make_tokenizer

ROOT = Path(__file__).parents[3]


class Killed(BaseException):
    """Stands for a power cut: nothing in the program may catch it."""


def store(folder, identity="mine"):
    return Checkpoints(folder, identity, steps=1)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """What is trained on: the teacher's text alone, and soft targets of every kind beside it."""
    table = pl.read_parquet(write_soft_table(tmp_path_factory.mktemp("soft")))
    byte_order = find_byte_order(table, make_tokenizer(), len(make_tokenizer()))
    return {"hard": {}, "soft": {"keys": SOFT, "logprobs": table, "byte_order": byte_order}}


@pytest.fixture(scope="module")
def wholes(tiny_base, options):
    return {name: train(tiny_base, **given) for name, given in options.items()}


@pytest.fixture
def whole(wholes):
    return wholes["hard"]


def is_equal(one, other):
    one, other = weights_of(one), weights_of(other)
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize(
    ("step", "targets"),
    [*((step, "hard") for step in (1, 4, 5, 6, 10, 14)), (4, "soft"), (6, "soft"), (10, "soft")],
)
def test_cut_off_after_any_step_it_ends_the_same(
    tiny_base, tmp_path, options, wholes, step, targets
):
    """Five steps an epoch: within one, at its end before validation and after, in the last."""
    given, whole = options[targets], wholes[targets]
    assert whole.curve["soft_loss"].is_null().all() == (targets == "hard")

    def cut(report):
        if report.step == step:
            raise Killed

    with pytest.raises(Killed):
        train(tiny_base, on_step=cut, checkpoints=store(tmp_path), **given)
    told = []
    again = train(
        tiny_base, on_step=lambda report: told.append(report.step), checkpoints=store(tmp_path),
        **given,
    )  # fmt: skip
    assert again.resumed_at_step in (step, step + 1)
    assert told[0] <= again.resumed_at_step, "the step whose report was cut off is reported"
    assert is_equal(again, whole)
    assert again.curve.drop(TIMINGS).equals(whole.curve.drop(TIMINGS))
    assert again.best_epoch == whole.best_epoch
    assert again.best_validation_loss == whole.best_validation_loss
    assert again.seconds > 0


def test_with_the_newest_checkpoint_truncated_it_ends_the_same(tiny_base, tmp_path, whole, caplog):
    def cut(report):
        if report.step == 8:
            raise Killed

    with pytest.raises(Killed):
        train(tiny_base, on_step=cut, checkpoints=store(tmp_path))
    path = sorted(tmp_path.glob("step-*.safetensors"))[-1]
    path.write_bytes(path.read_bytes()[:1000])
    again = train(tiny_base, checkpoints=store(tmp_path))
    assert "resuming from the checkpoint" in caplog.text
    assert again.resumed_at_step == 7, "the one before"
    assert is_equal(again, whole)


def test_checkpoints_of_another_training_are_not_used(tiny_base, tmp_path, whole):
    train(tiny_base, keys={"seed": 8}, checkpoints=store(tmp_path, "another"))
    again = train(tiny_base, checkpoints=store(tmp_path))
    assert again.resumed_at_step == 0
    assert is_equal(again, whole)


def test_a_finished_training_whose_adapter_was_not_written_is_not_repeated(
    tiny_base, tmp_path, whole
):
    train(tiny_base, checkpoints=store(tmp_path))
    told = []
    again = train(tiny_base, on_step=told.append, checkpoints=store(tmp_path))
    assert again.resumed_at_step == 15
    assert [report.step for report in told] == [15]
    assert is_equal(again, whole)


def test_after_diverging_it_stops_at_the_same_batch_again_and_keeps_the_checkpoint(
    tiny_base, tmp_path, monkeypatch
):
    spec = make_spec(tiny_base, tmp_path, checkpoint_steps=1)
    real, limit = steps.distillation_loss, [7]

    def poisoned(*arguments, **options):
        loss = real(*arguments, **options)
        limit[0] -= 1
        if not limit[0]:  # the seventh batch: five of an epoch, its validation, and one more
            loss.total.data.fill_(float("nan"))
        return loss

    monkeypatch.setattr(steps, "distillation_loss", poisoned)
    with pytest.raises(DivergedError, match="step 6 of 15") as first:
        run_training(spec)
    limit[0] = 1 + 1  # goes on after step 5: the validation of its epoch, then the batch
    with pytest.raises(DivergedError, match="step 6 of 15") as second:
        run_training(spec)
    assert str(second.value) == str(first.value)
    assert all(
        torch.equal(value, second.value.last_good[name])
        for name, value in first.value.last_good.items()
    )
    monkeypatch.undo()
    mended = run_training(spec)
    provenance = json.loads((Path(mended.adapter) / "provenance.json").read_text())
    assert provenance["resumed_at_step"] == 5


def run_until(spec_path, line):
    """Start a training and kill it with SIGKILL once it logs `line`; None lets it end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "assets.students.train", "--spec", str(spec_path)],
        cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    seen = []
    for text in process.stderr:
        seen.append(text)
        if line is not None and line in text:
            process.send_signal(signal.SIGKILL)
    out = process.stdout.read()
    assert process.wait() == (0 if line is None else -signal.SIGKILL), "".join(seen)
    return out


def test_killed_with_kill_9_again_and_again_it_gives_the_same_adapter(tiny_base, tmp_path):
    reference = run_training(make_spec(tiny_base, tmp_path))
    spec = make_spec(tiny_base, tmp_path, checkpoint_steps=1)
    spec = spec.model_copy(update={"adapters_folder": tmp_path / "killed"})
    path = tmp_path / "spec.json"
    path.write_text(spec.model_dump_json())
    for line in ("step 2/15", "step 5/15", "step 11/15"):
        run_until(path, line)
        assert not list((tmp_path / "killed").glob("tiny@*")), "no half adapter"
    outcome = json.loads(run_until(path, None))
    assert Path(outcome["adapter"]).name == Path(reference.adapter).name
    assert read_curve(Path(outcome["adapter"])).equals(read_curve(Path(reference.adapter)))
    provenance = json.loads((Path(outcome["adapter"]) / "provenance.json").read_text())
    assert provenance["resumed_at_step"] >= 11
    assert not (tmp_path / "killed" / CHECKPOINTS).exists(), "removed with the adapter written"
