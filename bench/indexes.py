"""Indexes that a benchmark builds and times, of real and of synthetic chunks.

Belongs here: what a build and a question cost. Does not belong here: whether the right chunk is
found (`retrieval`).
"""

import asyncio
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from bench.question_sets import QuestionSet
from serving.models.protocols import Embedder
from serving.pipeline.index_tables import CHUNKS, PAGES, WINDOWS
from serving.pipeline.indexing import (
    WINDOW_TOKENS,
    Cut,
    IndexedChunk,
    IndexPlan,
    build_index,
    plan_index,
)
from serving.pipeline.retrieval import CANDIDATES, LanceRetriever
from serving.pipeline.vector_search import VectorsOnDisk, open_vectors

DEPTH = CANDIDATES  # chunks a question brings back where documents are read off them
TIMED_QUESTIONS = 100
ANSWERED_FROM = 3  # chunks that an answer is written from
BROUGHT = 2 * CANDIDATES  # chunks that the search by vectors brings to a question


@dataclass(frozen=True, kw_only=True)
class Built:
    """An index of ours on disk, and what it took."""

    folder: Path
    fingerprint: str
    seconds: float
    megabytes: float
    window_count: int


def build(
    chunks: Sequence[IndexedChunk],
    embedder: Embedder,
    folder: Path,
    window_tokens: int = WINDOW_TOKENS,
) -> Built:
    """Build our index of these chunks; embedding them is not in the seconds."""
    plan = plan_index(
        chunks,
        maximum_tokens=embedder.maximum_tokens,
        count_tokens=embedder.count_tokens,
        window_tokens=window_tokens,
    )
    vectors = embedder.embed(plan.texts)
    return build_timed(folder, chunks, plan, vectors, embedder.fingerprint)


def build_timed(
    folder: Path,
    chunks: Sequence[IndexedChunk],
    plan: IndexPlan,
    vectors: np.ndarray,
    embedder_fingerprint: str,
) -> Built:
    """Build an index and return what it took."""
    started = time.perf_counter()
    fingerprint = build_index(folder, chunks, plan, vectors, embedder_fingerprint)
    seconds = time.perf_counter() - started
    files = [path for path in (folder / fingerprint).rglob("*") if path.is_file()]
    return Built(
        folder=folder,
        fingerprint=fingerprint,
        seconds=seconds,
        megabytes=sum(path.stat().st_size for path in files) / 1e6,
        window_count=len(plan.windows),
    )


async def open_built(built: Built, embedder: Embedder, k: int = DEPTH) -> LanceRetriever:
    """Open an index."""
    return await LanceRetriever.open(
        built.folder, fingerprint=built.fingerprint, embedder=embedder, k=k
    )


async def measure_latency(
    retriever: LanceRetriever, embedder: Embedder, questions: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return milliseconds of whole retrievals (k = 3), and of embedding the question alone."""
    await retriever.retrieve(questions[0], k=3)  # the first opens files and loads the model
    seconds: dict[str, list[float]] = {"retrieve_ms": [], "embed_ms": []}
    for question in questions[:TIMED_QUESTIONS]:
        started = time.perf_counter()
        await retriever.retrieve(question, k=3)
        seconds["retrieve_ms"].append(time.perf_counter() - started)
        started = time.perf_counter()
        await asyncio.to_thread(embedder.embed, [question])
        seconds["embed_ms"].append(time.perf_counter() - started)
    return {
        name: {f"p{q}": float(np.percentile(values, q)) * 1000 for q in (50, 95)}
        for name, values in seconds.items()
    }


def print_costs(figures: dict[str, Any]) -> None:
    """Print latency, build time and size."""
    whole, part = figures["retrieve_ms"], figures["embed_ms"]
    print(
        f"  retrieval p50 {whole['p50']:.1f} ms, p95 {whole['p95']:.1f} ms; of it embedding the "
        f"question p50 {part['p50']:.1f} ms; {figures['vectors']} vectors; built in "
        f"{figures['build_seconds']:.1f} s, {figures['index_mb']:.1f} MB"
    )


class SyntheticChunks(Sequence[IndexedChunk]):
    """Chunks made on demand from the sentences of real ones, so that they take no memory."""

    def __init__(self, texts: Sequence[str], count: int) -> None:
        self._texts, self._count = texts, count

    def __len__(self) -> int:
        """How many there are."""
        return self._count

    def __getitem__(self, position: Any) -> Any:
        """Return the chunk at a position: four lines drawn by its number."""
        if position >= self._count:
            raise IndexError(position)
        chosen = np.random.default_rng(position).integers(len(self._texts), size=4)
        return IndexedChunk(
            chunk_id=f"docs:page-{position // 20}/{position % 20 + 1}",
            content_hash=str(position),
            title="Synthetic",
            url=f"/page-{position // 20}/",
            heading_path=("Synthetic", f"Part {position % 20}"),
            text="\n".join(self._texts[n] for n in chosen),
        )


def build_synthetic(folder: Path, count: int, texts: list[str], near: np.ndarray) -> dict[str, Any]:
    """Build an index of `count` chunks in this (fresh) process and return what it took.

    Every second chunk has two windows. Vectors are real ones with noise (cosine about 0.7 to their
    origin) in a memory map.
    """
    owners = sorted([*range(count), *range(0, count, 2)])
    firsts = tuple(np.flatnonzero(np.diff(owners, prepend=-1)).tolist())
    plan = IndexPlan(
        texts=("",) * len(owners),
        windows=Cut(chunks=tuple(owners), texts=tuple(range(len(owners)))),
        parts=Cut(chunks=tuple(range(count)), texts=firsts),
    )
    file = folder / "vectors.f32"
    vectors = np.memmap(file, dtype=np.float32, mode="w+", shape=(len(owners), near.shape[1]))
    rng = np.random.default_rng(7)
    for start in range(0, len(owners), 4096):
        block = near[rng.integers(len(near), size=min(4096, len(owners) - start))]
        noise = rng.normal(size=block.shape).astype(np.float32) / np.sqrt(near.shape[1])
        block = block + noise
        vectors[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    vectors.flush()
    import lancedb  # noqa: F401 - what a library takes to load is not what a build takes

    before = read_memory_mb()
    with watch_memory() as seen:
        built = build_timed(folder, SyntheticChunks(texts, count), plan, vectors, "synthetic")
    return {"built": built, "build_memory_mb": max(seen) - before, "peak_memory_mb": max(seen)}


def read_memory_mb() -> float:
    """Return this process's own memory (anonymous pages, Linux): mapped files are not counted."""
    status = Path("/proc/self/status")
    found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else float("nan")


@contextmanager
def watch_memory(every_seconds: float = 0.02) -> Iterator[list[float]]:
    """Yield a list that fills with what `read_memory_mb` says while the block runs."""
    seen, done = [read_memory_mb()], threading.Event()

    def watch() -> None:
        while not done.wait(every_seconds):
            seen.append(read_memory_mb())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


async def measure_scale(
    count: int, real: QuestionSet, embedder: Embedder, kept: Embedder, folder: Path
) -> dict[str, Any]:
    """Return latency, build time, size, memory, and what an approximate search misses."""
    texts = [line for chunk in real.chunks for line in chunk.text.splitlines() if line.strip()]
    near = kept.embed([chunk.search_text for chunk in real.chunks])
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        made = fresh.submit(build_synthetic, folder, count, texts, near).result()
    built = made.pop("built")
    retriever = await open_built(built, embedder)
    questions = list(real.questions.values())
    figures = {
        "chunks": count,
        "vectors": built.window_count,
        "build_seconds": built.seconds,
        "index_mb": built.megabytes,
        **made,
        **await measure_latency(retriever, embedder, questions),
        "vector_recall": await measure_recall(
            built.folder / built.fingerprint, embedder, questions
        ),
    }
    print(f"\nsynthetic index of {count} chunks")
    print_costs(figures)
    print(
        f"  a question over {count} chunks, its embedding included: p50 "
        f"{figures['retrieve_ms']['p50']:.1f} ms"
    )
    print(
        f"  build: at most {figures['build_memory_mb']:.0f} MB on top of the process's own, "
        f"{figures['peak_memory_mb']:.0f} MB in all"
    )
    print(f"  {describe_search(figures['vector_recall'])}")
    return figures


def describe_search(recall: Mapping[str, float] | None) -> str:
    """Say how vectors are searched, and what that misses."""
    if recall is None:
        return "vectors are held in memory and all compared: the search is exact"
    found = ", ".join(f"{share:.3f} of the {nearest} nearest" for nearest, share in recall.items())
    return (
        f"vectors are searched on disk in partitions: among the {BROUGHT} chunks that it brings "
        f"to a question are {found}"
    )


async def measure_recall(
    folder: Path, embedder: Embedder, questions: Sequence[str]
) -> dict[str, float] | None:
    """Return which share of the truly nearest chunks the product's search finds, by their number.

    None where it compares all vectors: there is nothing to miss. Pages have no part in it: they
    order chunks that were found.
    """
    import lancedb

    database = await lancedb.connect_async(str(folder))
    chunks, windows, pages = [await database.open_table(t) for t in (CHUNKS, WINDOWS, PAGES)]
    with ThreadPoolExecutor(1) as threads:
        index = await open_vectors(chunks, windows, pages, threads)
    if not isinstance(index, VectorsOnDisk):
        return None
    owners = (await windows.query().select(["chunk"]).to_arrow())["chunk"].to_numpy()
    # So many nearest windows are at least so many chunks as a question is brought.
    limit = BROUGHT * int(np.bincount(owners).max())

    async def search_exactly(vector: np.ndarray) -> list[int]:
        query = windows.query().nearest_to(vector).distance_type("cosine").bypass_vector_index()
        rows = await query.limit(limit).select(["chunk", "_distance"]).to_list()
        best_first = sorted(rows, key=lambda row: row["_distance"])
        return list(dict.fromkeys(row["chunk"] for row in best_first))[:BROUGHT]

    found = dict.fromkeys((ANSWERED_FROM, BROUGHT), 0.0)
    vectors = embedder.embed(list(questions[:TIMED_QUESTIONS]))
    for vector in vectors:
        brought = set(await index.search(vector, BROUGHT, None))
        nearest = await search_exactly(vector)
        for count in found:
            found[count] += len(brought.intersection(nearest[:count])) / len(nearest[:count])
    return {str(count): total / len(vectors) for count, total in found.items()}
