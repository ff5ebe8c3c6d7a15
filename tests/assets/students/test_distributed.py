"""Two processes under torchrun follow the curve of one, and only the first of them writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from safetensors.torch import load_file

from assets.students.checkpoints import CHECKPOINTS
from assets.students.distributed import Workers, _require_a_gpu_each
from assets.students.train import make_command, run_training
from serving.errors import InvalidInputError
from tests.assets.students.training_cases import make_recipe, make_spec

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


def launch(spec, folder):
    path = folder / "spec.json"
    path.write_text(spec.model_dump_json())
    return subprocess.run(
        make_command(path, 2), cwd=ROOT, capture_output=True, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
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
