"""Checkpoints of a training: written whole, named by their content, never taken for another's.

One safetensors file holds the tensors, and its header the rest as JSON. The order of examples is a
function of seed and epoch, so there is no generator to keep. Belongs here: the files, when they are
written, which one is trusted. Does not belong here: what is in them (`training`).
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.errors import HashMismatchError
from serving.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("understudy.train")

CHECKPOINTS = ".checkpoints"
CHECKPOINT_SECONDS = 60.0
MAXIMUM_TIME_RATIO = 0.01  # of the training's time that writing checkpoints may take
KEPT_COUNT = 2  # the newest, and the one before it should the newest be damaged
DAMAGED_SUFFIX = ".damaged"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a training after a step. `progress` is what JSON can say of it."""

    step: int
    tensors: "dict[str, Tensor]"
    progress: dict[str, Any]


def encode_checkpoint(checkpoint: Checkpoint, identity: str) -> bytes:
    """Return a checkpoint as the bytes of one safetensors file."""
    from safetensors.torch import save

    tensors = {
        name: value.detach().cpu().contiguous() for name, value in checkpoint.tensors.items()
    }
    progress = json.dumps({"step": checkpoint.step} | checkpoint.progress)
    return save(tensors, metadata={"identity": identity, "progress": progress})


def decode_checkpoint(data: bytes) -> Checkpoint:
    """Return the checkpoint that `encode_checkpoint` wrote."""
    from safetensors.torch import load

    progress = json.loads(_read_header(data)["progress"])
    return Checkpoint(step=progress.pop("step"), tensors=load(data), progress=progress)


class Checkpoints:
    """The checkpoints of one training, in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        identity: str,
        *,
        seconds: float = CHECKPOINT_SECONDS,
        steps: int | None = None,
    ) -> None:
        """Take the folder and what makes two trainings the same.

        Args:
            folder: of this training; made with the first checkpoint.
            identity: of everything that decides the weights; a file of another one is not read.
            seconds: between two checkpoints, longer where writing one takes long.
            steps: write after every so many steps too, whatever it costs.
        """
        self._folder = folder
        self._identity = identity
        self._seconds = seconds
        self._steps = steps
        self._saved_at = time.perf_counter()
        self._pause = seconds

    def read_latest(self) -> bytes:
        """Return the newest whole checkpoint of this training, or nothing.

        A damaged one is set aside with a warning, and the one before it is taken.
        """
        for path in sorted(self._folder.glob("step-*.safetensors"), reverse=True):
            data = path.read_bytes()
            expected, found = path.stem.rpartition("-")[2], _name_content(data)
            if expected == found and _read_header(data).get("identity") == self._identity:
                return data
            is_damaged = expected != found
            error = HashMismatchError(
                f"resuming from the checkpoint {path}",
                expected=f"content {expected}" if is_damaged else f"training {self._identity}",
                found=f"{found} ({len(data)} bytes)"
                if is_damaged
                else f"training {_read_header(data).get('identity')}",
                next_step="nothing to do: training goes on from the checkpoint before it, or anew",
            )
            logger.warning("%s", error)
            if is_damaged:
                path.rename(path.with_name(path.name + DAMAGED_SUFFIX))
        return b""

    def save_if_due(self, step: int, make: Callable[[], Checkpoint]) -> None:
        """Write a checkpoint if it is time to; a disk that takes none stops nothing."""
        started_at = time.perf_counter()
        is_step = self._steps is not None and step % self._steps == 0
        if not is_step and started_at - self._saved_at < self._pause:
            return
        try:
            self._write(make())
        except OSError as error:
            logger.warning(
                "writing a checkpoint after step %d to %s: expected room and leave to write, "
                "found %s; training goes on, and an interruption now costs the steps since the "
                "checkpoint before: free some space",
                step, self._folder, error,
            )  # fmt: skip
        self._saved_at = time.perf_counter()
        self._pause = max(self._seconds, (self._saved_at - started_at) / MAXIMUM_TIME_RATIO)

    def clear(self) -> None:
        """Remove the checkpoints: the training is finished."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, checkpoint: Checkpoint) -> None:
        data = encode_checkpoint(checkpoint, self._identity)
        written = self._folder / f"step-{checkpoint.step:08d}-{_name_content(data)}.safetensors"
        with atomic_path(written) as temporary:
            temporary.write_bytes(data)
        found = sorted(self._folder.glob("step-*.safetensors"))
        # Those of later steps are of another training (another precision): this one passed them by.
        kept = [path for path in found if path <= written][-KEPT_COUNT:]
        for path in set(found) - set(kept):
            path.unlink()


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Let one process at a time train into a folder; a second one waits for the first.

    The system lets go of the lock of a killed process, so there are no stale ones. A folder that
    holds no checkpoint in the end is removed.
    """
    with _lock(folder / "lock"):
        try:
            yield
        finally:
            if not any(folder.glob("step-*")):
                shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another training's folder is in it
                folder.parent.rmdir()


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stream = stack.enter_context(path.open("a"))
            except FileNotFoundError:  # its folder was removed under us
                continue
            _wait_for(stream.fileno(), path)
            is_same = False
            with contextlib.suppress(FileNotFoundError):
                is_same = path.stat().st_ino == os.fstat(stream.fileno()).st_ino
            if is_same:
                yield
                return


def _wait_for(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.warning("another process trains this very adapter (%s): waiting for it", path)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _name_content(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _read_header(data: bytes) -> dict[str, str]:
    """Return the text part of a safetensors file: 8 bytes of length, then JSON."""
    length = int.from_bytes(data[:8], "little")
    header: dict[str, dict[str, str]] = json.loads(data[8 : 8 + length])
    return header.get("__metadata__", {})
