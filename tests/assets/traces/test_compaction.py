"""Segments of several servers become hours: every record once, whatever happens on the way."""

import asyncio
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import orjson
import polars as pl
import pyarrow.parquet as parquet
import pytest

from assets import tables
from assets.traces import compaction, hours, noting
from assets.traces.checks import nothing_is_quarantined
from assets.traces.compaction import (
    compact_segments,
    find_miscounted,
    list_hourly_files,
)
from assets.traces.frames import read_frames, redact_frames
from assets.traces.hours import find_folder, list_hours, read_hour, scan_hours, write_hour
from assets.traces.ledger import read_quarantine
from assets.traces.records import tabulate_payloads, tabulate_records
from bench.traces import make_records
from orchestration.status import find_quarantined
from resources.traces import SealedSegments
from serving.errors import TraceError
from serving.home import Home
from serving.tracing.segments import SegmentWriter, read_segment
from tests.assets.traces.served import START, plan_days, serve_plan

NOTHING = pl.DataFrame(schema=tables.DELETIONS)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Three days of two servers, in many small segments."""
    home = Home(tmp_path_factory.mktemp("lake") / "home")
    plan = plan_days(3, 120)
    stored = serve_plan(home.root, plan[::2], seal_bytes=20_000)
    stored += serve_plan(home.root, plan[1::2], seal_bytes=30_000)
    assert len(stored) == len(set(stored)) == len(plan) >= 360
    return home, stored


@pytest.fixture
def home(written, tmp_path):
    source, _ = written
    shutil.copytree(source.root, tmp_path / "home")
    return Home(tmp_path / "home")


def segments(home: Home):
    return SealedSegments(home.traces).list_files()


def compact(home: Home, paths=None):
    return compact_segments(
        segments(home) if paths is None else paths, find_folder(home), tombstones=NOTHING
    )


def stored_rows(home: Home) -> pl.DataFrame:
    return scan_hours(list_hours(find_folder(home))).collect().sort("trace_id")


def test_every_trace_a_server_promised_lies_in_its_hour_once(home, written):
    done = compact(home)
    rows = stored_rows(home)
    assert sorted(rows["trace_id"]) == sorted(written[1])
    assert done.record_count == rows.height
    assert done.segment_count == len(segments(home)) > 10
    for path in list_hours(find_folder(home)):
        hours = pl.read_parquet(path, hive_partitioning=False)["asked_at"].dt.truncate("1h")
        assert hours.unique().to_list() == [read_hour(path)]
    assert find_miscounted(find_folder(home), segments(home)) == []
    records = tabulate_records(SealedSegments(home.traces).read())
    assert rows.select(tables.TRACE_RECORDS.names()).equals(records)


def test_compacting_again_changes_nothing(home):
    compact(home)
    before = list_hourly_files(find_folder(home))
    stamps = [path.stat().st_mtime_ns for path in list_hours(find_folder(home))]
    assert compact(home).segment_count == 0
    assert list_hourly_files(find_folder(home)).equals(before)
    assert [path.stat().st_mtime_ns for path in list_hours(find_folder(home))] == stamps


def test_late_and_shuffled_segments_give_the_same_hours(home, monkeypatch):
    monkeypatch.setattr(compaction, "GROUP_BYTES", 25_000)
    paths = segments(home)
    random.Random(3).shuffle(paths)  # noqa: S311
    for start in range(0, len(paths), 7):
        compact(home, paths[: start + 7])
    rows = stored_rows(home)
    assert find_miscounted(find_folder(home), segments(home)) == []
    shutil.rmtree(home.root.parent / "other", ignore_errors=True)
    compact_segments(segments(home), home.root.parent / "other", tombstones=NOTHING)
    at_once = scan_hours(list_hours(home.root.parent / "other")).collect().sort("trace_id")
    assert rows.equals(at_once)


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_crash_between_hours_and_ledger_stores_nothing_twice(home, monkeypatch, after):
    calls = iter(range(10_000))
    write = compaction.write_hour

    def crash_later(path, rows):
        if next(calls) == after:
            raise OSError(28, "No space left on device")
        write(path, rows)

    monkeypatch.setattr(compaction, "write_hour", crash_later)
    with pytest.raises(OSError, match="No space"):
        compact(home)
    monkeypatch.setattr(compaction, "write_hour", write)
    monkeypatch.setattr(
        noting, "_write_ledger", lambda *_: (_ for _ in ()).throw(OSError("no ledger"))
    )
    with pytest.raises(OSError, match="ledger"):
        compact(home)
    monkeypatch.undo()
    compact(home)
    assert find_miscounted(find_folder(home), segments(home)) == []
    assert stored_rows(home)["trace_id"].is_unique().all()


def test_a_record_that_is_stored_twice_or_lost_is_found(home):
    compact(home)
    path = list_hours(find_folder(home))[0]
    held = pl.read_parquet(path, hive_partitioning=False)
    write_hour(path, pl.concat([held, held[:1]]).lazy())
    assert find_miscounted(find_folder(home), segments(home)) == [held["segment"][0]]
    write_hour(path, held[1:].lazy())
    assert find_miscounted(find_folder(home), segments(home)) == [held["segment"][0]]


def test_damage_costs_its_own_record_and_is_quarantined(home):
    (path, torn, *_) = segments(home)
    frames, tail = read_frames(path), read_frames(torn)
    data = bytearray(path.read_bytes())
    data[frames.offsets[1] + 20] ^= 0xFF
    path.write_bytes(data)
    torn.write_bytes(torn.read_bytes()[:-5])
    whole = {record["trace_id"] for segment in segments(home) if segment != path
             for record in read_segment(segment)}  # fmt: skip
    kept = [orjson.loads(frames.payloads[n])["trace_id"] for n in range(len(frames.payloads))]
    compact(home)
    assert set(stored_rows(home)["trace_id"]) == whole | {t for t in kept if t != kept[1]}
    found = {row["segment"]: row for row in read_quarantine(find_folder(home)).to_dicts()}
    assert found[path.name]["reason"] == "damaged"
    assert found[path.name]["segment_offset"] == frames.offsets[1]
    assert found[path.name]["size_bytes"] == frames.offsets[2] - frames.offsets[1]
    assert found[torn.name]["reason"] == "torn_tail"
    assert found[torn.name]["segment_offset"] == tail.offsets[-1]
    assert find_miscounted(find_folder(home), segments(home)) == []
    told = nothing_is_quarantined(read_quarantine(find_folder(home)), home)
    assert (told.passed, told.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert told.metadata["segments"].value == [path.name]
    assert [told.metadata[f"{kind}_count"].value for kind in ("quarantined", "torn_tail")] == [1, 1]
    (problem,) = find_quarantined(home, since=START)
    assert "1 stretch" in problem
    assert path.name in problem
    assert find_quarantined(home, since=datetime.now(UTC) + timedelta(days=1)) == ()


def test_a_damaged_segment_that_is_restored_is_read_again(home):
    path = segments(home)[0]
    whole, offsets = path.read_bytes(), read_frames(path).offsets
    spoilt = bytearray(whole)
    spoilt[offsets[1] + 20] ^= 0xFF
    path.write_bytes(spoilt)
    compact(home)
    found = stored_rows(home)
    assert compact(home).segment_count == 0
    path.write_bytes(whole)
    assert compact(home).segment_count == 1
    is_restored = (pl.col("segment") == path.name) & (pl.col("segment_offset") == offsets[1])
    assert stored_rows(home).filter(is_restored).height == 1
    assert stored_rows(home).filter(~is_restored).equals(found)
    assert read_quarantine(find_folder(home)).is_empty()
    assert find_miscounted(find_folder(home), segments(home)) == []
    assert compact(home).segment_count == 0


def spoil_record(whole: bytes, offset: int) -> bytes:
    spoilt = bytearray(whole)
    spoilt[offset + 20] ^= 0xFF
    return bytes(spoilt)


def test_a_segment_that_is_replaced_again_and_again_keeps_what_any_of_them_held(home):
    path = segments(home)[0]
    whole, offsets = path.read_bytes(), read_frames(path).offsets
    for at in (offsets[1], offsets[-1]):  # the last one looks like a torn tail
        path.write_bytes(spoil_record(whole, at))
        compact(home)
        assert find_miscounted(find_folder(home), segments(home)) == []
    assert stored_rows(home).filter(segment=path.name).height == len(offsets)
    for other in (whole[: offsets[3] + 20], spoil_record(whole, offsets[0]), whole):
        path.write_bytes(other)
        assert compact(home).segment_count == 1
        assert stored_rows(home).filter(segment=path.name).height == len(offsets)
        assert find_miscounted(find_folder(home), segments(home)) == []
    assert read_quarantine(find_folder(home)).is_empty()


def test_a_segment_whose_last_record_was_damaged_is_read_again_when_it_is_restored(home):
    path = segments(home)[0]
    whole, last = path.read_bytes(), read_frames(path).offsets[-1]
    path.write_bytes(spoil_record(whole, last))
    compact(home)
    assert read_quarantine(find_folder(home))["reason"].to_list() == ["torn_tail"]
    path.write_bytes(whole)
    compact(home)
    assert stored_rows(home).filter(segment=path.name, segment_offset=last).height == 1
    assert read_quarantine(find_folder(home)).is_empty()


@pytest.mark.parametrize("kept", [0, 8, 3])
def test_a_copy_that_was_cut_short_is_read_again_when_it_is_whole(home, kept):
    path = segments(home)[0]
    whole, offsets = path.read_bytes(), read_frames(path).offsets
    path.write_bytes(whole[: offsets[kept] if kept == 3 else kept])  # nothing of it is damaged
    compact(home)
    assert stored_rows(home).filter(segment=path.name).height == (3 if kept == 3 else 0)
    assert compact(home).segment_count == 0
    path.write_bytes(whole)
    assert compact(home).segment_count == 1
    assert stored_rows(home).filter(segment=path.name).height == len(offsets)
    assert find_miscounted(find_folder(home), segments(home)) == []
    assert compact(home).segment_count == 0


@pytest.mark.parametrize("step", ["_write_damages", "write_ledger", "write_quarantine"])
def test_a_crash_while_a_restored_segment_is_read_again_is_mended(home, monkeypatch, step):
    path = segments(home)[0]
    whole = path.read_bytes()
    path.write_bytes(spoil_record(whole, read_frames(path).offsets[1]))
    compact(home)
    path.write_bytes(whole)
    before = stored_rows(home).height

    def crash(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(noting, step, crash)
        with pytest.raises(OSError, match="No space"):
            compact(home)
    assert compact(home).segment_count == 1
    assert stored_rows(home).height == before + 1
    assert read_quarantine(find_folder(home)).is_empty()
    assert find_miscounted(find_folder(home), segments(home)) == []
    assert compact(home).segment_count == 0


def test_a_torn_tail_alone_is_no_alarm(home):
    path = segments(home)[0]
    path.write_bytes(path.read_bytes()[:-5])
    compact(home)
    told = nothing_is_quarantined(read_quarantine(find_folder(home)), home)
    assert told.passed
    assert told.metadata["torn_tail_count"].value == 1
    assert find_quarantined(home, since=START) == ()


def test_a_segment_of_a_newer_format_waits_for_the_release_that_reads_it(home):
    path = segments(home)[0]
    sound = path.read_bytes()
    path.write_bytes(sound[:7] + b"\x02" + sound[8:])
    (path.parent / "0-noise-1.seg").write_bytes(b"no segment at all")
    compact(home)
    reasons = dict(read_quarantine(find_folder(home)).select("segment", "reason").iter_rows())
    assert reasons == {path.name: "newer_format", "0-noise-1.seg": "not_a_segment"}
    path.write_bytes(sound)
    assert compact(home).segment_count == 1
    reasons = dict(read_quarantine(find_folder(home)).select("segment", "reason").iter_rows())
    assert reasons == {"0-noise-1.seg": "not_a_segment"}
    assert find_miscounted(find_folder(home), segments(home)) == []


async def write_records(folder, *records) -> None:
    writer = SegmentWriter(folder)
    for record in records:
        assert await writer.append(record)
    await writer.close()


def test_what_a_newer_release_writes_more_is_kept_and_an_older_hour_is_read(home):
    compact(home, segments(home)[:1])
    hour = list_hours(find_folder(home))[0]
    old = pl.read_parquet(hour, hive_partitioning=False)
    write_hour(hour, old.drop("confidence", "is_injection").lazy())
    sound = next(SealedSegments(home.traces).read())
    other = dict(sound)
    del other["env"]
    other |= {"trace_id": sound["trace_id"][:-4] + "abcd", "shadow": {"of": "x"}, "answer": 7}
    other["attempts"] = [sound["attempts"][0] | {"gpu": "h100"}]
    asyncio.run(write_records(home.traces, other))
    compact(home)
    assert find_miscounted(find_folder(home), segments(home)) == []
    rows = scan_hours([hour]).collect()
    assert rows.schema == tables.STORED_TRACES
    assert set(old["trace_id"]) < set(rows["trace_id"])
    (row,) = rows.filter(pl.col("trace_id") == other["trace_id"]).to_dicts()
    assert row["env"] is None
    unknown = orjson.loads(row["unknown_fields"])
    assert unknown == {"shadow": {"of": "x"}, "attempts": other["attempts"]}
    assert row["attempts"][0]["model"] == sound["attempts"][0]["model"]


def test_parsing_at_once_and_one_by_one_agree(home):
    payloads = [p for path in segments(home) for p in read_frames(path).payloads]
    at_once = tabulate_payloads(payloads)
    strange = orjson.dumps({"trace_id": "x", "surprise": 1})
    one_by_one = tabulate_payloads([*payloads, strange])
    assert at_once.equals(one_by_one[:-1])
    assert one_by_one["unknown_fields"][-1] == '{"surprise":1}'
    assert at_once["is_injection"].sum() > 0


@pytest.mark.parametrize(
    "payload",
    [
        b"[1]", b"7", b"", b'{"trace_id":"a"}[2]', b'{"trace_id":"a"} 7', b'{"trace_id":"a"',
        b'{"trace_id":"\xff"}', b'{"trace_id":"\xed\xa0\x80"}', b'{"trace_id":NaN}',
        b'{"trace_id":"\\udc00"}', b'{"max_score":1e400}',
        b'{"trace_id":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)  # fmt: skip
def test_what_is_no_object_never_reaches_the_parser_of_many(payload):
    sound = orjson.dumps({"trace_id": "b"})
    assert tabulate_payloads([sound, payload])["trace_id"].to_list() == ["b", None]


def test_a_record_without_a_time_is_quarantined_and_its_bytes_stay(home):
    asyncio.run(write_records(home.traces, {"trace_id": "nowhen", "asked_at": "yesterday"}))
    compact(home)
    (row,) = read_quarantine(find_folder(home)).to_dicts()
    assert row["reason"] == "no_time"
    assert b"nowhen" in (home.traces / row["segment"]).read_bytes()
    assert find_miscounted(find_folder(home), segments(home)) == []


def test_redacting_keeps_name_size_and_offsets(home):
    traces = SealedSegments(home.traces)
    path = segments(home)[0]
    before, identity = read_frames(path), traces.fingerprint()
    redact_frames(path, [before.offsets[0]])
    after = read_frames(path)
    assert (after.offsets, after.redacted_offsets) == (before.offsets[1:], before.offsets[:1])
    assert traces.fingerprint() == identity
    assert orjson.loads(before.payloads[0])["trace_id"].encode() not in path.read_bytes()
    redact_frames(path, before.offsets)
    assert read_frames(path).redacted_offsets == before.offsets
    assert len(before.offsets) > 1
    assert (read_frames(path).payloads, traces.fingerprint()) == ((), identity)


def test_two_compactions_at_once_are_refused(home):
    with (
        compaction._hold_alone(find_folder(home)),
        pytest.raises(TraceError, match="only compaction"),
    ):
        compact(home)


COMPACTION = """
import re, sys
from pathlib import Path
import polars as pl
from assets import tables
from assets.traces import compaction
compaction.GROUP_BYTES = 1_000_000
segments = sorted(Path(sys.argv[1]).glob("*.seg"))
nothing = pl.DataFrame(schema=tables.DELETIONS)
done = compaction.compact_segments(segments, Path(sys.argv[2]), tombstones=nothing)
peak = re.search("VmHWM:\\\\s+(\\\\d+) kB", Path("/proc/self/status").read_text())
print(done.record_count, int(peak[1]) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's own peak")
def test_four_times_the_records_need_no_more_memory(tmp_path):
    """Of a day with records of 10 kB, in groups of 1 MB."""

    async def write(folder, count):
        writer = SegmentWriter(folder, seal_bytes=500_000)
        for number, record in enumerate(make_records(count, hours=24)):
            text = random.Random(number).randbytes(100).hex() * 50  # noqa: S311
            assert await writer.append(replace(record, answer=text))
        await writer.close()

    peaks_mb = []
    for count in (600, 2400):
        folder = tmp_path / str(count)
        asyncio.run(write(folder / "segments", count))
        done = subprocess.run(
            [sys.executable, "-c", COMPACTION, folder / "segments", folder / "hours"],
            capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3],
        )  # fmt: skip
        stored, peak_mb = map(int, done.stdout.split())
        assert stored == count
        peaks_mb.append(peak_mb)
    more_mb = 1800 * 10_000 / 2**20
    assert peaks_mb[1] - peaks_mb[0] < 2 * more_mb, peaks_mb


def test_an_hour_is_written_in_groups_that_bound_who_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr(hours, "ROW_GROUP_ROWS", 100)
    path = tmp_path / "hour.parquet"
    write_hour(path, pl.LazyFrame({"number": range(1000)}))
    groups = parquet.ParquetFile(path).metadata
    sizes = [groups.row_group(number).num_rows for number in range(groups.num_row_groups)]
    assert (sum(sizes), max(sizes)) == (1000, 100)


def test_an_empty_home_has_typed_hours(tmp_path):
    home = Home(tmp_path / "none")
    assert compact(home).segment_count == 0
    assert stored_rows(home).schema == tables.STORED_TRACES
    assert list_hourly_files(find_folder(home)).schema == tables.HOURLY_RECORDS


def test_hours_are_their_owners_alone(home):
    compact(home)
    files = [*find_folder(home).rglob("*.parquet")]
    assert files
    assert [str(path) for path in files if path.stat().st_mode & 0o077] == []


def test_what_a_killed_compaction_laid_aside_is_gone_after_the_next(home):
    compact(home)
    aside = find_folder(home) / compaction.SCRATCH / "killed" / "1" / "20260105T09.parquet"
    aside.parent.mkdir(parents=True)
    stored_rows(home).write_parquet(aside)
    compact(home)  # without any new segment
    assert list((find_folder(home) / compaction.SCRATCH).iterdir()) == []
