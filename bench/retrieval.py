"""Retrieval against its parts and its peers, on question sets with judgements; and at scale.

Run: `python bench/retrieval.py [--beir FOLDER ...] [--scale 10000 100000] [--only-scale] [--json]`.
Every set is searched by five arms over the same chunks and the same embedder: ours, ours without
pages (told that each chunk is a page of its own), dense only (exact cosine), bm25s, and LanceDB's
own hybrid (FTS and vectors by reciprocal rank). A set is scored by document: one counts where its
first chunk stands. Sets: the development sets, this repo's golden cases (read only), every BEIR
folder; `--scale` times synthetic indexes and `--scale 0` none, `--only-scale` leaves the sets out.
Vectors of documents are kept in UNDERSTUDY_HOME, so a second run is faster; questions are always
embedded.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bench.indexes import (
    DEPTH,
    Built,
    build,
    measure_latency,
    measure_scale,
    open_built,
    print_costs,
)
from bench.question_sets import CORPORA, Judgements, QuestionSet, load_sets, open_embedders
from orchestration.config import load_config
from serving.models.protocols import Embedder
from serving.pipeline.indexing import IndexedChunk

MEASURES = ("nDCG@8", "R@1", "R@3", "R@8", "RR")
RESAMPLES = 2000
LIBRARIES = ("lancedb", "bm25s", "ir-measures", "numpy", "scipy", "sentence-transformers")

Arm = Callable[[str], Awaitable[Sequence[int]]]  # a question to positions of chunks, best first


async def make_arms(
    chunks: Sequence[IndexedChunk], built: Built, embedder: Embedder, kept: Embedder, folder: Path
) -> dict[str, Arm]:
    """Return the arms over the same texts; only ours cut long texts into windows."""
    import bm25s
    import lancedb
    import pyarrow as pa
    import Stemmer
    from lancedb.index import FTS
    from lancedb.rerankers import RRFReranker

    texts = [chunk.search_text for chunk in chunks]
    vectors = kept.embed(texts)
    alone = [replace(chunk, chunk_id=f"docs:{n}/1") for n, chunk in enumerate(chunks)]
    without_pages = build(alone, kept, folder)
    stemmer = Stemmer.Stemmer("english")
    words = bm25s.BM25()
    words.index(
        bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False),
        show_progress=False,
    )
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1), type=pa.float32())
    rows = pa.table(
        {
            "position": list(range(len(texts))),
            "text": texts,
            "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
    )
    table = await (await lancedb.connect_async(str(folder))).create_table("plain", rows)
    await table.create_index("text", config=FTS())

    async def dense(question: str) -> Sequence[int]:
        cosines = vectors @ embedder.embed([question])[0]
        return np.argsort(-cosines, kind="stable")[:DEPTH].tolist()

    async def bm25(question: str) -> Sequence[int]:
        tokens = bm25s.tokenize(question, stopwords="en", stemmer=stemmer, show_progress=False)
        depth = min(DEPTH, len(texts))
        found, scores = words.retrieve(tokens, k=depth, show_progress=False)
        return [int(n) for n, s in zip(found[0], scores[0], strict=True) if s > 0]

    async def rrf(question: str) -> Sequence[int]:
        plain = "".join(c if c.isalnum() else " " for c in question)
        query = table.query().nearest_to(embedder.embed([question])[0]).distance_type("cosine")
        query = query.nearest_to_text(plain, columns="text").rerank(RRFReranker())
        return [row["position"] for row in await query.limit(DEPTH).to_list()]

    return {
        "ours": await make_own_arm(chunks, built, embedder),
        "ours, no pages": await make_own_arm(alone, without_pages, embedder),
        "dense only": dense,
        "bm25s": bm25,
        "LanceDB RRF": rrf,
    }


async def make_own_arm(chunks: Sequence[IndexedChunk], built: Built, embedder: Embedder) -> Arm:
    """Return our retriever over an index of these chunks."""
    positions = {chunk.chunk_id: position for position, chunk in enumerate(chunks)}
    retriever = await open_built(built, embedder)

    async def ours(question: str) -> Sequence[int]:
        return [positions[hit.chunk_id] for hit in await retriever.retrieve(question)]

    return ours


async def rank_documents(arm: Arm, documents: Sequence[str], question: str) -> list[str]:
    """Return documents in the order in which their first chunks stand."""
    return list(dict.fromkeys([documents[position] for position in await arm(question)]))


def score_questions(
    judgements: Judgements, rankings: dict[str, list[str]]
) -> dict[str, np.ndarray]:
    """Return [questions] values of every measure, in the order of `rankings`."""
    import ir_measures

    run = [
        ir_measures.ScoredDoc(question, document, -float(place))
        for question, documents in rankings.items()
        for place, document in enumerate(documents)
    ]
    qrels = [
        ir_measures.Qrel(question, document, grade)
        for question, grades in judgements.items()
        for document, grade in grades.items()
    ]
    order = {question: position for position, question in enumerate(rankings)}
    values = {name: np.zeros(len(order)) for name in MEASURES}
    measures = [ir_measures.parse_measure(name) for name in MEASURES]
    for metric in ir_measures.iter_calc(measures, qrels, run):
        values[str(metric.measure)][order[metric.query_id]] = metric.value
    return values


def state_mean(values: np.ndarray) -> dict[str, float]:
    """Return the mean over questions with its 95 % bootstrap interval (percentile, seeded)."""
    from scipy.stats import bootstrap

    mean = float(values.mean())
    if np.ptp(values) == 0:
        return {"mean": mean, "low": mean, "high": mean}
    interval = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(7),
    ).confidence_interval
    return {"mean": mean, "low": float(interval.low), "high": float(interval.high)}


async def measure_quality(chosen: QuestionSet, arms: dict[str, Arm]) -> dict[str, Any]:
    """Return every measure by arm, and ours minus every other arm question by question."""
    scores: dict[str, dict[str, np.ndarray]] = {}
    for name, arm in arms.items():
        rankings = {
            key: await rank_documents(arm, chosen.documents, question)
            for key, question in chosen.questions.items()
        }
        scores[name] = score_questions(chosen.judgements, rankings)
    ours = scores["ours"]
    return {
        "arms": {
            arm: {measure: state_mean(values) for measure, values in measures.items()}
            for arm, measures in scores.items()
        },
        "ours_minus": {
            arm: {name: state_mean(ours[name] - measures[name]) for name in MEASURES}
            for arm, measures in scores.items()
            if arm != "ours"
        },
    }


async def measure_set(
    chosen: QuestionSet, embedder: Embedder, kept: Embedder, folder: Path
) -> dict[str, Any]:
    """Return quality, latency, build time and size of one set."""
    print(f"\n{chosen.name}: {len(chosen.chunks)} chunks, {len(chosen.questions)} questions")
    built = build(chosen.chunks, kept, folder)
    arms = await make_arms(chosen.chunks, built, embedder, kept, folder)
    quality = await measure_quality(chosen, arms)
    retriever = await open_built(built, embedder)
    figures = {
        "chunks": len(chosen.chunks),
        "vectors": built.window_count,
        "questions": len(chosen.questions),
        "build_seconds": built.seconds,
        "index_mb": built.megabytes,
        **await measure_latency(retriever, embedder, list(chosen.questions.values())),
        **quality,
    }
    print_set(figures)
    return figures


def print_set(figures: dict[str, Any]) -> None:
    """Print one set as a table."""
    print(f"  {'arm':14}" + "".join(f"{measure:>22}" for measure in MEASURES))
    for kind, prefix in (("arms", ""), ("ours_minus", "ours - ")):
        for arm, measures in figures[kind].items():
            cells = [
                f"{v['mean']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for v in measures.values()
            ]
            print(f"  {prefix + arm:20}"[:20] + "".join(f"{cell:>22}" for cell in cells))
    print_costs(figures)


async def measure(
    beir: Sequence[Path], scales: Sequence[int], *, only_scale: bool = False
) -> dict[str, Any]:
    """Return and print all figures."""
    config = load_config()
    embedder, kept = open_embedders()
    figures: dict[str, Any] = {
        "machine": describe_machine(),
        "versions": {name: version(name) for name in LIBRARIES},
        "sets": {},
        "scale": {},
    }
    print(f"machine: {figures['machine']}; embedder: {config.embedder.model}")
    sets = load_sets(beir, embedder)
    for chosen in [] if only_scale else sets:
        with tempfile.TemporaryDirectory() as folder:
            found = await measure_set(chosen, embedder, kept, Path(folder))
            figures["sets"][chosen.name] = found
    for count in scales:
        with tempfile.TemporaryDirectory() as folder:
            found = await measure_scale(count, sets[0], embedder, kept, Path(folder))
            figures["scale"][str(count)] = found
    return figures


def describe_machine() -> str:
    """Return processor and cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    return (
        f"{processor}, {os.cpu_count()} cores, {platform.system()}, load {os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    """Print the figures, and with --json one object last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = [CORPORA / "anthropic-docs-qa"] if (CORPORA / "anthropic-docs-qa").is_dir() else []
    parser.add_argument("--beir", type=Path, nargs="*", default=default, help="BEIR folders")
    parser.add_argument("--scale", type=int, nargs="*", default=[10_000], help="chunk counts")
    parser.add_argument("--only-scale", action="store_true", help="time, and score no set")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    options = parser.parse_args()
    scales = [count for count in options.scale if count]
    figures = asyncio.run(measure(options.beir, scales, only_scale=options.only_scale))
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
