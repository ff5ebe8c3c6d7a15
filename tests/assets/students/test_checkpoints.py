"""Checkpoints are whole or not taken, and never another training's."""

import errno
import multiprocessing
import resource
import signal

import pytest
import torch

from assets.students import checkpoints
from assets.students.checkpoints import (
    Checkpoint,
    Checkpoints,
    decode_checkpoint,
    encode_checkpoint,
    hold_folder,
)


def make(step, size=10):
    tensors = {"weights/a": torch.arange(size) + step * 0.5, "optimizer.step/a": torch.tensor(1.5)}
    return Checkpoint(step=step, tensors=tensors, progress={"curve": [{"loss": 0.1 + step}]})


def store(folder, identity="mine", **options):
    return Checkpoints(folder, identity, **({"seconds": 1e9, "steps": 1} | options))


def save(kept, *steps):
    for step in steps:
        kept.save_if_due(step, lambda step=step: make(step))


def read_step(kept):
    data = kept.read_latest()
    return decode_checkpoint(data).step if data else None


def newest(folder):
    return sorted(folder.glob("step-*.safetensors"))[-1]


def test_what_is_written_is_read_back_to_the_last_bit():
    given = make(3)
    found = decode_checkpoint(encode_checkpoint(given, "mine"))
    assert (found.step, found.progress) == (3, given.progress)
    assert found.tensors.keys() == given.tensors.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in given.tensors.items())


def test_the_newest_is_read_and_two_are_kept(tmp_path):
    assert read_step(store(tmp_path / "none")) is None
    save(store(tmp_path), 1, 2, 10)
    assert read_step(store(tmp_path)) == 10
    assert len(list(tmp_path.iterdir())) == 2
    store(tmp_path).clear()
    assert not tmp_path.exists()


@pytest.mark.parametrize("harm", ["cut", "emptied", "a bit"])
def test_a_damaged_one_is_set_aside_with_a_warning_and_the_one_before_it_is_taken(
    tmp_path, caplog, harm
):
    save(store(tmp_path), 1, 2)
    path = newest(tmp_path)
    data = bytearray(path.read_bytes())
    if harm == "a bit":
        data[-1] ^= 1
    path.write_bytes(data[: {"cut": len(data) // 2, "emptied": 0, "a bit": None}[harm]])
    assert read_step(store(tmp_path)) == 1
    message = caplog.text
    assert f"resuming from the checkpoint {path}" in message
    assert path.stem.rpartition("-")[2] in message, "what was expected"
    assert "the checkpoint before it" in message
    assert path.with_name(path.name + ".damaged").exists(), "kept for whoever looks for the cause"
    save(store(tmp_path), 2)
    assert read_step(store(tmp_path)) == 2


def test_with_all_damaged_it_starts_anew(tmp_path, caplog):
    save(store(tmp_path), 1, 2)
    for path in tmp_path.glob("step-*"):
        path.write_bytes(b"cut")
    assert read_step(store(tmp_path)) is None
    assert caplog.text.count("resuming from the checkpoint") == 2


def test_one_of_another_training_is_never_taken(tmp_path, caplog):
    save(store(tmp_path, "mine"), 1)
    save(store(tmp_path, "another"), 2)
    assert read_step(store(tmp_path, "mine")) == 1
    assert "training mine" in caplog.text
    assert "training another" in caplog.text
    assert newest(tmp_path).name.startswith("step-00000002"), "and it is left alone"


def test_they_are_written_by_time_and_by_steps(tmp_path):
    by_time = store(tmp_path / "time", seconds=0.0, steps=None)
    checkpoints_written = []
    by_time.save_if_due(1, lambda: checkpoints_written.append(1) or make(1))
    assert read_step(by_time) == 1
    never = store(tmp_path / "never", steps=None)
    save(never, 1, 2)
    assert read_step(never) is None
    seldom = store(tmp_path / "seldom", steps=3)
    save(seldom, 1, 2, 3, 4)
    assert read_step(seldom) == 3


def test_writing_never_takes_more_than_its_share_of_the_time(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "perf_counter", lambda: now[0])
    kept = store(tmp_path, seconds=30.0, steps=None)
    written = []

    def slow(step):
        now[0] += 2.0  # a large adapter on a slow disk
        written.append(step)
        return make(step)

    for step in range(1, 1001):
        now[0] += 1.0
        kept.save_if_due(step, lambda step=step: slow(step))
    assert written[0] == 30
    assert 2.0 * len(written) / now[0] <= 0.012
    assert len(written) > 3


def test_a_full_disk_stops_nothing_and_loses_nothing(tmp_path, caplog):
    """The system refuses the bytes of a large checkpoint, as it does on a full disk."""
    kept = store(tmp_path)
    save(kept, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        kept.save_if_due(2, lambda: make(2, size=10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "writing a checkpoint after step 2" in caplog.text
    assert f"[Errno {errno.EFBIG}]" in caplog.text
    assert "free some space" in caplog.text
    assert [path.name[:13] for path in tmp_path.iterdir()] == ["step-00000001"]
    save(kept, 3)
    assert read_step(kept) == 3


def _hold(folder, log, name, has_checkpoint):
    with hold_folder(folder):
        log.put(f"{name} in")
        if has_checkpoint:
            save(store(folder), 1)
        log.put(f"{name} out")


def test_two_trainings_of_one_adapter_take_turns(tmp_path):
    """The second waits, also while the first removes the folder that both lock in."""
    spawn = multiprocessing.get_context("spawn")
    folder, log = tmp_path / ".checkpoints" / "tiny-k", spawn.Queue()
    with hold_folder(folder):
        other = spawn.Process(target=_hold, args=(folder, log, "other", False))
        other.start()
        other.join(timeout=0.5)
        assert other.is_alive(), "it waits"
        assert log.empty()
        checkpoints.shutil.rmtree(folder)
    assert [log.get(timeout=60), log.get(timeout=60)] == ["other in", "other out"]
    other.join()
    assert list(tmp_path.iterdir()) == [], "nothing is left of a training without a checkpoint"


def test_a_held_folder_keeps_its_checkpoints(tmp_path):
    folder = tmp_path / ".checkpoints" / "tiny-k"
    with hold_folder(folder):
        save(store(folder), 1)
    assert read_step(store(folder)) == 1


def test_an_error_while_the_folder_is_held_is_the_one_that_is_seen(tmp_path):
    with pytest.raises(FileNotFoundError, match="the base is gone"), hold_folder(tmp_path / "a"):
        raise FileNotFoundError("the base is gone")
