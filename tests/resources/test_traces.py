"""Sealed segments: which are read, and what happens to a damaged one."""

import pytest

from resources.traces import SealedSegments
from serving.errors import TraceError
from serving.tracing.segments import SegmentWriter


async def write_segment(folder, *records) -> None:
    writer = SegmentWriter(folder)
    for record in records:
        assert await writer.append(record)
    await writer.close()


async def test_records_come_segment_by_segment_in_order(tmp_path):
    await write_segment(tmp_path, {"trace_id": "a"}, {"trace_id": "b"})
    await write_segment(tmp_path, {"trace_id": "c"})
    traces = SealedSegments(tmp_path)
    assert [record["trace_id"] for record in traces.read()] == ["a", "b", "c"]
    assert len(traces.list_files()) == 2


def test_a_folder_that_is_not_there_holds_nothing_and_has_an_identity(tmp_path):
    missing = SealedSegments(tmp_path / "none")
    assert list(missing.read()) == []
    assert missing.fingerprint() == SealedSegments(tmp_path).fingerprint()


async def test_a_damaged_segment_is_an_error_that_names_it(tmp_path):
    await write_segment(tmp_path, {"trace_id": "a"}, {"trace_id": "b"})
    (path,) = SealedSegments(tmp_path).list_files()
    data = bytearray(path.read_bytes())
    data[20] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(TraceError, match=path.name):
        list(SealedSegments(tmp_path).read())
