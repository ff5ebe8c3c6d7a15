"""A group of segments as rows with their hour, and what of it cannot be read.

Belongs here: opening segments, giving each record its hour, telling what has none. Does not belong
here: bytes (`frames`), types (`records`), where rows go (`compaction`).
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import polars as pl

from assets import tables
from assets.traces.frames import NEWER_FORMAT, Damage, Frames, read_frames
from assets.traces.ledger import hash_segment
from assets.traces.records import tabulate_payloads
from serving.tracing.frames import FRAME, parse_record

UNREADABLE = "unreadable"
WAITING = rf"^({UNREADABLE}|{NEWER_FORMAT})"
"""Reasons, as a pattern, of segments that a later run may still read."""

UNSTORED = frozenset({"no_time", "not_json"})
"""Reasons of whole frames that are in no hour."""

TIMED = pl.Schema({**tables.STORED_TRACES, "hour": pl.Datetime("us", "UTC")})


def read_ahead(
    groups: Sequence[Sequence[Path]],
) -> Iterator[tuple[pl.DataFrame, list[Damage], list[Frames]]]:
    """Yield `read_group` of each; the next one is being read while one is in use.

    Checking records holds one core, writing them the other.
    """
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read_group, groups[0])
        for following in groups[1:]:
            found, ahead = ahead.result(), reader.submit(read_group, following)
            yield found
        yield ahead.result()


def read_group(group: Sequence[Path]) -> tuple[pl.DataFrame, list[Damage], list[Frames]]:
    """Return a group's rows with their hour, its damage, and its frames without the payloads."""
    read = [_read_patiently(path) for path in group]
    tabulated = [_tabulate(frames) for frames in read if frames.payloads]
    rows = pl.concat(tabulated) if tabulated else pl.DataFrame(schema=TIMED)
    untimed = _describe_untimed(read, rows.filter(pl.col("hour").is_null()))
    damages = [damage for frames in read for damage in frames.damages] + untimed
    odd = {damage.segment for damage in untimed}
    bare = [
        replace(
            frames, payloads=(), sha256=hash_segment(path) if path.name in odd else frames.sha256
        )
        for path, frames in zip(group, read, strict=True)
    ]
    return rows.filter(pl.col("hour").is_not_null()), damages, bare


def _tabulate(frames: Frames) -> pl.DataFrame:
    """Return stored rows with their hour: of `asked_at`, or of the uuid7 where that is unread."""
    frame = tabulate_payloads(frames.payloads).with_columns(
        pl.lit(frames.segment).alias("segment"),
        pl.Series("segment_offset", frames.offsets, dtype=pl.Int64),
    )
    digits = pl.col("trace_id").str.replace_all("-", "").str.slice(0, 12)
    is_uuid7 = pl.col("trace_id").str.contains(r"^[0-9a-f]{8}-[0-9a-f]{4}-7")
    made_ms = pl.when(is_uuid7).then(digits.str.to_integer(base=16, strict=False))
    made_at = pl.from_epoch(made_ms.cast(pl.Int64), time_unit="ms")
    made_at = made_at.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    hour = pl.coalesce("asked_at", made_at).dt.truncate("1h").alias("hour")
    return frame.with_columns(hour).select(TIMED.names())


def _describe_untimed(read: Sequence[Frames], untimed: pl.DataFrame) -> list[Damage]:
    """Return the whole frames that have no hour: records without a time, and what is no record."""
    payloads = {
        (frames.segment, offset): payload
        for frames in read if frames.segment in set(untimed["segment"])
        for offset, payload in zip(frames.offsets, frames.payloads, strict=True)
    }  # fmt: skip
    return [
        Damage(
            segment=segment,
            offset=offset,
            size_bytes=FRAME.size + len(payloads[segment, offset]),
            reason="not_json" if parse_record(payloads[segment, offset]) is None else "no_time",
        )
        for segment, offset in untimed.select("segment", "segment_offset").iter_rows()
    ]


def _read_patiently(path: Path) -> Frames:
    """Return a segment's frames; a file that cannot be opened now is tried again next time."""
    try:
        return read_frames(path)
    except OSError as error:
        damage = Damage(
            segment=path.name,
            offset=0,
            size_bytes=0,
            reason=f"{UNREADABLE}: {error.strerror or error}",
            is_final=False,
        )
        return Frames(
            segment=path.name,
            size_bytes=0,
            offsets=(),
            payloads=(),
            redacted_offsets=(),
            damages=(damage,),
        )
