"""What a trace costs: durable records a second at ingest, rows a second compacted, beside DuckDB.

Run: `python bench/traces.py [--rows 20000] [--hours 24] [--json]`; `--rows 10000000` is the full
size. The records come in batches of whole hours, so that the disk holds one batch of segments and
of newline-delimited JSON (1 GB each) beside the lake, which grows to the end. Of each batch:

- ingest is the server's own writer with fsync, 64 appends under way;
- compaction brings the segments into the lake of all batches before, hour by hour, exactly once;
- DuckDB's `COPY` of the same records from newline-delimited JSON, by hour too, is the yardstick: it
  checks no CRC, keeps no ledger, fsyncs nothing, and writes beside no earlier hours.

The two take turns at going first, each in a process of its own with all cores; the ratio is of wall
seconds, and its range over the batches says how noisy the machine was.
"""

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from assets import tables
from assets.traces.compaction import compact_segments, find_miscounted
from assets.traces.frames import read_frames
from assets.traces.hours import list_hours, scan_hours
from resources.traces import SealedSegments
from serving.hashing import content_hash
from serving.tracing.record import TracedAttempt, TracedHit, TraceRecord, write_time
from serving.tracing.segments import SegmentWriter

START = datetime(2026, 1, 5, tzinfo=UTC)
GOAL_RATIO = 0.5
APPENDS_UNDER_WAY = 64
DUCKDB_LIMITS = {"memory_limit": "4GB", "max_temp_directory_size": "10GB"}
"""More memory than compaction takes, and a spill that leaves room on the disk."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one step took. `peak_memory_mb`: of its process since that began."""

    wall_seconds: float
    cpu_seconds: float
    peak_memory_mb: float


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What some hours of records cost on either side."""

    rows: int
    ingest: Cost
    compaction: Cost
    copying: Cost

    @property
    def ratio(self) -> float:
        """Rows a second of compaction over those of DuckDB: above 1, compaction is faster."""
        return self.copying.wall_seconds / self.compaction.wall_seconds

    @property
    def cpu_ratio(self) -> float:
        """The same of CPU seconds, which a busy machine changes less."""
        return self.copying.cpu_seconds / self.compaction.cpu_seconds


def main() -> None:
    """Print the figures, and with --json one object last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--hours", type=int, default=24, help="over which the records spread")
    parser.add_argument("--batch-rows", type=int, default=450_000, help="at most, in whole hours")
    parser.add_argument("--folder", type=Path, help="where the files lie meanwhile")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    options = parser.parse_args()
    told = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
    print(told + f"polars {version('polars')}, duckdb {version('duckdb')}, {options.rows:,} rows")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        batches = list(measure(Path(folder), options.rows, options.hours, options.batch_rows))
    found = summarise(batches)
    for name, value in found.items():
        print(f"{name:>32}  {value:,.2f}")
    print(f"goal: ratio_to_duckdb at least {GOAL_RATIO}")
    if options.json:
        print(json.dumps(found))


def measure(folder: Path, rows: int, hours: int, batch_rows: int) -> Iterator[Batch]:
    """Yield what each batch cost; the lake grows over all of them and is counted at the end."""
    lake, records = folder / "traces", make_records(rows, hours)
    with start_process() as ours, start_process() as theirs:
        for number, size in enumerate(split_rows(rows, hours, batch_rows)):
            aside = folder / f"batch-{number}"
            ingest = measure_cost(lambda: asyncio.run(write_batch(aside, records, size)))  # noqa: B023
            write_lines(aside)
            turns = {
                "compaction": (ours, compact_batch, aside, lake),
                "copying": (theirs, copy_with_duckdb, aside),
            }
            order = sorted(turns, reverse=number % 2 == 1)
            costs = {name: run_alone(*turns[name]) for name in order}
            shutil.rmtree(aside)
            batch = Batch(rows=size, ingest=ingest, **costs)
            print(describe(batch, number), flush=True)
            yield batch
    check_stored_once(lake, rows)


def split_rows(rows: int, hours: int, batch_rows: int) -> list[int]:
    """Return the sizes of batches of whole hours with about `batch_rows` at most."""
    step = max(1, hours // math.ceil(rows / batch_rows))
    ends = [rows * hour // hours for hour in range(0, hours, step)] + [rows]
    return [end - begin for begin, end in pairwise(ends)]


def measure_cost(work: Callable[[], object]) -> Cost:
    """Do something in this process and return what it took."""
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Cost(wall_seconds=wall, cpu_seconds=cpu, peak_memory_mb=after.ru_maxrss / 1024)


def start_process() -> ProcessPoolExecutor:
    """Return one process for one side, whose memory no other side touches."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def run_alone(process: ProcessPoolExecutor, work: Callable[..., object], *paths: Path) -> Cost:
    """Do something with paths in a process, and return what it took there."""
    return process.submit(_measure_with, work, *paths).result()


def _measure_with(work: Callable[..., object], *paths: Path) -> Cost:
    return measure_cost(lambda: work(*paths))


async def write_batch(folder: Path, records: Iterator[TraceRecord], size: int) -> None:
    """Append the next records durably, many at once."""
    # Patient: a machine that others halt for a while has lost nothing.
    writer = SegmentWriter(folder, patience_seconds=900.0)
    chosen = islice(records, size)

    async def append_some() -> None:
        for record in chosen:  # one iterator for all
            if not await writer.append(record):
                raise SystemExit("a record was lost: is the disk full?")

    await asyncio.gather(*(append_some() for _ in range(APPENDS_UNDER_WAY)))
    await writer.close()


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


def write_lines(folder: Path) -> None:
    """Write the payloads of segments as newline-delimited JSON beside them."""
    with (folder / "records.ndjson").open("wb") as stream:
        for path in SealedSegments(folder).list_files():
            stream.writelines(payload + b"\n" for payload in read_frames(path).payloads)


def compact_batch(folder: Path, lake: Path) -> None:
    """Compact the segments of a batch into the lake of all batches."""
    files = SealedSegments(folder).list_files()
    compact_segments(files, lake, tombstones=pl.DataFrame(schema=tables.DELETIONS))


def copy_with_duckdb(folder: Path) -> None:
    """Write hourly Parquet from the same records with DuckDB's `COPY`."""
    limits = DUCKDB_LIMITS | {"temp_directory": str(folder / "spill")}
    with duckdb.connect(config=limits) as connection:
        connection.sql("set enable_progress_bar = false")
        connection.sql(
            f"copy (select *, cast(asked_at as date) as day, "  # noqa: S608
            f"hour(cast(asked_at as timestamp)) as hour "
            f"from read_ndjson('{folder / 'records.ndjson'}')) "
            f"to '{folder / 'duckdb'}' (format parquet, compression zstd, partition_by (day, hour))"
        )


def check_stored_once(lake: Path, rows: int) -> None:
    """Stop unless the lake holds every record exactly once, hour by hour, by its own ids."""
    stored = unique = 0
    for path in list_hours(lake):
        ids = pl.col("trace_id")
        counts = scan_hours([path]).select(ids.len().alias("rows"), ids.n_unique().alias("ids"))
        for in_hour, ids_in_hour in counts.collect().iter_rows():
            stored, unique = stored + in_hour, unique + ids_in_hour
    if not stored == unique == rows or (miscounted := find_miscounted(lake, [])):
        raise SystemExit(f"{rows:,} rows, {stored:,} stored, {unique:,} ids, {miscounted}")
    print(f"stored exactly once: {stored:,} of {rows:,} records", flush=True)


def describe(batch: Batch, number: int) -> str:
    """Return one line for a batch: wall and CPU seconds of each side, and the ratio."""
    told = (
        f"{name} {cost.wall_seconds:.1f} s (CPU {cost.cpu_seconds:.1f} s, "
        f"peak {cost.peak_memory_mb:,.0f} MB)"
        for name, cost in (("ingest", batch.ingest), ("compaction", batch.compaction),
                           ("DuckDB", batch.copying))
    )  # fmt: skip
    return f"batch {number}: {batch.rows:,} rows, {', '.join(told)}, ratio {batch.ratio:.2f}"


def summarise(batches: list[Batch]) -> dict[str, float]:
    """Return every figure of one run."""

    def per_second(name: str, kind: str) -> float:
        # The median: a machine that was halted in one batch says nothing about the others.
        return statistics.median(b.rows / getattr(getattr(b, name), kind) for b in batches)

    ratios = [batch.ratio for batch in batches]
    return {
        "batch_count": float(len(batches)),
        "ingested_records_per_second": per_second("ingest", "wall_seconds"),
        "compacted_rows_per_second": per_second("compaction", "wall_seconds"),
        "duckdb_rows_per_second": per_second("copying", "wall_seconds"),
        "ingested_per_cpu_second": per_second("ingest", "cpu_seconds"),
        "compacted_per_cpu_second": per_second("compaction", "cpu_seconds"),
        "duckdb_per_cpu_second": per_second("copying", "cpu_seconds"),
        "ratio_to_duckdb": statistics.median(ratios),
        "ratio_to_duckdb_least": min(ratios),
        "ratio_to_duckdb_most": max(ratios),
        "ratio_of_cpu_seconds": statistics.median(batch.cpu_ratio for batch in batches),
        "peak_memory_mb_first_batch": batches[0].compaction.peak_memory_mb,
        "peak_memory_mb_last_batch": batches[-1].compaction.peak_memory_mb,
        "duckdb_peak_memory_mb": batches[-1].copying.peak_memory_mb,
    }


if __name__ == "__main__":
    main()
