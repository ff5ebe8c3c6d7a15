"""What compaction notes of the segments it read: that they are done, and what of them is damaged.

Belongs here: the rows of the ledger and of the quarantine about segments, and their order. Does not
belong here: the files of both (`ledger`), what is told of damaged hours (`mending`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from assets import tables
from assets.traces.frames import Damage, Frames
from assets.traces.groups import UNSTORED
from assets.traces.ledger import (
    LEDGER,
    count_offsets,
    read_ledger,
    read_quarantine,
    write_ledger,
    write_quarantine,
)
from assets.traces.mending import DECLARED, TAKEN


def note_read(
    folder: Path,
    read: Sequence[Frames],
    damages: Sequence[Damage],
    deleted: Mapping[str, Sequence[int]],
) -> None:
    """Note segments whose rows are in the hours by now.

    A crash anywhere has them read again. Of one that was known before, the damage is told last:
    while the old one is told, its bytes are others. Of a new one the ledger is written last: while
    it is not there, the segment is new.

    Args:
        folder: where hours, ledger and quarantine lie.
        read: the segments, without their payloads.
        damages: what of them could not be read.
        deleted: offsets by segment of the records that deletions took just now.
    """
    known = {*read_ledger(folder)["segment"]}
    _write_ledger(folder, [one for one in read if one.segment in known], damages, deleted)
    _write_damages(folder, read, damages)
    _write_ledger(folder, [one for one in read if one.segment not in known], damages, deleted)


def _write_damages(folder: Path, read: Sequence[Frames], damages: Sequence[Damage]) -> None:
    """Tell what could not be read of segments, in place of what was told of them before."""
    earlier = read_quarantine(folder)
    hashes = {frames.segment: frames.sha256 for frames in read}
    rows = [
        {
            "segment": damage.segment,
            "segment_offset": damage.offset,
            "size_bytes": damage.size_bytes,
            "reason": damage.reason,
            "lost_count": None,
            "segment_sha256": hashes[damage.segment],
        }
        for damage in damages
    ]
    is_told_anew = pl.col("segment").is_in(list(hashes)) & ~pl.col("reason").is_in(DECLARED)
    kept = earlier.filter(~is_told_anew)
    if rows or kept.height != earlier.height:
        found = pl.DataFrame(rows, schema=tables.QUARANTINED_FRAMES)
        write_quarantine(folder, pl.concat([kept, found]))


def _write_ledger(
    folder: Path,
    read: Sequence[Frames],
    damages: Sequence[Damage],
    deleted: Mapping[str, Sequence[int]],
) -> None:
    """Name the segments that are done; one that a later run may still read is not.

    One that was read again has as many records as it ever showed, and as the hours hold of it: what
    is damaged by now was there, and what was damaged then may be whole.
    """
    waiting = {damage.segment for damage in damages if not damage.is_final}
    done = [frames for frames in read if frames.segment not in waiting]
    if not done:
        return
    ledger = {row["segment"]: row for row in read_ledger(folder).iter_rows(named=True)}
    untimed = [damage.segment for damage in damages if damage.reason in UNSTORED]
    # A new one with damage may have been read whole before its row of the ledger was written.
    odd = {one.segment for one in done if one.segment in ledger or one.damages}
    # Nobody vouches for rows that were taken from a moved hour: they must not count themselves.
    held = count_offsets(folder, odd - {*read_quarantine(folder).filter(reason=TAKEN)["segment"]})
    for frames in done:
        name = frames.segment
        before = ledger.get(name, {"record_count": 0, "deleted_offsets": None})
        gone = {
            *(before["deleted_offsets"] or ()),
            *frames.redacted_offsets,
            *deleted.get(name, ()),
        }
        found = len(frames.offsets) + len(frames.redacted_offsets) - untimed.count(name)
        ledger[name] = {
            "segment": name,
            "size_bytes": frames.size_bytes,
            "record_count": max(found, before["record_count"], held.get(name, 0) + len(gone)),
            "quarantined_count": sum(damage.segment == name for damage in damages),
            "deleted_offsets": sorted(gone),
        }
    write_ledger(folder, pl.DataFrame([*ledger.values()], schema=LEDGER))
