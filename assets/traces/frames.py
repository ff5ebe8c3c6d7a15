"""The frames of a segment, past damage, and taking one out without moving the others.

`serving/tracing/frames.py` owns the format and reads up to the first damage; here what lies
behind damage is found as well, and what cannot be read is told, never raised. Belongs here: walking
and redacting bytes. Does not belong here: what a record says (`records`), where it goes
(`compaction`).
"""

import hashlib
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from serving.files import PRIVATE_MODE, atomic_path
from serving.tracing.frames import FRAME, MAGIC, MAXIMUM_RECORD_BYTES, find_frame, read_payload

REDACTED_PREFIX = b'{"deleted":true'
FORMAT_NAME = MAGIC[:-1]
NEWER_FORMAT = "newer_format"
TORN_TAIL = "torn_tail"


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Bytes of a segment that hold no record. `is_final`: no later release will read them."""

    segment: str
    offset: int
    size_bytes: int
    reason: str
    is_final: bool = True


@dataclass(frozen=True, kw_only=True)
class Frames:
    """What a segment holds: payloads with their offsets, where redacted ones are, and damage.

    `sha256` is of the whole file where there is damage: other bytes later are worth reading.
    """

    segment: str
    size_bytes: int
    offsets: tuple[int, ...]
    payloads: tuple[bytes, ...]
    redacted_offsets: tuple[int, ...]
    damages: tuple[Damage, ...]
    sha256: str | None = None


def read_frames(path: Path) -> Frames:
    """Return every whole frame of a segment.

    Reasons of damage: `newer_format` and `not_a_segment` (the whole file), `damaged` (bytes with a
    whole frame behind them), `torn_tail` (the end of a segment whose writer died in a write, which
    was never reported persisted).
    """
    data = path.read_bytes()
    if not data.startswith(MAGIC):
        return _refuse_header(path, data)
    offsets, payloads, damages, redacted = [], [], [], []
    position = len(MAGIC)
    while position < len(data):
        payload = read_payload(data, position)
        if payload is None:
            following = find_frame(data, position + 1)
            end = len(data) if following is None else following
            reason = TORN_TAIL if following is None else "damaged"
            damages.append(_describe(path, position, end - position, reason))
            position = end
            continue
        if payload.startswith(REDACTED_PREFIX):
            redacted.append(position)
        else:
            offsets.append(position)
            payloads.append(payload)
        position += FRAME.size + len(payload)
    return Frames(
        segment=path.name,
        size_bytes=len(data),
        offsets=tuple(offsets),
        payloads=tuple(payloads),
        redacted_offsets=tuple(redacted),
        damages=tuple(damages),
        sha256=hashlib.sha256(data).hexdigest() if damages else None,
    )


def find_unredacted(path: Path, offsets: Collection[int]) -> list[int]:
    """Return those of `offsets` at which a record can still be read; no other byte is read."""
    found = []
    with path.open("rb") as file:
        for offset in sorted(offsets):
            file.seek(offset)
            header = file.read(FRAME.size)
            size = FRAME.unpack(header)[0] if len(header) == FRAME.size else 0
            payload = read_payload(header + file.read(min(size, MAXIMUM_RECORD_BYTES)), 0)
            if payload is not None and not payload.startswith(REDACTED_PREFIX):
                found.append(offset)
    return found


def redact_frames(path: Path, offsets: Collection[int]) -> None:
    """Overwrite the records at `offsets` by blanks of equal length, atomically.

    The file keeps its name, its size and the offsets of all other records: what was compacted by
    (segment, offset) stays compacted, and the identity of the sealed segments stays the same.
    """
    data = bytearray(path.read_bytes())
    for offset in offsets:
        payload = read_payload(data, offset)
        if payload is None or payload.startswith(REDACTED_PREFIX):
            continue
        blank = REDACTED_PREFIX + b" " * (len(payload) - len(REDACTED_PREFIX) - 1) + b"}"
        frame = FRAME.pack(len(blank), zlib.crc32(blank)) + blank
        data[offset : offset + len(frame)] = frame
    with atomic_path(path) as temporary:
        temporary.chmod(PRIVATE_MODE)
        temporary.write_bytes(data)


def _refuse_header(path: Path, data: bytes) -> Frames:
    if MAGIC.startswith(data):  # killed before the header was whole: nothing was in it
        damages = (_describe(path, 0, len(data), TORN_TAIL),) if data else ()
    else:
        is_newer = data.startswith(FORMAT_NAME)
        reason = NEWER_FORMAT if is_newer else "not_a_segment"
        damages = (_describe(path, 0, len(data), reason, is_final=not is_newer),)
    return Frames(
        segment=path.name,
        size_bytes=len(data),
        offsets=(),
        payloads=(),
        redacted_offsets=(),
        damages=damages,
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _describe(path: Path, offset: int, size: int, reason: str, *, is_final: bool = True) -> Damage:
    return Damage(
        segment=path.name, offset=offset, size_bytes=size, reason=reason, is_final=is_final
    )
