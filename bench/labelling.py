"""Labelling through the full pipeline, against a stub teacher of fixed latency on a socket.

Run: `python bench/labelling.py [--questions 2000] [--concurrency 64] [--latency-ms 50] [--json]`;
`--questions 12000` is the size of a real run. Everything is what a run uses: this repo's docs
chunked and indexed, retrieval, prompt, client, validator, cache on disk, budget. The stub is a
process of its own. Arms: the client alone (what the wire and the SDK allow on this machine), the
pipeline buying every answer, the pipeline finding every answer in its cache. A last pass over a few
hundred new questions is profiled; it is slower for that and counts nowhere else.
"""

import argparse
import asyncio
import cProfile
import itertools
import json
import multiprocessing
import os
import platform
import pstats
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import uvicorn

from assets.labels.answering import AskedQuestion, embed_ahead, keep_answers, label_questions
from assets.tables import TEACHER_ANSWERS
from orchestration.bindings import Bindings
from orchestration.config import load_config
from orchestration.running import run_chain
from resources.chat_models import CachedChatModel
from resources.pacing import Pace
from serving.aio import map_bounded
from serving.models.openai_chat import connect
from serving.models.protocols import ChatRequest, NoProgress, Price

PRICE = Price(input_usd_per_mtok=3.0, output_usd_per_mtok=15.0)
FRAMES = (
    "{}", "what does this mean: {}", "is it true that {}", "where do the docs say: {}",
    "explain to a newcomer: {}", "short answer please: {}", "why: {}", "how would I check that {}",
    "since when: {}", "what follows from this: {}", "who needs to know that {}", "in one word: {}",
)  # fmt: skip
LIBRARIES = ("openai", "lancedb", "polars", "sentence-transformers", "uvicorn")
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("retrieval", ("/pipeline/retrieval", "/lancedb/", "/pyarrow/", "/numpy/", "/embed")),
    ("prompt", ("/pipeline/prompt", "/pipeline/sentences", "/markdown_it/")),
    ("validator", ("/pipeline/validator", "/pipeline/statements")),
    ("answer path", ("/pipeline/", "/assets/labels/", "/serving/aio", "/polars/", "/tokenizers/")),
    ("cache and budget", ("/resources/", "/serving/hashing", "/sqlite3/", "/json/", "dataclasses")),
    ("client", ("/openai/", "/openai_chat", "httpx2", "httpcore2", "/h11/", "/pydantic", "/anyio/",
                "/sniffio/", "/models/")),
    ("event loop", ("/asyncio/", "selectors", "/threading", "/concurrent/", "contextlib")),
)  # fmt: skip
OURS = ("retrieval", "prompt", "validator", "answer path", "cache and budget")


def serve_teacher(latency_seconds: float, port: "multiprocessing.Queue[int]") -> None:
    """Answer chat completions with the first quoted sentence of the first source."""

    async def app(scope: dict[str, Any], receive: Callable[[], Any], send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
        system = json.loads(body)["messages"][0]["content"]
        await asyncio.sleep(latency_seconds)
        reply = write_reply(system).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(reply))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": reply})

    config = uvicorn.Config(app, port=0, log_level="error", ws="none", lifespan="off")
    server = uvicorn.Server(config)

    async def run() -> None:
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port.put(server.servers[0].sockets[0].getsockname()[1])
        await task

    asyncio.run(run())


def write_reply(system: str) -> str:
    """Return the body of an answer that quotes a source, as a good teacher would."""
    source = system.partition("Sources:\n")[2].splitlines()[0]
    quoted = source.partition(": ")[2].partition(" [1]")[0]
    message = {"role": "assistant", "content": f"{quoted} [1]"}
    usage = {"prompt_tokens": len(system) // 4, "completion_tokens": len(quoted) // 4}
    return json.dumps(
        {
            "id": "1", "object": "chat.completion", "created": 1, "model": "stub-1",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {**usage, "total_tokens": sum(usage.values())},
        }
    )  # fmt: skip


def write_questions(chunks: pl.DataFrame, count: int) -> list[AskedQuestion]:
    """Return distinct questions about the docs: sentences of every chunk in a few frames."""
    sentences = dict.fromkeys(
        sentence.strip()[:200]
        for text in chunks["text"]
        for sentence in text.replace("\n", " ").split(". ")
        if len(sentence.split()) > 4
    )
    texts = (frame.format(sentence) for frame in FRAMES for sentence in sentences)
    chosen = list(itertools.islice(texts, count))
    if len(chosen) < count:
        raise SystemExit(f"the docs give {len(chosen)} questions; ask for no more than that")
    order = np.random.default_rng(1).permutation(count)
    return [
        AskedQuestion(question_id=f"q{n}", seed_id=f"s{n}", text=chosen[n]) for n in order.tolist()
    ]


class MemoryWatch(threading.Thread):
    """Samples this process's resident memory, in MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_mb = self.peak_mb = read_resident_mb()
        self._stop_it = threading.Event()

    def run(self) -> None:
        """Sample until `stop`."""
        while not self._stop_it.wait(0.2):
            self.peak_mb = max(self.peak_mb, read_resident_mb())

    def stop(self) -> float:
        """End sampling and return the peak."""
        self._stop_it.set()
        self.join()
        return self.peak_mb


def read_resident_mb() -> float:
    """Return this process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Bench:
    """The parts, built once; each arm runs over them."""

    def __init__(self, options: argparse.Namespace, home: Path, url: str) -> None:
        self.options, self.home, self.url = options, home, url
        prepared = load_config().home / "models"
        if prepared.is_dir():  # the student's tokenizer takes half a minute to prepare anew
            (home / "models").symlink_to(prepared.resolve())
        self.config = load_config({"UNDERSTUDY_HOME": str(home)})
        self.bindings = Bindings(self.config, NoProgress())
        recipe = self.config.default_recipe
        outcome = run_chain(self.config, progress=NoProgress(), recipe=recipe, select=["corpus"])
        if not outcome.succeeded:
            raise SystemExit(outcome.failure)
        tables = self.bindings.home.table
        self.chunks = pl.read_parquet(tables("corpus/chunks"))
        index = pl.read_parquet(tables("corpus/vector_index"))
        self.fingerprint = index["index_fingerprint"].item()

    def open_teacher(self, folder: str) -> CachedChatModel:
        """Return a fresh model over a cache folder, as a new process would have it."""
        return CachedChatModel(
            connect(self.url, None, model="stub-1", price=PRICE, retries=0),
            self.home / folder,
            budget_usd=1e6,
            pace=Pace(self.options.concurrency, deadline_seconds=600),
        )

    async def label(
        self, questions: Sequence[AskedQuestion], teacher: CachedChatModel
    ) -> pl.DataFrame:
        """Label as the asset does."""
        parts = replace(self.bindings.pipeline_parts, teacher=teacher)
        embed_ahead(questions, parts.embedder)
        pipeline = await parts.assemble(self.fingerprint)
        return await label_questions(
            questions,
            pipeline=pipeline,
            kept=keep_answers(TEACHER_ANSWERS.to_frame(), ""),
            concurrency=self.options.concurrency,
            progress=NoProgress(),
        )

    def measure(self, questions: Sequence[AskedQuestion], folder: str) -> dict[str, float]:
        """Label into a cache and return rate, CPU, memory and spend."""
        teacher, watch = self.open_teacher(folder), MemoryWatch()
        watch.start()
        started, cpu = time.perf_counter(), time.process_time()
        frame = asyncio.run(self.label(questions, teacher))
        seconds = time.perf_counter() - started
        return {
            "answers_per_second": len(questions) / seconds,
            "seconds": seconds,
            "cpu_ms_per_answer": (time.process_time() - cpu) / len(questions) * 1000,
            "memory_start_mb": watch.start_mb,
            "memory_peak_mb": watch.stop(),
            "valid_ratio": float((frame["validator_verdict"] == "valid").mean()),
            "bought": teacher.meter.bought_count,
            "reused": teacher.meter.reused_count,
            "spent_usd": teacher.meter.spent_usd,
        }

    def measure_client(self, count: int) -> dict[str, float]:
        """Ask the same server for as many answers with nothing of ours around the client."""
        model = connect(self.url, None, model="stub-1", price=PRICE, retries=0)
        system = "Sources:\n[1] Page: " + "A sentence of the docs that is quoted. [1] " * 30

        async def ask(number: int) -> None:
            user = f"question {number}"
            await model.complete(
                ChatRequest(
                    messages=(
                        {"role": "system", "content": system},
                        {"role": "user", "content": user},
                    )
                )
            )

        async def ask_all() -> None:
            await map_bounded(
                ask,
                range(count),
                concurrency=self.options.concurrency,
                progress=NoProgress(),
                description="",
            )

        started, cpu = time.perf_counter(), time.process_time()
        asyncio.run(ask_all())
        seconds = time.perf_counter() - started
        return {
            "answers_per_second": count / seconds,
            "cpu_ms_per_answer": (time.process_time() - cpu) / count * 1000,
        }

    def profile(self, questions: Sequence[AskedQuestion]) -> dict[str, float]:
        """Return the milliseconds of CPU an answer takes of the event loop's thread, by part.

        `other threads` is what the process used beside it: embedding, the index, flushing.
        """
        profiler = cProfile.Profile(time.thread_time)
        cpu = time.process_time()
        profiler.enable()
        asyncio.run(self.label(questions, self.open_teacher("profiled")))
        profiler.disable()
        total = (time.process_time() - cpu) / len(questions) * 1000
        groups = group_profile(pstats.Stats(profiler))
        by_part = {part: seconds / len(questions) * 1000 for part, seconds in groups.items()}
        return {**by_part, "other threads": max(0.0, total - sum(by_part.values()))}


def group_profile(stats: pstats.Stats) -> dict[str, float]:
    """Return seconds by group; a builtin counts for the Python function that called it."""
    seconds: Counter[str] = Counter()
    for (path, _, _), (_, _, own, _, callers) in stats.stats.items():  # type: ignore[attr-defined]
        if path != "~":
            seconds[find_group(path)] += own
            continue
        for (caller, _, _), (_, _, spent, _) in callers.items():
            seconds[find_group(caller)] += spent
    return {name: seconds[name] for name in (*(name for name, _ in GROUPS), "other")}


def find_group(path: str) -> str:
    """Return the part of the program a file belongs to."""
    for name, parts in GROUPS:
        if any(part in path for part in parts):
            return name
    return "other"


@contextmanager
def teacher_process(latency_seconds: float) -> Iterator[str]:
    """Yield the base URL of a stub teacher in a process of its own."""
    context = multiprocessing.get_context("spawn")
    port: multiprocessing.Queue[int] = context.Queue()
    process = context.Process(target=serve_teacher, args=(latency_seconds, port), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port.get(timeout=60)}/v1"
    finally:
        process.terminate()
        process.join()


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """Run every arm in one go and return their figures."""
    with (
        tempfile.TemporaryDirectory() as folder,
        teacher_process(options.latency_ms / 1000) as url,
    ):
        announce("indexing the docs")
        bench = Bench(options, Path(folder), url)
        extra = min(options.profiled, options.questions)
        questions = write_questions(bench.chunks, options.questions + extra)
        bench.measure(questions[-16:], "warm-up")
        announce("the client alone")
        client = bench.measure_client(options.questions)
        announce(f"{client['answers_per_second']:.0f} answers/s")
        announce(f"buying {options.questions} answers")
        bought = bench.measure(questions[: options.questions], "bought")
        announce(f"{bought['answers_per_second']:.0f} answers/s")
        announce("the same again, all of them kept")
        reused = bench.measure(questions[: options.questions], "bought")
        announce(f"{reused['answers_per_second']:.0f} answers/s")
        announce(f"profiling {extra} more")
        parts = bench.profile(questions[options.questions :])
        chunk_count = bench.chunks.height
    ideal = options.concurrency / options.latency_ms * 1000
    total_ms = sum(parts.values())
    return {
        "questions": options.questions,
        "concurrency": options.concurrency,
        "latency_ms": options.latency_ms,
        "chunks": chunk_count,
        "ideal_answers_per_second": ideal,
        "client": client,
        "bought": bought,
        "reused": reused,
        "bought_over_client_ratio": bought["answers_per_second"] / client["answers_per_second"],
        "cpu_ms_by_part": parts,
        "our_loop_share_ratio": sum(parts[name] for name in OURS) / total_ms,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{platform.system()}",
        "versions": {"python": platform.python_version()} | {n: version(n) for n in LIBRARIES},
    }


def announce(text: str) -> None:
    """Say what is going on, beside the figures."""
    print(f"… {text}", file=sys.stderr, flush=True)


def show(figures: dict[str, Any]) -> None:
    """Print the figures for people."""
    print(f"{figures['machine']}; {figures['versions']}")
    print(
        f"{figures['questions']} questions over {figures['chunks']} chunks, "
        f"{figures['concurrency']} at once, {figures['latency_ms']:g} ms latency: "
        f"ideal {figures['ideal_answers_per_second']:.0f} answers/s"
    )
    print(f"{'arm':<16}{'answers/s':>10}{'CPU ms':>9}{'MB start':>10}{'MB peak':>9}{'$':>9}")
    for arm in ("client", "bought", "reused"):
        row = figures[arm]
        memory = (
            f"{row['memory_start_mb']:>10.0f}{row['memory_peak_mb']:>9.0f}{row['spent_usd']:>9.3f}"
            if "spent_usd" in row
            else ""
        )
        print(
            f"{arm:<16}{row['answers_per_second']:>10.0f}{row['cpu_ms_per_answer']:>9.2f}{memory}"
        )
    print("CPU ms per answer by part (profiled, so slower than the arms):")
    for part, milliseconds in figures["cpu_ms_by_part"].items():
        print(f"  {part:<18}{milliseconds:>8.2f}")
    print(f"share of our own code in it: {figures['our_loop_share_ratio']:.0%}")


def main() -> None:
    """Print the figures, and with --json one object last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--profiled", type=int, default=300)
    figures = measure_all(parser.parse_args())
    show(figures)
    if "--json" in sys.argv:
        sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
