"""The contamination guard against its floor: one matrix product of the same vectors.

Run: `python bench/guard.py [--json] [--candidates 20000] [--rounds 7]`. Arms are interleaved in one
process; a ratio of 1.0 means that deciding costs nothing beside comparing.
"""

import argparse
import json
import platform
import statistics
import sys
import time

import numpy as np

from assets.eval_set.guard import LEAKAGE_COSINE_LIMIT, reject_near_duplicates


def unit_rows(count: int, dimension: int, seed: int) -> np.ndarray:
    """Return [count, dimension] random unit vectors."""
    rows = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def measure(candidates: int, cases: int, dimension: int, rounds: int) -> dict[str, object]:
    """Return seconds per arm (min, median, max over rounds) and the ratio of medians."""
    pool, golden = unit_rows(candidates, dimension, 1), unit_rows(cases, dimension, 2)
    texts = [f"question {n}" for n in range(candidates)]
    names = [f"case {n}" for n in range(cases)]
    seconds: dict[str, list[float]] = {"gemm": [], "guard": []}
    for _ in range(rounds):
        started = time.perf_counter()
        (pool @ golden.T >= LEAKAGE_COSINE_LIMIT).any(axis=1)
        seconds["gemm"].append(time.perf_counter() - started)
        started = time.perf_counter()
        reject_near_duplicates(texts, pool, case_ids=names, case_texts=names, case_vectors=golden)
        seconds["guard"].append(time.perf_counter() - started)
    pairs = candidates * cases
    ratios = [g / b for g, b in zip(seconds["guard"], seconds["gemm"], strict=True)]
    return {
        "candidates": candidates,
        "cases": cases,
        "rounds": rounds,
        **{
            f"{arm}_seconds": {
                "min": min(values),
                "median": statistics.median(values),
                "max": max(values),
            }
            for arm, values in seconds.items()
        },
        "guard_pairs_per_second": pairs / statistics.median(seconds["guard"]),
        "guard_over_gemm_ratio": {
            "min": min(ratios),
            "median": statistics.median(ratios),
            "max": max(ratios),
        },
        "machine": f"{platform.processor() or platform.machine()}, {platform.system()}",
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
    }


def main() -> None:
    """Print the figures, and with --json one object last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--candidates", type=int, default=20_000)
    parser.add_argument("--cases", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    figures = measure(options.candidates, options.cases, 384, options.rounds)
    for name, value in figures.items():
        print(f"{name:>24}  {value}")
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
