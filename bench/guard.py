"""The contamination guard: against one matrix product, against semhash, and in memory.

Run: `python bench/guard.py [--json] [--rounds 7] [--pools 10000,100000] [--cases 150,10000]`, after
`pip install -e .[bench]` for semhash. Two parts:

1. Speed. Arms take turns in one process on the same vectors: the bare product into memory that is
   already there (`gemm`), the comparison (`nearest`), the whole verdict with words (`guard`), and
   semhash over our vectors, no model of its own: `from_embeddings` on the eval set, `deduplicate`
   on the candidates, with its default index (approximate) and its exact one. One candidate in a
   hundred is planted above the limit, and each arm says how many questions it rejected.
2. Memory. A pool of questions streams from Parquet through the guard into Parquet, in a process of
   its own for each size, which reports its peak. Vectors are drawn once and reused: embedding a
   million questions is the embedder's time, not the guard's.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from assets.eval_set.guard import (
    BATCH_ROWS,
    LEAKAGE_COSINE_LIMIT,
    EvalQuestions,
    guard_batches,
    judge_questions,
)
from assets.eval_set.nearest import find_nearest

DIMENSION = 384
PAIRS_PER_ROUND = 20_000_000
PEER_PAIRS_PER_ROUND = 3_000_000  # semhash asks its index question by question
SETTLING_SECONDS = 0.2
"""Before each arm: BLAS's own threads spin for a while after a product, on the next arm's cores."""
PLANTED_EVERY = 100
WORDS = ("a", "an", "answer", "can", "chunk", "cited", "do", "how", "i", "in", "is", "limit", "of",
         "page", "read", "set", "the", "was", "we", "where", "which")  # fmt: skip


def unit_rows(count: int, seed: int) -> np.ndarray:
    """Return [count, DIMENSION] random unit vectors."""
    rows = np.random.default_rng(seed).standard_normal((count, DIMENSION), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def plant_copies(pool: np.ndarray, golden: np.ndarray) -> None:
    """Move every hundredth candidate to a cosine of 0.94 with some case: it is to be rejected."""
    at = np.arange(0, len(pool), PLANTED_EVERY)
    near = golden[at % len(golden)]
    away = pool[at] - (pool[at] * near).sum(axis=1, keepdims=True) * near
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    pool[at] = 0.94 * near + np.sqrt(1 - 0.94**2) * away


def write_questions(count: int, seed: int) -> list[str]:
    """Return questions of 6 to 18 words that all differ."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(5, 18, count)
    return [
        f"{' '.join(WORDS[i] for i in draw.integers(0, len(WORDS), length))} {seed}x{row}?"
        for row, length in enumerate(lengths)
    ]


class Drawn:
    """An embedder whose vectors were drawn beforehand and are handed out in turn."""

    fingerprint = "drawn"
    dimension = DIMENSION
    maximum_tokens = 256

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return one vector per text."""
        return self._vectors[: len(texts)]

    def encode(self, inputs: Sequence[str], **_: object) -> np.ndarray:
        """Return one vector per text, as semhash asks for them."""
        return self._vectors[: len(inputs)]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return a count per text."""
        return [len(text.split()) for text in texts]


def build_arms(case_count: int) -> tuple[dict[str, Callable[[], int]], dict[str, int]]:
    """Return the arms, each saying how many questions it rejected, and how many it compares."""
    candidates = max(8192, PAIRS_PER_ROUND // case_count)
    few = min(candidates, max(500, PEER_PAIRS_PER_ROUND // case_count))
    golden, pool = unit_rows(case_count, 2), unit_rows(candidates, 1)
    plant_copies(pool, golden)
    cases, texts = write_questions(case_count, 2), write_questions(candidates, 1)
    protected = EvalQuestions.prepare(cases, cases, golden)
    product = np.zeros((candidates, case_count), dtype=np.float32)

    def gemm() -> int:
        np.matmul(pool, golden.T, out=product)
        return 0

    def nearest() -> int:
        return int((find_nearest(pool, golden).cosines >= LEAKAGE_COSINE_LIMIT).sum())

    def guard() -> int:
        return judge_questions(texts, pool, protected).filter(verdict="rejected").height

    arms: dict[str, Callable[[], int]] = {"gemm": gemm, "nearest": nearest, "guard": guard}
    if find_spec("semhash") is not None:
        from semhash import SemHash
        from vicinity import Backend

        for backend in (Backend.USEARCH, Backend.BASIC):
            peer = SemHash.from_embeddings(golden, cases, model=Drawn(pool), ann_backend=backend)
            arms[f"semhash_{backend.value}"] = lambda peer=peer: len(
                peer.deduplicate(texts[:few], threshold=LEAKAGE_COSINE_LIMIT).filtered
            )
    counts = {name: few if name.startswith("semhash") else candidates for name in arms}
    return arms, counts


def measure_speed(case_count: int, rounds: int) -> dict[str, Any]:
    """Return seconds, pairs per second and the ratio to the product, by arm."""
    arms, counts = build_arms(case_count)
    rejected = {name: arm() for name, arm in arms.items()}  # warm
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            time.sleep(SETTLING_SECONDS)
            started = time.perf_counter()
            arm()
            seconds[name].append(time.perf_counter() - started)
    figures = {}
    for name, values in seconds.items():
        rates = [counts[name] * case_count / value for value in values]
        base = [counts["gemm"] * case_count / value for value in seconds["gemm"]]
        figures[name] = {
            "candidate_count": counts[name],
            "rejected_count": rejected[name],
            "planted_count": -(-counts[name] // PLANTED_EVERY),
            "pairs_per_second": spread(rates),
            "share_of_gemm": spread([r / b for r, b in zip(rates, base, strict=True)]),
            "seconds": spread(values),
        }
    return {"case_count": case_count, "rounds": rounds, "arms": figures}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return least, middle and largest."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def write_pool(path: Path, count: int) -> None:
    """Write `count` questions, one row group per batch."""
    with pq.ParquetWriter(path, pl.DataFrame(schema={"text": pl.String}).to_arrow().schema) as out:
        for start in range(0, count, BATCH_ROWS):
            texts = write_questions(min(BATCH_ROWS, count - start), start)
            out.write_table(pl.DataFrame({"text": texts}).to_arrow())


def stream(pool: Path, case_count: int) -> dict[str, float]:
    """Guard a pool batch by batch from Parquet into Parquet, and say what that took."""
    drawn, golden = unit_rows(BATCH_ROWS, 1), unit_rows(case_count, 2)
    plant_copies(drawn, golden)
    cases = write_questions(case_count, 2)
    protected = EvalQuestions.prepare(cases, cases, golden)
    resting = read_mib("VmRSS")
    started, rows, rejected = time.perf_counter(), 0, 0
    writer = None
    for judged in guard_batches(read_batches(pool), protected=protected, embedder=Drawn(drawn)):
        table = judged.to_arrow()
        writer = writer or pq.ParquetWriter(pool.with_suffix(".judged"), table.schema)
        writer.write_table(table)
        rows += judged.height
        rejected += judged.filter(verdict="rejected").height
    if writer is not None:
        writer.close()
    return {
        "pool_rows": rows,
        "case_count": case_count,
        "rejected_count": rejected,
        "seconds": time.perf_counter() - started,
        "resting_mib": resting,
        "peak_mib": read_mib("VmHWM"),
    }


def read_batches(path: Path) -> Iterator[pl.DataFrame]:
    """Yield the questions of a Parquet file, a batch at a time."""
    with pq.ParquetFile(path) as source:
        for batch in source.iter_batches(BATCH_ROWS):
            yield pl.DataFrame(pl.from_arrow(batch))


def read_mib(field: str) -> float:
    """Return a memory figure of this process (Linux): VmRSS held now, VmHWM the most ever held.

    Not getrusage: its maximum starts at what the parent of the process held.
    """
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(field)).split()[1]) / 1024


def measure_memory(pools: Sequence[int], cases: Sequence[int]) -> list[dict[str, float]]:
    """Stream every pool against every set, each in a process of its own, smallest first."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for count in pools:
            path = Path(folder) / f"{count}.parquet"
            write_pool(path, count)
            for case_count in cases:
                print(f"streaming {count:,} questions against {case_count:,} cases ...", flush=True)
                command = [
                    sys.executable,
                    __file__,
                    "--stream",
                    str(path),
                    "--cases",
                    str(case_count),
                ]
                done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
                found.append(json.loads(done.stdout))
    return found


def describe_machine() -> dict[str, Any]:
    """Return what the figures were taken on."""
    info = Path("/proc/cpuinfo")
    models = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.exists() else ())
        if line.startswith("model name")
    ]
    libraries = ("numpy", "polars", "pyarrow", "threadpoolctl", "semhash", "vicinity", "usearch")
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "versions": {name: version(name) for name in libraries if find_spec(name)},
    }


def show_speed(figures: dict[str, Any]) -> None:
    """Print one table of arms."""
    print(f"\n{figures['case_count']:,} eval rows, {figures['rounds']} rounds: median [min to max]")
    print(f"{'arm':<16}{'questions':>10}{'rejected':>10}{'M pairs/s':>26}{'x of gemm':>24}")
    for name, arm in figures["arms"].items():
        rate, share = arm["pairs_per_second"], arm["share_of_gemm"]
        rates = (
            f"{rate['median'] / 1e6:,.1f} [{rate['min'] / 1e6:,.1f} to {rate['max'] / 1e6:,.1f}]"
        )
        shares = f"{share['median']:.3f} [{share['min']:.3f} to {share['max']:.3f}]"
        rejected = "-" if name == "gemm" else f"{arm['rejected_count']}/{arm['planted_count']}"
        print(f"{name:<16}{arm['candidate_count']:>10,}{rejected:>10}{rates:>26}{shares:>24}")


def show_memory(found: Sequence[dict[str, float]]) -> None:
    """Print one row per stream."""
    print(f"\n{'questions':>10}{'eval rows':>11}{'seconds':>9}{'M pairs/s':>11}{'resting MiB':>13}"
          f"{'peak MiB':>10}")  # fmt: skip
    for row in found:
        rate = row["pool_rows"] * row["case_count"] / row["seconds"] / 1e6
        print(f"{row['pool_rows']:>10,}{row['case_count']:>11,}{row['seconds']:>9.1f}{rate:>11,.1f}"
              f"{row['resting_mib']:>13.0f}{row['peak_mib']:>10.0f}")  # fmt: skip


def main() -> None:
    """Print the figures, and with --json one object last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pools", default="10000,100000,1000000", help="sizes; empty: no streams")
    parser.add_argument("--cases", default="150,10000", help="sizes of the eval set")
    parser.add_argument("--stream", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = [int(size) for size in options.cases.split(",")]
    if options.stream:
        sys.stdout.write(json.dumps(stream(options.stream, cases[0])))
        return
    machine = describe_machine()
    print(f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_before']:.1f}; "
          f"python {machine['python']}, "
          f"{', '.join(f'{n} {v}' for n, v in machine['versions'].items())}")  # fmt: skip
    if "semhash" not in machine["versions"]:
        print("semhash is not installed: pip install -e .[bench]")
    speed = []
    for case_count in cases:
        speed.append(measure_speed(case_count, options.rounds))
        show_speed(speed[-1])
    pools = [int(size) for size in options.pools.split(",") if size]
    memory = measure_memory(pools, cases)
    show_memory(memory)
    if options.json:
        sys.stdout.write(json.dumps({"machine": machine, "speed": speed, "memory": memory}) + "\n")


if __name__ == "__main__":
    main()
