"""Segment files read back: frames, torn tails, damage.

A file is the 8-byte header, then frames: 4 bytes length, 4 bytes CRC32 of the JSON (both
little-endian), the JSON. Belongs here: the format and its reader. Does not belong here: making
records durable (`segments`), what a record says (`record`).
"""

import logging
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from serving.errors import TraceError

MAGIC = b"USTRACE\x01"  # the last byte is the version of the format
MAXIMUM_RECORD_BYTES = 4 * 1024 * 1024
FRAME = struct.Struct("<II")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TornTail:
    """The unfinished end of a segment whose writer died: never reported persisted."""

    path: Path
    offset: int
    lost_bytes: int


def read_segment(
    path: Path, *, on_torn: Callable[[TornTail], None] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the records of a segment, open or sealed. See `read_frames` for errors."""
    for _, record in read_frames(path, on_torn=on_torn):
        yield record


def read_frames(
    path: Path, *, on_torn: Callable[[TornTail], None] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (offset, record). A torn last record is logged and given to `on_torn`.

    Raises:
        TraceError: the file is no segment, or bytes before its last record are damaged. All
            records before the damage were yielded.
    """
    data = path.read_bytes()
    if not data.startswith(MAGIC) and not MAGIC.startswith(data):
        raise _damaged(path, 0, f"the header {MAGIC!r}", repr(data[: len(MAGIC)]))
    offset = min(len(MAGIC), len(data)) if len(data) >= len(MAGIC) else 0
    while offset < len(data):
        record, end = _read_frame(data, offset)
        if record is None:
            _end_or_raise(path, data, offset, on_torn)
            return
        yield offset, record
        offset = end


def _read_frame(data: bytes, offset: int) -> tuple[dict[str, Any] | None, int]:
    """Return the record at `offset` and the next offset; (None, offset) if it is not whole."""
    start = offset + FRAME.size
    if start > len(data):
        return None, offset
    length, checksum = FRAME.unpack_from(data, offset)
    end = start + length
    # A length of 0 is refused: a run of zeros, as a crash leaves them, would be valid empty frames.
    if not 0 < length <= MAXIMUM_RECORD_BYTES or end > len(data):
        return None, offset
    payload = data[start:end]
    if zlib.crc32(payload) != checksum:
        return None, offset
    record = orjson.loads(payload)
    return (record, end) if isinstance(record, dict) else (None, offset)


def _end_or_raise(
    path: Path, data: bytes, offset: int, on_torn: Callable[[TornTail], None] | None
) -> None:
    """Tell a torn tail from damage: after damage in the middle a whole record still follows."""
    following = find_frame(data, offset + 1)
    if following is not None:
        raise _damaged(
            path,
            offset,
            "a frame whose CRC32 matches",
            f"a damaged frame, and a whole one again at offset {following}",
        )
    torn = TornTail(path=path, offset=offset, lost_bytes=len(data) - offset)
    _LOG.warning("%s ends in a torn record at offset %d", path, offset)
    if on_torn is not None:
        on_torn(torn)


def find_frame(data: bytes, position: int) -> int | None:
    """Return the offset of the next whole frame at or after `position`: JSON objects begin `{"`."""
    start = data.find(b'{"', position + FRAME.size)
    while start != -1:
        record, _ = _read_frame(data, start - FRAME.size)
        if record is not None:
            return start - FRAME.size
        start = data.find(b'{"', start + 1)
    return None


def _damaged(path: Path, offset: int, expected: str, found: str) -> TraceError:
    return TraceError(
        f"reading the trace segment {path} at offset {offset}",
        expected=expected,
        found=found,
        next_step="keep the file aside; the records before that offset are good",
    )
