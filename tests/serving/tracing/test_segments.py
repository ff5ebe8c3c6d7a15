import asyncio
import errno
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.errors import TraceError
from serving.tracing import segments
from serving.tracing.frames import find_frame
from serving.tracing.segments import (
    MAGIC,
    SegmentWriter,
    TornTail,
    read_frames,
    read_segment,
    seal_abandoned,
)
from tests.serving.torture import count, report

ROOT = Path(__file__).parents[3]


async def _write(folder: Path, records: list[dict[str, Any]], **options: Any) -> SegmentWriter:
    writer = SegmentWriter(folder, **options)
    assert all(await asyncio.gather(*(writer.append(r) for r in records)))
    await writer.close()
    return writer


def _only(folder: Path, pattern: str = "*.seg") -> Path:
    (path,) = folder.glob(pattern)
    return path


async def test_what_is_appended_is_read_back_in_order(tmp_path: Path) -> None:
    records = [{"n": n, "text": "ü" * n} for n in range(200)]
    writer = await _write(tmp_path, records)
    path = _only(tmp_path)
    assert list(read_segment(path)) == records
    assert (writer.stored_count, writer.lost_count, writer.is_losing) == (200, 0, False)
    assert path.stat().st_mode & 0o077 == 0
    assert path.name.startswith(f"{os.getpid()}-")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


async def test_waiting_records_share_an_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync

    def count(descriptor: int) -> None:
        synced.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", count)
    await _write(tmp_path, [{"n": n} for n in range(500)])
    # The folder twice (new name, sealed name), and the file once or twice.
    assert len(synced) <= 4


async def test_true_means_on_disk_before_anything_else_happens(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path)
    assert await writer.append({"n": 1})
    assert list(read_segment(_only(tmp_path, "*.seg.open"))) == [{"n": 1}]
    await writer.close()
    assert not await writer.append({"n": 2})
    assert writer.lost_count == 1
    await writer.close()


async def test_segments_are_sealed_by_size(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, seal_bytes=100)
    for n in range(6):
        assert await writer.append({"n": n, "text": "x" * 100})
    await writer.close()
    paths = sorted(tmp_path.glob("*.seg"))
    assert len(paths) == 6
    assert [r["n"] for p in paths for r in read_segment(p)] == list(range(6))


async def test_segments_are_sealed_by_age_also_when_nothing_comes(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, seal_seconds=0.05)
    assert await writer.append({"n": 1})
    for _ in range(100):
        await asyncio.sleep(0.02)
        if list(tmp_path.glob("*.seg")):
            break
    assert list(read_segment(_only(tmp_path))) == [{"n": 1}]
    assert await writer.append({"n": 2})
    await writer.close()
    assert len(list(tmp_path.glob("*.seg"))) == 2


async def test_two_writers_share_a_folder(tmp_path: Path) -> None:
    one, two = SegmentWriter(tmp_path), SegmentWriter(tmp_path)
    appended = [w.append({"w": w is one, "n": n}) for n in range(100) for w in (one, two)]
    assert all(await asyncio.gather(*appended))
    await asyncio.gather(one.close(), two.close())
    found = [r for p in tmp_path.glob("*.seg") for r in read_segment(p)]
    assert len(found) == 200
    assert len({(r["w"], r["n"]) for r in found}) == 200


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
async def test_a_failing_disk_loses_records_not_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    writer = SegmentWriter(tmp_path)
    assert await writer.append({"n": 1})
    real, failures = os.fsync, [code]

    def fail_once(descriptor: int) -> None:
        if failures:
            raise OSError(failures.pop(), "the disk said no")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail_once)
    states = []
    for n in (2, 3):
        is_stored = await writer.append({"n": n})
        states.append((is_stored, writer.is_losing))
    assert states == [(False, True), (True, False)]
    await writer.close()
    assert (writer.stored_count, writer.lost_count) == (2, 1)
    found = [r["n"] for p in sorted(tmp_path.glob("*.seg")) for r in read_segment(p)]
    assert found == [1, 3], "a record declared lost must not turn up"


async def test_a_folder_that_cannot_be_made_is_survived(tmp_path: Path) -> None:
    (tmp_path / "traces").write_text("a file")
    writer = SegmentWriter(tmp_path / "traces" / "segments")
    assert not await writer.append({"n": 1})
    (tmp_path / "traces").unlink()
    assert await writer.append({"n": 2})
    await writer.close()
    assert (writer.stored_count, writer.lost_count) == (1, 1)


async def test_a_hanging_disk_costs_patience_not_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = SegmentWriter(tmp_path, patience_seconds=0.05, maximum_waiting=3)
    real = os.fsync

    def hang(descriptor: int) -> None:
        time.sleep(0.2)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", hang)
    answers = await asyncio.gather(*(writer.append({"n": n}) for n in range(10)))
    assert answers == [False] * 10
    await writer.close()
    found = [r["n"] for r in read_segment(_only(tmp_path))]
    assert writer.stored_count == len(found)
    assert writer.stored_count + writer.lost_count == 10


async def test_what_json_cannot_say_is_declared_lost(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path)
    assert not await writer.append({"text": "half \ud83d"})
    assert not await writer.append({"text": "x" * (segments.MAXIMUM_RECORD_BYTES + 1)})
    assert await writer.append({"text": "fine"})
    await writer.close()
    assert (writer.stored_count, writer.lost_count) == (1, 2)


async def test_a_torn_tail_is_reported_at_every_cut(tmp_path: Path) -> None:
    records = [{"n": n, "inner": [{"deep": n}]} for n in range(4)]
    await _write(tmp_path, records)
    path = _only(tmp_path)
    whole = path.read_bytes()
    ends = [*[offset for offset, _ in read_frames(path)][1:], len(whole)]
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        torn: list[TornTail] = []
        found = list(read_segment(path, on_torn=torn.append))
        assert found == records[: sum(end <= cut for end in ends)]
        is_whole = cut in {0, len(MAGIC), *ends}
        assert bool(torn) is not is_whole
        assert all(t.offset + t.lost_bytes == cut for t in torn)


async def test_zeros_after_a_crash_are_a_torn_tail(tmp_path: Path) -> None:
    await _write(tmp_path, [{"n": 1}])
    path = _only(tmp_path)
    path.write_bytes(path.read_bytes() + bytes(4096))
    torn: list[TornTail] = []
    assert list(read_segment(path, on_torn=torn.append)) == [{"n": 1}]
    assert torn[0].lost_bytes == 4096


async def test_every_bit_flip_is_noticed(tmp_path: Path) -> None:
    records = [{"n": n, "text": "words"} for n in range(3)]
    await _write(tmp_path, records)
    path = _only(tmp_path)
    whole = path.read_bytes()
    offsets = [offset for offset, _ in read_frames(path)]
    for bit in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        found: list[dict[str, Any]] = []
        torn: list[TornTail] = []
        if bit // 8 < offsets[-1]:
            with pytest.raises(TraceError, match="offset"):
                found.extend(read_segment(path, on_torn=torn.append))
        else:
            # Damage to the very last record looks like a writer that died in it.
            found.extend(read_segment(path, on_torn=torn.append))
            assert torn
        good = sum(end <= bit // 8 for end in offsets[1:])
        assert found in (records[:good], []), "records before the damage, never altered ones"


@settings(
    max_examples=count(150, 100_000),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.binary(max_size=300), has_header=st.booleans())
def test_any_bytes_are_records_a_torn_tail_or_an_error(
    tmp_path: Path, data: bytes, has_header: bool
) -> None:
    path = tmp_path / "fuzz.seg"
    path.write_bytes(MAGIC * has_header + data)
    try:
        for record in read_segment(path):
            assert isinstance(record, dict)
    except TraceError:
        pass


async def test_what_damage_leaves_of_a_segment_is_never_altered(tmp_path: Path) -> None:
    """Real segments, damaged at random: the first records as they were, or an error, or less."""
    records = [{"n": n, "text": "words " * (n % 5), "inner": [{"deep": n}]} for n in range(8)]
    await _write(tmp_path, records)
    path = _only(tmp_path)
    whole = path.read_bytes()
    lots = random.Random(2026)  # noqa: S311  (which damage, not a secret)
    damaged = count(300, 100_000)
    told: Counter[str] = Counter()
    for _ in range(damaged):
        path.write_bytes(_damage(whole, lots))
        found: list[dict[str, Any]] = []
        torn: list[TornTail] = []
        try:
            found.extend(read_segment(path, on_torn=torn.append))
            told["torn" if torn else "whole"] += 1
        except TraceError:
            told["damaged"] += 1
        assert found in [records[:n] for n in range(len(records) + 1)]
    report(f"{damaged} damaged segments, {dict(told)}, 0 altered records")
    assert told["damaged"]
    assert told["torn"]


def _damage(whole: bytes, lots: random.Random) -> bytes:
    at = lots.randrange(len(whole))
    end = min(len(whole), at + lots.randrange(1, 40))
    return lots.choice(
        (
            whole[:at], whole[:at] + whole[end:], whole[:at] + bytes(end - at) + whole[end:],
            whole[:at] + lots.randbytes(end - at) + whole[end:],
            whole[:at] + lots.randbytes(end - at) + whole[at:],
            whole[:at] + bytes([whole[at] ^ (1 << lots.randrange(8))]) + whole[at + 1 :],
        )
    )  # fmt: skip


_KILLED_WRITER = """
import asyncio, json, sys
from pathlib import Path
from serving.tracing.segments import SegmentWriter

async def one(writer, name, n):
    if await writer.append({"w": name, "n": n, "text": "x" * 300}):
        sys.stdout.write(json.dumps([name, n]) + "\\n")
        sys.stdout.flush()

async def main():
    writer = SegmentWriter(Path(sys.argv[1]), seal_bytes=20_000)
    n = 0
    while True:
        await asyncio.gather(*(one(writer, sys.argv[2], n + i) for i in range(8)))
        n += 8

asyncio.run(main())
"""


def test_kill_9_loses_nothing_that_was_reported_persisted(tmp_path: Path) -> None:
    persisted: set[tuple[str, int]] = set()
    rounds, asked = count(3, 100), count(20, 100_000)  # each round kills two writers
    lots = random.Random()  # noqa: S311  (other instants each time)
    kills = 0
    while kills < rounds or len(persisted) < asked:
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", _KILLED_WRITER, str(tmp_path), f"{kills}{name}"],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in "ab"
        ]
        for writer in writers:
            assert writer.stdout is not None
            persisted.add(tuple(json.loads(writer.stdout.readline())))
        kills += 1
        for writer in writers:
            time.sleep(lots.uniform(0, 0.25))
            writer.send_signal(signal.SIGKILL)
            output, _ = writer.communicate()
            complete = output[: output.rfind("\n") + 1]
            persisted |= {tuple(json.loads(line)) for line in complete.splitlines()}
    seal_abandoned(tmp_path)
    assert not list(tmp_path.glob("*.seg.open"))
    found = [(r["w"], r["n"]) for p in tmp_path.glob("*.seg") for r in read_segment(p)]
    assert len(found) == len(set(found))
    assert len(persisted) >= asked
    lost = persisted - set(found)
    report(f"{2 * kills} kills, {len(persisted)} reported persisted, {len(lost)} lost")
    assert not lost


async def test_only_segments_nobody_writes_are_sealed(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path)
    assert await writer.append({"n": 1})
    alive = _only(tmp_path, "*.seg.open")
    dead = tmp_path / "1-20260101T000000000000-000001.seg.open"
    dead.write_bytes(alive.read_bytes())
    assert seal_abandoned(tmp_path) == [dead.with_name("1-20260101T000000000000-000001.seg")]
    assert alive.exists()
    assert await writer.append({"n": 2})
    await writer.close()
    assert len(list(tmp_path.glob("*.seg"))) == 2


_FULL_DISK = """
import asyncio, resource, sys
from pathlib import Path
from serving.tracing.segments import SegmentWriter

async def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    writer = SegmentWriter(Path(sys.argv[1]))
    answers = [await writer.append({"n": n, "text": "x" * 300}) for n in range(6)]
    answers.append(await writer.append({"n": 6, "text": "x" * 3000}))
    answers.append(await writer.append({"n": 7}))
    await writer.close()
    sys.stdout.write(" ".join(str(n) for n, ok in enumerate(answers) if ok))

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no file-size limit here")
def test_a_file_that_may_not_grow_keeps_what_it_has(tmp_path: Path) -> None:
    """The kernel writes part of a record and refuses the rest, as a full disk does."""
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    torn: list[TornTail] = []
    found = [
        r["n"] for p in sorted(tmp_path.glob("*.seg")) for r in read_segment(p, on_torn=torn.append)
    ]
    assert found == [int(n) for n in done.stdout.split()]
    assert 6 not in found
    assert 7 in found
    assert not torn


async def test_an_outage_is_told_once_and_so_is_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "segments"
    folder.write_text("not a folder")
    writer = SegmentWriter(folder)
    with caplog.at_level("WARNING"):
        assert [await writer.append({"n": n}) for n in range(20)] == [False] * 20
        folder.unlink()
        assert await writer.append({"n": 20})
    await writer.close()
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert (writer.stored_count, writer.lost_count) == (1, 20)


@pytest.mark.parametrize("payload", [b'{"n": 2', b"[2]", b"2", b'"{\\"n\\": 2}"', b"\xff{}"])
@pytest.mark.parametrize("is_last", [False, True])
async def test_a_right_checksum_over_no_record_is_damage(
    tmp_path: Path, payload: bytes, is_last: bool
) -> None:
    await _write(tmp_path, [{"n": 1}, {"n": 3}])
    path = _only(tmp_path)
    whole = path.read_bytes()
    start = [offset for offset, _ in read_frames(path)][1]
    frame = struct.pack("<II", len(payload), zlib.crc32(payload)) + payload
    path.write_bytes(whole[:start] + frame + whole[start:] * (not is_last))
    found: list[dict[str, Any]] = []
    torn: list[TornTail] = []
    with pytest.raises(TraceError, match=rf"offset {start}.*JSON object.*right CRC32") as error:
        found.extend(read_segment(path, on_torn=torn.append))
    assert (found, torn) == ([{"n": 1}], [])
    assert error.value.next_step
    following = find_frame(path.read_bytes(), start)
    assert following == (None if is_last else start + len(frame))
