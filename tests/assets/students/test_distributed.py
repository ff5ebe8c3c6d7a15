"""Two processes under torchrun follow the curve of one, and only the first of them writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from safetensors.torch import load_file

from assets.students.batches import make_examples, plan_epoch
from assets.students.checkpoints import CHECKPOINTS
from assets.students.distributed import Workers, _require_a_gpu_each
from assets.students.soft_rows import find_byte_order
from assets.students.train import make_command, run_training
from serving.errors import InvalidInputError
from tests.assets.students.soft_table import SOFT, write_soft_table
from tests.assets.students.training_cases import make_frame, make_recipe, make_spec
from tests.tiny_student import make_tokenizer

ROOT = Path(__file__).parents[3]


def test_alone_everything_is_ones_own():
    alone = Workers()
    assert alone.is_first
    assert alone.take_share([1, 2, 3]) == [1, 2, 3]
    assert alone.sum_numbers([1.5, 2.0]) == [1.5, 2.0]
    assert alone.share(lambda: b"mine") == b"mine"


def test_shares_cover_a_batch_once_and_may_be_empty():
    shares = [Workers(rank=rank, count=3).take_share(range(5)) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == [0, 1, 2, 3, 4]
    assert list(Workers(rank=1, count=2).take_share([1])) == []


def test_a_process_without_a_gpu_of_its_own_is_an_error():
    _require_a_gpu_each(1, 2)
    with pytest.raises(InvalidInputError, match=r"process 3 on a machine with 2.*`processes`"):
        _require_a_gpu_each(2, 2)


def test_one_process_needs_no_launcher_and_more_are_torchruns():
    assert make_command(Path("s.json"), 1) == [
        sys.executable, "-m", "assets.students.train", "--spec", "s.json",
    ]  # fmt: skip
    assert "torch.distributed.run" in make_command(Path("s.json"), 2)


def test_the_number_of_processes_does_not_make_another_training():
    one = make_recipe()
    assert make_recipe(processes=4, micro_batch_size=2).fingerprint == one.fingerprint
    assert make_recipe(patience=1).fingerprint != one.fingerprint
    assert make_recipe(max_validation_examples=2).fingerprint != one.fingerprint


def launch(spec, folder, command=None):
    path = folder / "spec.json"
    path.write_text(spec.model_dump_json())
    return subprocess.run(
        command or make_command(path, 2), cwd=ROOT, capture_output=True, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    outcome = run_training(make_spec(tiny_base, folder, keys={"batch_size": 3}))
    return Path(outcome.adapter)


def test_two_processes_follow_the_curve_of_one(tiny_base, tmp_path, alone):
    """With 20 examples in threes, the last batch of an epoch splits unevenly."""
    spec = make_spec(tiny_base, tmp_path, keys={"batch_size": 3, "processes": 2})
    done = launch(spec, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.strip().splitlines()
    folder = Path(json.loads(line)["adapter"])
    assert list(spec.adapters_folder.iterdir()) == [folder], "one writer, and nothing beside it"
    one = pl.read_parquet(alone / "training_curve.parquet")
    two = pl.read_parquet(folder / "training_curve.parquet")
    assert two.height == one.height == 21
    for column in ("loss", "hard_loss", "validation_loss"):
        assert two[column].to_list() == pytest.approx(one[column].to_list(), abs=1e-4), column
    assert two["grad_norm"].to_list() == pytest.approx(one["grad_norm"].to_list(), rel=1e-2)
    expected, found = (load_file(f / "adapter_model.safetensors") for f in (alone, folder))
    assert all((found[name] - value).abs().max() < 1e-2 for name, value in expected.items())
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["process_count"] == 2
    assert provenance["training_key"] == json.loads((alone / "provenance.json").read_text())[
        "training_key"
    ]  # fmt: skip
    assert done.stderr.count("step 21/21") == 1, "one process reports"
    again = launch(spec, tmp_path)
    assert json.loads(again.stdout)["is_reused"], "both processes learn that it is there"


def name_kinds(logprobs, keys):
    """Return the kinds of soft targets that each of two processes meets, batch by batch."""
    byte_order = find_byte_order(logprobs, make_tokenizer(), len(make_tokenizer()))
    frame, recipe = make_frame().filter(split="train"), make_recipe(**keys)
    examples = make_examples(frame, logprobs, recipe, "another", byte_order=byte_order)
    batches = plan_epoch(examples, recipe.batch_size, recipe.seed, 1)
    workers = [Workers(rank=rank, count=2) for rank in (0, 1)]
    return [
        [{type(e.soft).__name__ for e in worker.take_share(batch)} for worker in workers]
        for batch in batches
    ]


def test_two_processes_follow_the_curve_of_one_with_soft_targets_of_some_examples(
    tiny_base, tmp_path
):
    logprobs, keys = write_soft_table(tmp_path), {"batch_size": 3, **SOFT}
    kinds = name_kinds(pl.read_parquet(logprobs), keys)
    assert [{"GroupRows"}, {"SoftRows"}] in kinds, "each process has another kind"
    assert [{"NoneType"}, {"GroupRows"}] in kinds, "one process has none at all"
    specs = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        keys["processes"] = count
        specs.append(make_spec(tiny_base, folder, keys=keys, logprobs=logprobs))
    done = launch(specs[1], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    folders = run_training(specs[0]).adapter, json.loads(done.stdout)["adapter"]
    one, two = (pl.read_parquet(Path(f) / "training_curve.parquet") for f in folders)
    for column in ("loss", "hard_loss", "soft_loss", "validation_loss"):
        assert two[column].to_list() == pytest.approx(one[column].to_list(), abs=1e-4), column
    assert one["soft_loss"].drop_nulls().len() > 0


def test_what_one_process_began_two_can_end(tiny_base, tmp_path, alone):
    spec = make_spec(tiny_base, tmp_path, keys={"batch_size": 3}, checkpoint_steps=1)

    def cut(report):
        if report.step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(spec, cut)
    assert (spec.adapters_folder / CHECKPOINTS).exists()
    done = launch(spec, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = Path(json.loads(done.stdout)["adapter"])
    assert json.loads((folder / "provenance.json").read_text())["resumed_at_step"] >= 9
    one = pl.read_parquet(alone / "training_curve.parquet")
    two = pl.read_parquet(folder / "training_curve.parquet")
    assert two["loss"].to_list() == pytest.approx(one["loss"].to_list(), abs=1e-4)


def test_an_error_ends_both_processes_with_its_message(tiny_base, tmp_path):
    spec = make_spec(tiny_base, tmp_path).model_copy(update={"base_hash": "0" * 64})
    done = launch(spec, tmp_path)
    assert done.returncode != 0
    assert "opening the base model" in done.stderr
    assert not list(tmp_path.glob("adapters/tiny@*"))


DIVERGING = """
import math, sys, time
from assets.students import adapters, steps, train

real, keep = steps.distillation_loss, adapters.keep_diverged

def poisoned(*arguments, **options):
    loss = real(*arguments, **options)
    loss.total.data.fill_(math.nan)
    return loss

def keep_slowly(*arguments):
    time.sleep(3)
    keep(*arguments)

steps.distillation_loss, adapters.keep_diverged = poisoned, keep_slowly
sys.exit(train.main(["--spec", sys.argv[1]]))
"""


def test_no_process_ends_before_what_diverged_is_kept(tiny_base, tmp_path):
    """torchrun ends all of them when one ends, and the first is still writing."""
    script = tmp_path / "diverging.py"
    script.write_text(DIVERGING)
    spec = make_spec(tiny_base, tmp_path, keys={"processes": 2})
    command = make_command(tmp_path / "spec.json", 2)
    start = command[: command.index("-m", command.index("--nproc-per-node"))]
    done = launch(spec, tmp_path, [*start, str(script), str(tmp_path / "spec.json")])
    assert done.returncode != 0
    assert "training step 1 of" in done.stderr, done.stderr[-3000:]
    (kept,) = (spec.adapters_folder / ".diverged").iterdir()
    good = load_file(kept / "last_good.safetensors")
    assert good
    assert all(value.isfinite().all() for value in good.values())
    assert not list(spec.adapters_folder.glob("tiny@*"))
