"""What a trace costs: durable records a second at ingest, rows a second compacted, beside DuckDB.

Run: `python bench/traces.py [--rows 20000] [--hours 24] [--json]`; `--rows 10000000` is the full
size (some 20 GB of disk under --folder). Ingest is the server's own writer with fsync, 64 appends
under way. Compaction turns the segments into hourly Parquet. DuckDB's `COPY` of the same records
from newline-delimited JSON, by hour too, is the yardstick: it checks no CRC, keeps no ledger and
fsyncs nothing.
"""

import argparse
import asyncio
import json
import os
import platform
import resource
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from assets import tables
from assets.traces.compaction import compact_segments, find_miscounted
from assets.traces.hours import list_hours
from resources.traces import SealedSegments
from serving.hashing import content_hash
from serving.tracing.record import TracedAttempt, TracedHit, TraceRecord, write_time
from serving.tracing.segments import SegmentWriter

START = datetime(2026, 1, 5, tzinfo=UTC)
GOAL_RATIO = 0.5
APPENDS_UNDER_WAY = 64


def main() -> None:
    """Print the figures, and with --json one object last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--hours", type=int, default=24, help="over which the records spread")
    parser.add_argument("--folder", type=Path, help="where the files lie meanwhile")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(Path(folder), options.rows, options.hours)
    told = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
    print(told + f"polars {version('polars')}, duckdb {version('duckdb')}, {options.rows:,} rows")
    for name, value in found.items():
        print(f"{name:>32}  {value:,.2f}")
    print(f"goal: ratio_to_duckdb at least {GOAL_RATIO}")
    if options.json:
        print(json.dumps(found))


def measure(folder: Path, rows: int, hours: int) -> dict[str, float]:
    """Return every figure of one run."""
    segments = folder / "segments"
    ingest = asyncio.run(write_records(segments, rows, hours))
    files = SealedSegments(segments).list_files()
    began = time.perf_counter()
    nothing = pl.DataFrame(schema=tables.DELETIONS)
    done = compact_segments(files, folder / "compacted", tombstones=nothing)
    compaction = time.perf_counter() - began
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if done.record_count != rows or find_miscounted(folder / "compacted", files):
        raise SystemExit(f"stored {done.record_count:,} of {rows:,} rows, or not each once")
    lines = folder / "records.ndjson"
    with lines.open("wb") as stream:
        for record in SealedSegments(segments).read():
            stream.write(json.dumps(record).encode() + b"\n")
    began = time.perf_counter()
    copy_with_duckdb(lines, folder / "duckdb")
    copying = time.perf_counter() - began
    return {
        "ingested_records_per_second": rows / ingest,
        "compacted_rows_per_second": rows / compaction,
        "duckdb_rows_per_second": rows / copying,
        "ratio_to_duckdb": copying / compaction,
        "peak_memory_mb_after_compaction": memory_mb,
        "hour_count": float(len(list_hours(folder / "compacted"))),
    }


async def write_records(folder: Path, rows: int, hours: int) -> float:
    """Append records durably, many at once; return the seconds it took."""
    writer = SegmentWriter(folder)
    records = make_records(rows, hours)
    began = time.perf_counter()

    async def append_some() -> None:
        for record in records:  # one iterator for all
            if not await writer.append(record):
                raise SystemExit("a record was lost: is the disk full?")

    await asyncio.gather(*(append_some() for _ in range(APPENDS_UNDER_WAY)))
    await writer.close()
    return time.perf_counter() - began


def make_records(rows: int, hours: int) -> Iterator[TraceRecord]:
    """Yield records of the size and shape that the server writes, in order of time."""
    step = timedelta(hours=hours) / rows
    hits = tuple(
        TracedHit(
            chunk_id=f"docs:guides/page-{n}/{n}", content_hash=f"{n:016x}", score=0.9 - n / 20
        )
        for n in range(8)
    )
    attempt = TracedAttempt(**_describe_attempt())
    for number in range(rows):
        asked_at = START + step * number
        question = f"How do I set option {number % 977} of the server in version {number % 31}?"
        yield TraceRecord(
            trace_id=_name_trace(asked_at, number), asked_at=write_time(asked_at), env="prod",
            key_id=f"{number % 40:012x}", conversation_id=f"conversation-{number // 3}",
            question=question, question_hash=content_hash(question), prompt_version="p1",
            release_id="a" * 12, snapshot_hash="b" * 16, index_fingerprint="c" * 16,
            embedder_fingerprint="d" * 16, retrieved=hits, max_score=hits[0].score,
            prompt_tokens_estimate=900, phase="switch", route="student", route_reason="default",
            selection_mode="rule", attempts=(attempt,), served_by="student", model="compact@x",
            answer="Set it in the configuration file and restart the server. [1] " * 6,
            citations=(hits[0].chunk_id,), refused=False, total_latency_ms=420.0,
            escalation_requested=False, escalation_granted=False, trainable=True,
            trainable_reason="eligible",
        )  # fmt: skip


def _describe_attempt() -> dict[str, Any]:
    known: dict[str, Any] = {
        "role": "student", "model": "compact@x", "started_ms": 12.0, "latency_ms": 400.0,
        "prompt_tokens": 900, "completion_tokens": 80, "cost_usd": 0.0001, "finish_reason": "stop",
        "verdict": "valid",
    }  # fmt: skip
    return {name: known.get(name) for name in TracedAttempt.__dataclass_fields__}


def _name_trace(asked_at: datetime, number: int) -> str:
    digits = f"{int(asked_at.timestamp() * 1000):012x}7{number % 4096:03x}8{number:015x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def copy_with_duckdb(lines: Path, folder: Path) -> None:
    """Write hourly Parquet from the same records with DuckDB's `COPY`."""
    with duckdb.connect() as connection:
        connection.sql(
            f"copy (select *, cast(asked_at as date) as day, "  # noqa: S608
            f"hour(cast(asked_at as timestamp)) as hour from read_ndjson('{lines}')) "
            f"to '{folder}' (format parquet, compression zstd, partition_by (day, hour))"
        )


if __name__ == "__main__":
    main()
