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
        TraceError: the file is no segment, bytes before its last record are damaged, or a whole
            frame holds no JSON object. All records before that were yielded.
    """
    data = path.read_bytes()
    if not data.startswith(MAGIC) and not MAGIC.startswith(data):
        raise _damaged(path, 0, f"the header {MAGIC!r}", repr(data[: len(MAGIC)]))
    offset = min(len(MAGIC), len(data)) if len(data) >= len(MAGIC) else 0
    while offset < len(data):
        payload = read_payload(data, offset)
        if payload is None:
            _end_or_raise(path, data, offset, on_torn)
            return
        record = parse_record(payload)
        if record is None:
            # Its checksum says that these bytes were written: it is no torn tail, wherever it is.
            found = f"{len(payload)} bytes with a right CRC32 that are none: {payload[:20]!r}"
            raise _damaged(path, offset, "a frame that holds a JSON object", found)
        yield offset, record
        offset += FRAME.size + len(payload)


def read_payload(data: bytes | bytearray, offset: int) -> bytes | None:
    """Return the bytes of the frame at `offset`, or None where no whole frame is."""
    start = offset + FRAME.size
    if start > len(data):
        return None
    length, checksum = FRAME.unpack_from(data, offset)
    end = start + length
    # A length of 0 is refused: a run of zeros, as a crash leaves them, would be valid empty frames.
    if not 0 < length <= MAXIMUM_RECORD_BYTES or end > len(data):
        return None
    payload = bytes(data[start:end])
    return payload if zlib.crc32(payload) == checksum else None


def parse_record(payload: bytes) -> dict[str, Any] | None:
    """Return the record that a frame holds, or None where its bytes are no JSON object."""
    try:
        record = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None
    return record if isinstance(record, dict) else None


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
    """Return the offset of the next record at or after `position`: JSON objects begin `{"`."""
    start = data.find(b'{"', position + FRAME.size)
    while start != -1:
        payload = read_payload(data, start - FRAME.size)
        if payload is not None and parse_record(payload) is not None:
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
