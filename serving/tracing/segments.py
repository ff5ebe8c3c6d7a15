"""Trace segments: append-only files that survive kill -9, one writer per process.

A segment is `<pid>-<start>-<n>.seg.open` while it is written and `.seg` once sealed; the writer
holds an exclusive flock on it, so an open segment nobody locks was left by a dead process. Records
that wait while an fsync runs share the next one: a record waits at most two.

Belongs here: making records durable. Does not belong here: the format and its reader (`frames`),
what a record says (`record`), turning segments into Parquet (`assets/traces`).
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import orjson

from serving.files import flush_to_disk
from serving.tracing.frames import FRAME as _FRAME
from serving.tracing.frames import (
    MAGIC,
    MAXIMUM_RECORD_BYTES,
    TornTail,
    read_frames,
    read_segment,
)
from serving.tracing.frames import find_frame as _find_frame  # noqa: F401  (compaction reads on)
from serving.tracing.record import TraceRecord

__all__ = ["SegmentWriter", "TornTail", "read_frames", "read_segment", "seal_abandoned"]

UNBORN_SUFFIX, OPEN_SUFFIX, SEALED_SUFFIX = ".seg.new", ".seg.open", ".seg"
_LOG = logging.getLogger(__name__)


class SegmentWriter:
    """Appends records durably. One per process and folder; used from one event loop.

    Args:
        folder: made when missing. Several processes may share it.
        seal_bytes: a segment at least this large is sealed and a new one begun.
        seal_seconds: so is a segment this old, also when no further record comes.
        patience_seconds: how long an append waits for a disk that hangs before it answers False.
        maximum_waiting: records that may wait; past it an append is lost at once, so a hanging disk
            cannot fill the memory.

    What cannot be written is counted, logged and never raised: the product answers without traces.
    `stored_count + lost_count` is the number of appends that are decided.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seal_bytes: int = 64 * 1024 * 1024,
        seal_seconds: float = 300.0,
        patience_seconds: float = 2.0,
        maximum_waiting: int = 10_000,
    ) -> None:
        """Write nothing yet: the first append opens the first segment."""
        self.stored_count = 0
        self.lost_count = 0
        self.is_losing = False
        self._patience_seconds = patience_seconds
        self._maximum_waiting = maximum_waiting
        self._file = _SegmentFile(folder, seal_bytes=seal_bytes, seal_seconds=seal_seconds)
        self._waiting: list[tuple[bytes, asyncio.Future[bool]]] = []
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="traces")
        self._seal_seconds = seal_seconds
        self._committer: asyncio.Task[None] | None = None
        self._sealing: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def append(self, record: TraceRecord | Mapping[str, object]) -> bool:
        """Write one record; True once it is on disk (fsynced), False when it is declared lost.

        When the disk hangs past the patience the answer is False although the record may still be
        stored; the counters follow the disk, not the patience.
        """
        frame = _write_frame(record)
        if frame is None or self._is_closed or len(self._waiting) >= self._maximum_waiting:
            self._count(1, is_stored=False)
            return False
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((frame, future))
        if self._committer is None or self._committer.done():
            self._committer = asyncio.create_task(self._commit_waiting())
        done, _ = await asyncio.wait({future}, timeout=self._patience_seconds)
        return future.result() if done else False

    async def close(self) -> None:
        """Refuse new records, wait for the waiting ones, seal the segment. May be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._sealing is not None:
            self._sealing.cancel()
        if self._committer is not None:
            await self._committer
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._disk, self._file.close)
        self._disk.shutdown(wait=False)

    async def _commit_waiting(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting, []
            frames = b"".join(frame for frame, _ in batch)
            is_stored = await loop.run_in_executor(self._disk, self._file.write, frames)
            self._count(len(batch), is_stored=is_stored)
            for _, future in batch:
                if not future.done():
                    future.set_result(is_stored)
        if self._sealing is None and not self._is_closed:
            self._sealing = loop.call_later(self._seal_seconds, self._seal_idle)

    def _seal_idle(self) -> None:
        self._sealing = None
        asyncio.get_running_loop().run_in_executor(self._disk, self._file.close)

    def _count(self, records: int, *, is_stored: bool) -> None:
        self.is_losing = not is_stored
        if is_stored:
            self.stored_count += records
        else:
            self.lost_count += records


class _SegmentFile:
    """The segment being written. Every method runs on the writer's one disk thread."""

    def __init__(self, folder: Path, *, seal_bytes: int, seal_seconds: float) -> None:
        self._folder = folder
        self._seal_bytes = seal_bytes
        self._seal_seconds = seal_seconds
        started = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        self._stem = f"{os.getpid()}-{started}"
        self._number = 0
        self._path: Path | None = None
        self._descriptor = -1
        self._durable_bytes = 0
        self._opened_at = 0.0
        self._is_failing = False

    def write(self, frames: bytes) -> bool:
        """Append and fsync; on failure undo, seal what is durable and return False."""
        try:
            if self._is_due():
                self.close()
            if self._path is None:
                self._open()
            _write_all(self._descriptor, frames)
            os.fsync(self._descriptor)
        except OSError:
            # Once for an outage: a line for every question would fill the disk that the log is on.
            if not self._is_failing:
                _LOG.exception("traces are being lost: cannot write to %s", self._folder)
            self._is_failing = True
            self._abandon()
            return False
        if self._is_failing:
            _LOG.warning("traces are stored again in %s", self._folder)
        self._is_failing = False
        self._durable_bytes += len(frames)
        return True

    def close(self) -> None:
        """Seal the open segment by rename; one without records is removed."""
        if self._path is None:
            return
        path, self._path = self._path, None
        try:
            if self._durable_bytes > len(MAGIC):
                _seal(path)
            else:
                path.unlink(missing_ok=True)
        except OSError:
            _LOG.exception("cannot seal %s; its records are safe", path)
        finally:
            # Unlocked last: whoever seals abandoned segments must not see this one before its name.
            with contextlib.suppress(OSError):
                os.close(self._descriptor)

    def _is_due(self) -> bool:
        if self._path is None:
            return False
        age = time.monotonic() - self._opened_at
        return self._durable_bytes >= self._seal_bytes or age >= self._seal_seconds

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._number += 1
        name = f"{self._stem}-{self._number:06d}"
        # Locked before it has the name `seal_abandoned` looks for, or that could seal it at once.
        path = self._folder / f"{name}{UNBORN_SUFFIX}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)
        self._path, self._durable_bytes, self._opened_at = path, 0, time.monotonic()
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _write_all(self._descriptor, MAGIC)
        self._path = path.rename(self._folder / f"{name}{OPEN_SUFFIX}")
        flush_to_disk(self._folder)
        self._durable_bytes = len(MAGIC)

    def _abandon(self) -> None:
        """Cut the segment back to what is durable and seal it: the next write begins another.

        After a failed fsync the kernel may have dropped pages it calls clean, so none is added.
        """
        if self._path is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._durable_bytes)
                os.fsync(self._descriptor)
        self.close()


def seal_abandoned(folder: Path) -> list[Path]:
    """Seal open segments that no living writer locks, and return their new paths.

    Nothing is cut: a torn last record stays where it is and `read_segment` reports it.
    """
    sealed = []
    for path in sorted(folder.glob(f"*{OPEN_SUFFIX}")):
        with contextlib.suppress(OSError), path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sealed.append(_seal(path))
    return sealed


def _write_frame(record: TraceRecord | Mapping[str, object]) -> bytes | None:
    try:
        payload = orjson.dumps(record if isinstance(record, TraceRecord) else dict(record))
    except TypeError:
        _LOG.exception("a trace record cannot be written as JSON")
        return None
    if len(payload) > MAXIMUM_RECORD_BYTES:
        _LOG.error("a trace record of %d bytes is over the limit", len(payload))
        return None
    return _FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def _write_all(descriptor: int, data: bytes) -> None:
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[os.write(descriptor, remaining) :]


def _seal(path: Path) -> Path:
    sealed = path.with_name(path.name.removesuffix(OPEN_SUFFIX) + SEALED_SUFFIX)
    path.rename(sealed)
    flush_to_disk(path.parent)
    return sealed
