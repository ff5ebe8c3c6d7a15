"""Damaged hours: set aside, made again from their segments, and what is gone is counted."""

import asyncio
import random
import shutil
import struct
import zlib
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from assets import tables
from assets.traces import compaction, groups, hours
from assets.traces.checks import deleted_traces_are_gone, nothing_is_quarantined
from assets.traces.compaction import Compaction, compact_segments, find_miscounted
from assets.traces.frames import read_frames
from assets.traces.hours import find_damaged, find_folder, list_hours, scan_hours, write_hour
from assets.traces.ledger import read_quarantine
from assets.traces.requesting import UNFINISHED, find_remains, open_deletions
from bench.traces import make_records
from orchestration.status import find_quarantined
from resources.traces import SealedSegments
from serving.hashing import file_sha256
from serving.home import Home
from serving.tracing.segments import MAGIC, SegmentWriter, read_segment
from tests.serving.torture import count, report

NOTHING = pl.DataFrame(schema=tables.DELETIONS)
RECORDS = 90


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Three hours of records in about ten segments, compacted."""
    home = Home(tmp_path_factory.mktemp("mending") / "home")

    async def write() -> None:
        writer = SegmentWriter(home.traces, seal_bytes=20_000)
        for record in make_records(RECORDS, hours=3):
            assert await writer.append(record)
        await writer.close()

    asyncio.run(write())
    assert compact(home).record_count == RECORDS
    return home.root


@pytest.fixture
def home(written, tmp_path) -> Home:
    shutil.copytree(written, tmp_path / "home")
    return Home(tmp_path / "home")


def compact(home: Home, tombstones: pl.DataFrame = NOTHING) -> Compaction:
    return compact_segments(segments(home), find_folder(home), tombstones=tombstones)


def segments(home: Home) -> list[Path]:
    return SealedSegments(home.traces).list_files()


def rows(home: Home) -> pl.DataFrame:
    return scan_hours(list_hours(find_folder(home))).collect().sort("trace_id")


def cut(path: Path, size: int = 50) -> None:
    path.write_bytes(path.read_bytes()[:size])


def put_aside(home: Home) -> list[Path]:
    return sorted((find_folder(home) / "quarantine").glob("*.parquet"))


def spoil(whole: bytes, kind: str, lots: random.Random) -> bytes:
    at = lots.randrange(len(whole) - 1)
    zeros = max(1, lots.randrange(40))
    return {
        "empty": b"",
        "header": whole[: lots.randrange(1, 4)],
        "cut": whole[:at],
        "footer": whole[: len(whole) - lots.randrange(1, 9)],
        "zeros": whole[:at] + bytes(zeros) + whole[at + zeros :],
        "flip": whole[:at] + bytes([whole[at] ^ (1 << lots.randrange(8))]) + whole[at + 1 :],
    }[kind]


KINDS = ("empty", "header", "cut", "footer", "zeros", "flip")


def test_a_damaged_hour_is_made_again_whatever_the_damage(home):
    before, lots = rows(home), random.Random(6)  # noqa: S311
    told: Counter[str] = Counter()
    for number in range(count(len(KINDS), 1_000)):
        kind = KINDS[number % len(KINDS)]
        path = lots.choice(list_hours(find_folder(home)))
        whole = path.read_bytes()
        spoilt = spoil(whole, kind, lots)
        path.write_bytes(spoilt)
        done = compact(home)
        told[kind] += spoilt != whole
        assert (done.damaged_hour_count, done.lost_count) == (int(spoilt != whole), 0)
        assert rows(home).equals(before)
        assert find_miscounted(find_folder(home), segments(home)) == []
    report(f"{told.total()} damaged hours rebuilt, {dict(told)}, 0 of {RECORDS} records lost")
    quarantine = read_quarantine(find_folder(home))
    assert quarantine["reason"].to_list() == ["hour_rebuilt"] * told.total()
    assert set(quarantine["segment"]) == {f"quarantine/{path.name}" for path in put_aside(home)}
    assert {path.stat().st_mode & 0o077 for path in put_aside(home)} == {0}
    assert compact(home).damaged_hour_count == 0


def test_what_no_segment_holds_any_more_is_declared_with_its_count(home):
    path, gone = list_hours(find_folder(home))[0], segments(home)[0]
    before = rows(home)
    is_lost = pl.col("segment") == gone.name
    lost = pl.read_parquet(path, hive_partitioning=False).filter(is_lost)
    assert lost.height
    gone.unlink()
    cut(path)
    done = compact(home)
    assert (done.damaged_hour_count, done.lost_count) == (1, lost.height)
    assert rows(home).equals(before.filter(~pl.col("trace_id").is_in(lost["trace_id"].implode())))
    assert find_miscounted(find_folder(home), segments(home)) == []
    quarantine = read_quarantine(find_folder(home)).sort("reason")
    assert quarantine.select("reason", "lost_count").rows() == [
        ("hour_lost", None), ("lost_with_hour", lost.height),
    ]  # fmt: skip
    told = nothing_is_quarantined(quarantine, home)
    assert (told.passed, told.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert told.metadata["lost_count"].value == lost.height
    (problem,) = find_quarantined(home, since=datetime.now(UTC) - timedelta(days=1))
    assert put_aside(home)[0].name in problem
    assert compact(home).lost_count == 0
    assert read_quarantine(find_folder(home)).sort("reason").equals(quarantine)


@pytest.mark.parametrize("step", ["find_short", "_merge_hour", "settle"])
def test_a_crash_while_mending_is_mended_by_the_next_run(home, monkeypatch, step):
    before, path = rows(home), list_hours(find_folder(home))[1]
    cut(path)

    def crash(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(compaction, step, crash)
        with pytest.raises(OSError, match="No space"):
            compact(home)
    assert not path.exists() or step == "settle"
    assert compact(home).damaged_hour_count == 1
    assert rows(home).equals(before)
    assert read_quarantine(find_folder(home))["reason"].to_list() == ["hour_rebuilt"]
    assert find_miscounted(find_folder(home), segments(home)) == []


def test_a_segment_that_is_damaged_too_takes_nothing_from_the_other_hours(home):
    before = rows(home)
    spread = before.group_by("segment").agg(pl.col("asked_at").dt.truncate("1h").n_unique())
    name = spread.filter(pl.col("asked_at") > 1)["segment"][0]
    segment = next(path for path in segments(home) if path.name == name)
    offsets = read_frames(segment).offsets
    data = bytearray(segment.read_bytes())
    for offset in (offsets[0], offsets[-1]):  # one of each of its two hours
        data[offset + 20] ^= 0xFF
    whole = segment.read_bytes()
    segment.write_bytes(data)
    hour = before.filter(pl.col("segment") == name)["asked_at"].min()
    cut(hours.name_hour(find_folder(home), hour))
    done = compact(home)
    assert (done.damaged_hour_count, done.lost_count) == (1, 1)
    is_lost = (pl.col("segment") == name) & (pl.col("segment_offset") == offsets[0])
    assert rows(home).equals(before.filter(~is_lost))
    assert find_miscounted(find_folder(home), segments(home)) == []
    assert compact(home).segment_count == 0
    segment.write_bytes(whole)  # as large as the damaged one
    assert compact(home).segment_count == 1
    assert rows(home).equals(before)
    assert {reason for reason, _ in reasons(home)} == {"hour_rebuilt"}
    assert find_miscounted(find_folder(home), segments(home)) == []


def test_nothing_is_declared_lost_while_a_segment_cannot_be_opened(home, monkeypatch):
    before, path = rows(home), list_hours(find_folder(home))[0]
    cut(path)
    closed, read = segments(home)[0], groups.read_frames

    def refuse(segment: Path):
        if segment == closed:
            raise OSError(13, "Permission denied")
        return read(segment)

    with monkeypatch.context() as patched:
        patched.setattr(groups, "read_frames", refuse)
        assert compact(home).damaged_hour_count == 0
    (told,) = read_quarantine(find_folder(home)).to_dicts()
    assert (told["segment"], told["reason"]) == (closed.name, "unreadable: Permission denied")
    assert find_miscounted(find_folder(home), segments(home)) == [closed.name]
    assert compact(home).damaged_hour_count == 1
    assert rows(home).equals(before)
    assert read_quarantine(find_folder(home))["reason"].to_list() == ["hour_rebuilt"]


def test_a_deletion_takes_the_damaged_bytes_with_it(home):
    trace_id = rows(home)["trace_id"][0]
    cut(list_hours(find_folder(home))[0])
    tombstone = dict.fromkeys(tables.DELETIONS) | {
        "kind": "trace", "value": trace_id, "trace_ids": [trace_id],
        "requested_at": datetime.now(UTC),
    }  # fmt: skip
    done = compact(home, pl.DataFrame([tombstone], schema=tables.DELETIONS))
    assert (done.damaged_hour_count, done.lost_count) == (1, 0)
    assert trace_id not in rows(home)["trace_id"]
    assert rows(home).height == RECORDS - 1
    assert put_aside(home) == []
    assert read_quarantine(find_folder(home))["reason"].to_list() == ["hour_rebuilt"]
    assert compact(home).damaged_hour_count == 0


def alter(path: Path, frame: pl.DataFrame) -> None:
    """Replace an hour's bytes by others that read, as a restored copy does."""
    frame.write_parquet(path, compression="uncompressed")


def forget(*trace_ids: str) -> pl.DataFrame:
    blank = dict.fromkeys(tables.DELETIONS)
    requested_at = datetime.now(UTC)
    rows = [
        blank | {"kind": "trace", "value": t, "trace_ids": [t], "requested_at": requested_at}
        for t in trace_ids
    ]
    return pl.DataFrame(rows, schema=tables.DELETIONS)


def reasons(home: Home) -> set[tuple[str, int | None]]:
    told = read_quarantine(find_folder(home))
    return {*told.select("reason", "lost_count").rows()}


def test_a_moved_hour_that_reads_gives_what_no_segment_holds_and_says_so(home):
    before, path = rows(home), list_hours(find_folder(home))[0]
    gone = segments(home)[0]
    kept = gone.read_bytes()
    gone.unlink()
    alter(path, pl.read_parquet(path, hive_partitioning=False))
    done = compact(home)
    assert (done.damaged_hour_count, done.lost_count) == (1, 0)
    assert rows(home).equals(before)
    assert reasons(home) == {("hour_rebuilt", 0), ("taken_from_hour", 0)}
    assert not nothing_is_quarantined(read_quarantine(find_folder(home)), home).passed
    assert find_miscounted(find_folder(home), segments(home)) == []
    gone.write_bytes(kept)
    assert compact(home).segment_count == 1
    assert rows(home).equals(before)
    assert reasons(home) == {("hour_rebuilt", 0)}
    assert compact(home).segment_count == 0


def test_what_is_taken_from_a_moved_hour_was_never_deleted_and_is_of_that_hour(home):
    """A copy from before a deletion, with a row of another hour and one whose id was changed."""
    path, gone = list_hours(find_folder(home))[0], segments(home)[0]
    copy = pl.read_parquet(path, hive_partitioning=False)
    mine = copy.filter(segment=gone.name)["trace_id"]
    tombstones = forget(mine[0], mine[1])
    compact(home, tombstones)
    before = rows(home)
    gone.unlink()
    is_first, is_third = pl.col("trace_id") == mine[0], pl.col("trace_id") == mine[2]
    renamed = pl.when(is_first).then(pl.lit("another")).otherwise("trace_id").alias("trace_id")
    moved = pl.col("asked_at") + pl.when(is_third).then(timedelta(hours=5)).otherwise(timedelta())
    alter(path, copy.with_columns(moved.alias("asked_at"), renamed))
    assert compact(home, tombstones).lost_count == 1
    assert rows(home).equals(before.filter(~is_third))
    assert reasons(home) == {("hour_lost", None), ("lost_with_hour", 1), ("taken_from_hour", 0)}
    assert find_miscounted(find_folder(home), segments(home)) == []
    assert put_aside(home) == []


def test_what_a_deletion_keeps_out_of_a_moved_hour_is_deleted_and_not_lost(home):
    before, path, gone = rows(home), list_hours(find_folder(home))[0], segments(home)[0]
    whole = gone.read_bytes()
    copy = pl.read_parquet(path, hive_partitioning=False)
    named = copy.filter(segment=gone.name)["trace_id"][0]
    gone.unlink()
    alter(path, copy)
    done = compact(home, forget(named))
    assert (done.damaged_hour_count, done.lost_count) == (1, 0)
    kept = before.filter(pl.col("trace_id") != named)
    assert rows(home).equals(kept)
    assert reasons(home) == {("hour_rebuilt", 0), ("taken_from_hour", 0)}
    assert find_miscounted(find_folder(home), segments(home)) == []
    gone.write_bytes(whole)
    compact(home, forget(named))
    assert rows(home).equals(kept)
    assert named.encode() not in gone.read_bytes()


def test_rows_that_were_taken_for_a_segment_do_not_count_once_it_is_back(home):
    path, gone = list_hours(find_folder(home))[0], segments(home)[0]
    whole, copy = gone.read_bytes(), pl.read_parquet(path, hive_partitioning=False)
    gone.unlink()
    is_forged = (pl.col("segment") == gone.name) & (
        pl.col("segment_offset") == copy.filter(segment=gone.name)["segment_offset"].min()
    )
    offset = pl.col("segment_offset")
    alter(path, copy.with_columns(pl.when(is_forged).then(offset + 1).otherwise(offset)))
    compact(home)
    assert ("taken_from_hour", 0) in reasons(home)
    gone.write_bytes(whole)
    compact(home)
    assert rows(home).filter(segment=gone.name).height == len(read_frames(gone).offsets) + 1
    assert find_miscounted(find_folder(home), segments(home)) == [gone.name]


def test_more_rows_than_a_segment_lacks_are_not_believed(home):
    path, gone = list_hours(find_folder(home))[0], segments(home)[0]
    copy = pl.read_parquet(path, hive_partitioning=False)
    mine = copy.filter(segment=gone.name)
    gone.unlink()
    forged = mine.with_columns(pl.col("segment_offset") + 1)
    alter(path, pl.concat([copy, forged]))
    assert compact(home).lost_count == mine.height
    assert rows(home).filter(segment=gone.name, asked_at=mine["asked_at"][0]).is_empty()


@pytest.mark.parametrize("is_removed_first", [True, False])
def test_what_was_deleted_is_not_lost_with_a_segment_that_is_removed(home, is_removed_first):
    gone, path = segments(home)[0], list_hours(find_folder(home))[-1]
    tombstones = forget(*rows(home).filter(segment=gone.name)["trace_id"][:2])
    if is_removed_first:
        gone.unlink()
    assert compact(home, tombstones).deleted_count == 2
    gone.unlink(missing_ok=True)
    assert find_miscounted(find_folder(home), segments(home)) == []
    before = rows(home)
    cut(path)
    done = compact(home, tombstones)
    assert (done.damaged_hour_count, done.lost_count) == (1, 0)
    assert rows(home).equals(before)
    assert reasons(home) == {("hour_rebuilt", 0)}


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_segment_that_was_away_or_closed_at_a_deletion_is_blanked_when_it_is_back(
    home, monkeypatch, is_closed
):
    path = segments(home)[0]
    other = segments(home)[-1]
    whole = path.read_bytes()
    ids = [rows_of(path)[0], rows_of(other)[0]]
    for trace_id in ids:
        row = forget(trace_id).row(0, named=True)
        open_deletions(home).append(row | dict.fromkeys(UNFINISHED))
    tombstones = open_deletions(home).read()
    read = Path.open

    def refuse(self, *arguments, **options):
        if is_closed and self == path:
            raise OSError(13, "Permission denied")
        return read(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        if not is_closed:
            path.unlink()
        assert compact(home, tombstones).deleted_count == 2
        assert ids[1].encode() not in other.read_bytes()
        assert find_remains(home) == ({"traces/segments": 1} if is_closed else {})
    path.write_bytes(whole)
    assert find_remains(home) == {"traces/segments": 1}
    assert not deleted_traces_are_gone(tombstones, home).passed
    compact(home, tombstones)
    assert ids[0].encode() not in path.read_bytes()
    assert find_remains(home) == {}
    blanked = path.stat()
    compact(home, tombstones)
    assert path.stat().st_ino == blanked.st_ino  # nothing to blank: the file is not rewritten
    assert find_miscounted(find_folder(home), segments(home)) == []


def test_what_was_deleted_before_it_was_compacted_is_not_lost_either(home):
    shutil.rmtree(find_folder(home) / "date=2026-01-05")
    first = rows_of(segments(home)[0])[0]
    (find_folder(home) / "compacted.parquet").unlink()
    assert compact(home, forget(first)).deleted_count == 1
    segments(home)[0].unlink()
    assert find_miscounted(find_folder(home), segments(home)) == []


def rows_of(segment: Path) -> list[str]:
    return [record["trace_id"] for record in read_segment(segment)]


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_deletion_empties_a_moved_hour_whose_segment_never_opens(home, is_readable):
    before, path = rows(home), list_hours(find_folder(home))[0]
    closed = segments(home)[0]
    whole = closed.read_bytes()
    closed.write_bytes(whole[:7] + b"\x02" + whole[8:])  # as of a later release
    alter(path, pl.read_parquet(path, hive_partitioning=False)) if is_readable else cut(path)
    trace_id = before.filter(segment=closed.name)["trace_id"][0]
    compact(home)
    open_deletions(home).append(forget(trace_id).row(0, named=True) | dict.fromkeys(UNFINISHED))
    assert find_remains(home)["traces/quarantine"] == 1
    assert not deleted_traces_are_gone(open_deletions(home).read(), home).passed
    tombstones = open_deletions(home).read()
    assert compact(home, tombstones).lost_count == 0
    assert find_remains(home) == {}
    kept = before.filter(pl.col("trace_id") != trace_id)
    assert rows(home).equals(kept) or not is_readable
    closed.write_bytes(whole)
    assert compact(home, tombstones).lost_count == 0
    assert rows(home).equals(kept)
    assert find_remains(home) == {}
    assert put_aside(home) == []
    assert trace_id.encode() not in closed.read_bytes()


def test_a_segment_that_comes_back_gives_what_was_declared_lost(home):
    before, path, gone = rows(home), list_hours(find_folder(home))[0], segments(home)[0]
    kept = gone.read_bytes()
    gone.unlink()
    cut(path)
    lost = compact(home).lost_count
    assert lost == before.height - rows(home).height > 0
    torn = kept[: read_frames_of(kept, gone)[-1] + 20]  # it comes back without its end
    gone.write_bytes(torn)
    compact(home)
    assert find_miscounted(find_folder(home), segments(home)) == []
    assert compact(home).segment_count == 0
    gone.write_bytes(kept)
    compact(home)
    assert rows(home).equals(before)
    assert {reason for reason, _ in reasons(home)} == {"hour_rebuilt"}
    assert find_miscounted(find_folder(home), segments(home)) == []


def read_frames_of(data: bytes, path: Path) -> tuple[int, ...]:
    aside = path.with_suffix(".copy")
    aside.write_bytes(data)
    offsets = read_frames(aside).offsets
    aside.unlink()
    return offsets


def test_nothing_is_lost_while_a_segment_waits_for_a_later_release(home):
    before, path, newer = rows(home), list_hours(find_folder(home))[0], segments(home)[0]
    whole = newer.read_bytes()
    newer.write_bytes(whole[:7] + b"\x02" + whole[8:])
    cut(path)
    for _ in range(2):
        done = compact(home)
        assert (done.damaged_hour_count, done.lost_count) == (0, 0)
    assert reasons(home) == {("newer_format", None)}
    newer.write_bytes(whole)
    assert compact(home).damaged_hour_count == 1
    assert rows(home).equals(before)
    assert reasons(home) == {("hour_rebuilt", 0)}


def test_an_hour_that_waits_for_segments_is_named_in_the_status(home):
    since = datetime.now(UTC) + timedelta(days=1)
    files = {path: path.read_bytes() for path in segments(home)}
    for path in files:  # as when their volume is not mounted
        path.unlink()
    for path in list_hours(find_folder(home))[:2]:
        cut(path)
    assert compact(home).damaged_hour_count == 0
    (told,) = find_quarantined(home, since=since)
    assert "2 damaged hours wait for segments" in told
    assert all(f"quarantine/{path.name}" in told for path in put_aside(home))
    checked = nothing_is_quarantined(read_quarantine(find_folder(home)), home)
    assert not checked.passed
    assert len(checked.metadata["waiting_hours"].value) == 2
    for path, whole in files.items():
        path.write_bytes(whole)
    assert compact(home).damaged_hour_count == 2
    assert find_quarantined(home, since=since) == ()


def test_a_segment_that_waited_and_was_removed_keeps_no_hour_waiting(home):
    path, newer = list_hours(find_folder(home))[0], segments(home)[0]
    held = pl.read_parquet(path, hive_partitioning=False).filter(segment=newer.name).height
    whole = newer.read_bytes()
    newer.write_bytes(whole[:7] + b"\x02" + whole[8:])
    cut(path)
    assert compact(home).damaged_hour_count == 0
    newer.unlink()
    done = compact(home)
    assert (done.damaged_hour_count, done.lost_count) == (1, held)
    assert find_miscounted(find_folder(home), segments(home)) == []
    assert compact(home).damaged_hour_count == 0
    newer.write_bytes(whole)
    assert compact(home).segment_count == 1
    assert rows(home).height == RECORDS


def test_a_crash_between_the_hash_and_the_hour_is_no_damage(home, monkeypatch):
    path = list_hours(find_folder(home))[0]
    held = pl.read_parquet(path, hive_partitioning=False)
    write = hours.write_text_atomically

    def crash(target, text):
        write(target, text)
        raise OSError(5, "Input/output error")

    for kept in (5, 6):
        with monkeypatch.context() as patched:
            patched.setattr(hours, "write_text_atomically", crash)
            with pytest.raises(OSError, match="Input/output"):
                write_hour(path, held[:kept].lazy())
        assert find_damaged(find_folder(home)) == []
    write_hour(path, held[:7].lazy())
    assert find_damaged(find_folder(home)) == []
    assert pl.read_parquet(path, hive_partitioning=False).height == 7


def test_an_hour_without_a_hash_is_read_from_end_to_end(home):
    first, second, _ = list_hours(find_folder(home))
    first.with_suffix(".sha256").unlink()
    second.with_suffix(".sha256").write_bytes(b"\0" * 65)
    assert find_damaged(find_folder(home)) == []
    cut(first, 500)
    assert find_damaged(find_folder(home)) == [first]


@pytest.mark.parametrize("payload", [b'{"trace_id": "half', b"[1, 2]", b"\xff\xfe", b"7"])
def test_a_frame_with_a_right_checksum_and_no_record_is_quarantined(home, payload):
    sound = read_frames(segments(home)[0])
    whole = segments(home)[0].read_bytes()
    frame = struct.pack("<II", len(payload), zlib.crc32(payload)) + payload
    path = home.traces / "9-20260105T000000000000-000001.seg"
    first = len(MAGIC) + 8 + struct.unpack_from("<I", whole, len(MAGIC))[0]
    path.write_bytes(whole[:first] + frame + whole[first:])
    shutil.rmtree(find_folder(home) / "date=2026-01-05")
    for name in ("compacted.parquet", "quarantine.parquet"):
        (find_folder(home) / name).unlink(missing_ok=True)
    compact_segments([path], find_folder(home), tombstones=NOTHING)
    assert rows(home).height == len(sound.payloads)
    (told,) = read_quarantine(find_folder(home)).to_dicts()
    assert told == {
        "segment": path.name, "segment_offset": first, "size_bytes": len(frame),
        "reason": "not_json", "lost_count": None, "segment_sha256": file_sha256(path),
    }  # fmt: skip
    assert find_miscounted(find_folder(home), [path]) == []
