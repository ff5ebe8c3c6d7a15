"""The embedder against sentence-transformers as it comes and against ONNX Runtime: same model.

Run: `python bench/embedding.py [--json] [--texts 256] [--queries 100] [--rounds 3] [--docs DIR]`.
Arms take turns in one process, in an order that rotates; each arm's memory is taken in a process of
its own. On a busy machine read the tokens per CPU second: waiting for a core is not in them. ONNX
Runtime runs where `onnx` and `onnxruntime` are installed (`pip install '.[bench]'`).
"""

import argparse
import importlib.util
import json
import logging
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from resources.embeddings import CachedEmbedder  # noqa: E402 - run as a script from anywhere
from serving.models.compiled_embedder import CompiledEmbedder, batch_by_length  # noqa: E402
from serving.models.embedded import resolve_model  # noqa: E402
from serving.models.embedder import SentenceEmbedder, load_embedder  # noqa: E402

MODEL, REVISION = "sentence-transformers/all-MiniLM-L6-v2", "embedded"
BASELINE, TUNED, OURS, ONNX = "sentence-transformers", "torch, small batches", "ours", "onnxruntime"
LIBRARIES = ("openvino", "torch", "sentence-transformers", "transformers", "onnxruntime", "numpy")
CHARS_OF_A_TEXT, CHARS_OF_A_QUERY = 400, 60

Embed = Callable[[Sequence[str]], np.ndarray]


def load_arm(name: str, models: Path) -> Embed:
    """Return the function that embeds texts in this arm's way."""
    resolved = resolve_model(MODEL, REVISION, models)
    if name == OURS:
        embedder = load_embedder(MODEL, REVISION, models)
        if not isinstance(embedder, CompiledEmbedder):
            raise SystemExit("the compiled embedder was refused: see the log")
        return embedder.embed
    if name == TUNED:
        return SentenceEmbedder(resolved.path, sha256=resolved.sha256).embed
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(resolved.path), device="cpu")
    if name == ONNX:
        return _export_to_onnx(model, models / "bench.onnx")
    return lambda texts: model.encode(
        list(texts), normalize_embeddings=True, show_progress_bar=False
    )


def _export_to_onnx(model: Any, file: Path) -> Embed:
    """Export the transformer alone, with pooling in numpy, and batch it as ours is batched."""
    import onnxruntime
    import torch

    body, tokenizer = model[0].auto_model.eval(), model.tokenizer.backend_tokenizer
    body.set_attn_implementation("eager")
    names = ["input_ids", "attention_mask"]
    example = torch.ones(2, 8, dtype=torch.int64)

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.body(input_ids=ids, attention_mask=mask).last_hidden_state

    axes = {0: "batch", 1: "length"}
    with torch.no_grad():
        torch.onnx.export(Hidden(), (example, example), str(file), input_names=names, dynamo=False,
                          output_names=["hidden"], opset_version=17,
                          dynamic_axes=dict.fromkeys([*names, "hidden"], axes))  # fmt: skip
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)

    def embed(texts: Sequence[str]) -> np.ndarray:
        rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
        vectors = np.empty((len(rows), 384), dtype=np.float32)
        for batch in batch_by_length([len(row) for row in rows], 512, mixes=True):
            longest = max(len(rows[n]) for n in batch)
            ids = np.array([rows[n] + [0] * (longest - len(rows[n])) for n in batch])
            mask = (np.arange(longest) < [[len(rows[n])] for n in batch]).astype(np.int64)
            (hidden,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
            pooled = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
            vectors[batch] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return vectors

    return embed


def read_texts(folder: Path, count: int) -> list[str]:
    """Return `count` different pieces of documentation of up to 400 characters, seeded."""
    pieces = dict.fromkeys(
        block.strip()[:CHARS_OF_A_TEXT]
        for path in sorted(folder.rglob("*.mdx"))
        for block in path.read_text("utf-8").split("\n\n")
        if len(block.strip()) > CHARS_OF_A_QUERY
    )
    order = np.random.default_rng(11).permutation(len(pieces))[:count]
    return [list(pieces)[n] for n in order]


def clock(embed: Embed, texts: Sequence[str]) -> float:
    """Return the seconds one call takes."""
    started = time.perf_counter()
    embed(texts)
    return time.perf_counter() - started


def measure(arms: dict[str, Embed], texts: list[str], queries: list[str], rounds: int) -> Any:
    """Return per arm each round's seconds and CPU seconds of the bulk, and each query's ms."""
    processor: dict[str, list[float]] = {name: [] for name in arms}
    bulk: dict[str, list[float]] = {name: [] for name in arms}
    single: dict[str, list[float]] = {name: [] for name in arms}
    for embed in arms.values():
        embed(texts[:16])
        embed(queries[:1])
    names = list(arms)
    for turn in range(rounds):
        print(f"  round {turn + 1} of {rounds}", file=sys.stderr)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            before = time.process_time()
            bulk[name].append(clock(arms[name], texts))
            processor[name].append(time.process_time() - before)
        for query in queries:
            for name in names:
                single[name].append(1000 * clock(arms[name], [query]))
    return bulk, processor, single


def measure_cache(embed: Embed, fingerprint: str, texts: list[str], rounds: int) -> list[float]:
    """Return texts read back per second, of 10,000 kept vectors."""

    class Kept:
        dimension, maximum_tokens = 384, 256

        def __init__(self) -> None:
            self.fingerprint = fingerprint
            self.vectors = embed(texts)

        def embed(self, asked: Sequence[str]) -> np.ndarray:
            return self.vectors[[int(text) % len(texts) for text in asked]]

        def count_tokens(self, asked: Sequence[str]) -> list[int]:
            return [1] * len(asked)

    keys = [str(n) for n in range(10_000)]
    with tempfile.TemporaryDirectory() as folder:
        cached = CachedEmbedder(Kept(), Path(folder))
        cached.embed(keys)
        rates = [len(keys) / clock(cached.embed, keys) for _ in range(rounds)]
        cached.close()
    return rates


def measure_memory(name: str, models: Path) -> float:
    """Return the peak resident MB of a process that loads this arm alone and embeds 64 texts."""
    command = [sys.executable, __file__, "--memory-of", name, "--models", str(models)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return float(done.stdout.split()[-1])


def peak_memory_mb() -> float:
    """Return this process's peak resident MB (rusage would count its parent's at the fork)."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (x for x in status.read_text("utf-8").splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return min, median and max."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def describe_machine() -> dict[str, object]:
    """Return processor, cores, load and versions."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = "absent"
    return {"cpu": model, "cores": os.cpu_count(), "load": os.getloadavg()[0], **versions}


def run(options: argparse.Namespace, models: Path) -> dict[str, object]:
    """Measure every arm and return the figures."""
    names = [BASELINE, TUNED, OURS]
    if all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
        names.append(ONNX)
    texts = read_texts(options.docs, options.texts)
    queries = [text[:CHARS_OF_A_QUERY] for text in texts[: options.queries]]
    arms = {name: load_arm(name, models) for name in names}
    ours = load_embedder(MODEL, REVISION, models)
    tokens = sum(min(count, ours.maximum_tokens) + 2 for count in ours.count_tokens(texts))
    reference = arms[BASELINE](texts)
    bulk, processor, single = measure(arms, texts, queries, options.rounds)
    figures: dict[str, object] = {}
    for name in names:
        vectors = arms[name](texts)
        ratios = [base / own for base, own in zip(bulk[BASELINE], bulk[name], strict=True)]
        faster = [base / own for base, own in zip(single[BASELINE], single[name], strict=True)]
        figures[name] = {
            "texts_per_second": spread([len(texts) / s for s in bulk[name]]),
            "tokens_per_second": spread([tokens / s for s in bulk[name]]),
            "tokens_per_cpu_second": spread([tokens / s for s in processor[name]]),
            "bulk_speedup": spread(ratios),
            "query_p50_ms": float(np.percentile(single[name], 50)),
            "query_p95_ms": float(np.percentile(single[name], 95)),
            "query_speedup_median": statistics.median(faster),
            "largest_difference": float(np.abs(vectors - reference).max()),
            "smallest_cosine": float((vectors * reference).sum(axis=1).min()),
            "peak_memory_mb": measure_memory(name, models),
        }
    cached = measure_cache(arms[OURS], ours.fingerprint, texts, options.rounds)
    return {
        "texts": len(texts), "tokens": tokens, "queries": len(queries), "rounds": options.rounds,
        "arms": figures, "cached_texts_per_second": spread(cached), "machine": describe_machine(),
    }  # fmt: skip


def show(figures: Any) -> None:
    """Print the figures as a table."""
    print(f"{figures['texts']} texts, {figures['tokens']} tokens, {figures['queries']} queries, "
          f"{figures['rounds']} rounds")  # fmt: skip
    print(f"{'arm':24}{'texts/s (min-max)':>22}{'tokens/s':>10}{'x':>6}{'/CPU s':>8}"
          f"{'p50 ms':>9}{'p95 ms':>9}{'x':>6}{'max diff':>10}{'peak MB':>9}")  # fmt: skip
    for name, arm in figures["arms"].items():
        rate, speedup = arm["texts_per_second"], arm["bulk_speedup"]
        between = f"{rate['median']:.1f} ({rate['min']:.1f}-{rate['max']:.1f})"
        print(f"{name:24}{between:>22}{arm['tokens_per_second']['median']:>10.0f}"
              f"{speedup['median']:>6.2f}{arm['tokens_per_cpu_second']['median']:>8.0f}"
              f"{arm['query_p50_ms']:>9.2f}{arm['query_p95_ms']:>9.2f}"
              f"{arm['query_speedup_median']:>6.2f}{arm['largest_difference']:>10.1e}"
              f"{arm['peak_memory_mb']:>9.0f}")  # fmt: skip
    rate = figures["cached_texts_per_second"]
    print(f"kept vectors read back: {rate['median']:.0f} texts/s ({rate['min']:.0f}-"
          f"{rate['max']:.0f})")  # fmt: skip
    print("; ".join(f"{key} {value}" for key, value in figures["machine"].items()))


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="a folder of MDX pages")
    parser.add_argument("--models", type=Path, help="prepared models (default: made anew)")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        models = options.models or Path(folder)
        if options.memory_of:
            load_arm(options.memory_of, models)(read_texts(options.docs, 64))
            print(peak_memory_mb())
            return
        figures = run(options, models)
    show(figures)
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
