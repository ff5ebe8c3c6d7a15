"""Sealed segments: which are read, and what happens to a damaged one."""

from datetime import UTC, datetime

import polars as pl
import pytest

from assets import tables
from resources.input_files import HarvestedFile
from resources.traces import Harvest, SealedSegments
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


def test_the_harvest_is_the_files_rows_and_the_admitted_ones_and_changes_with_these():
    file = HarvestedFile(None, tables.HARVESTED_QUESTIONS)
    nothing = pl.DataFrame(schema=tables.HARVESTED_QUESTIONS)
    row = {
        "text": "why", "source_trace_id": "t", "env": "prod", "decision": "accepted",
        "reviewer": "ada", "reviewer_kind": "human", "reason_code": "recurring",
        "rubric_version": "1", "decided_at": datetime(2026, 5, 1, tzinfo=UTC), "trainable": True,
    }  # fmt: skip
    admitted = pl.DataFrame([row], schema=tables.HARVESTED_QUESTIONS)
    none, one = Harvest(file, lambda: nothing), Harvest(file, lambda: admitted)
    assert none.fingerprint() == file.fingerprint() != one.fingerprint()
    assert one.fingerprint() == Harvest(file, lambda: admitted.clone()).fingerprint()
    assert none.read().is_empty()
    assert one.read().equals(admitted)
