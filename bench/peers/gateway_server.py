"""Ours as a gateway: the server over a release without a student, before the stub upstream.

Run by `bench/gateway.py` as a process of its own. `--index` gives the whole path: MiniLM, hybrid
search, the student's tokenizer; without it retrieval finds the same chunks for every question. The
server, its traces and the client of the upstream are the product's own.
"""

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import uvicorn

from serving.app import create_app, run_on_server_loop, set_loaded_aside
from serving.engine import ServingEngine
from serving.models.breaker import CircuitBreaker
from serving.models.guarded import GuardedChatModel
from serving.models.protocols import Hit, Price, Retriever
from serving.models.remote import connect_remote
from serving.pipeline.answer import AnswerPipeline
from serving.pipeline.assembly import estimate_tokens
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.retrieval import LanceRetriever
from serving.releases.manifest import ReleaseManifest
from serving.settings import ServerSettings
from serving.tracing.segments import SegmentWriter

K = 8
EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
STUDENT_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
PRICE = Price(input_usd_per_mtok=3.0, output_usd_per_mtok=15.0)


class SameHits:
    """A retriever that finds the same chunks for every question."""

    index_fingerprint = "stubbed"

    def __init__(self, hits: Sequence[Hit]) -> None:
        self._hits = tuple(hits)

    async def retrieve(self, _question: str) -> tuple[Hit, ...]:
        """Return the chunks."""
        return self._hits


class UntracedWriter(SegmentWriter):
    """Stores nothing and says it did: what durable traces cost is the difference."""

    async def append(self, _record: object) -> bool:
        """Store nothing."""
        self.stored_count += 1
        return True


def read_hits(path: Path) -> list[Hit]:
    """Return the chunks of a JSON file."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Hit(**{**row, "heading_path": tuple(row["heading_path"])}) for row in rows]


def make_engine(upstream: str, retriever: Retriever, **pipeline: object) -> ServingEngine:
    """Return an engine in the phase in which the teacher answers everything."""
    teacher = connect_remote(
        provider="openai",
        model="stub",
        base_url=upstream,
        api_key="sk-bench",
        price=PRICE,
        timeout_seconds=60.0,
        is_served=True,
    )
    prompt = PromptFormat()
    manifest = ReleaseManifest.model_validate(
        {
            "created_at": datetime(2026, 1, 1, tzinfo=UTC), "phase": "hitchhiker", "students": {},
            "teacher": {"provider": "openai", "model": "stub", "base_url": upstream,
                        "price": {"input_usd_per_mtok": 3.0, "output_usd_per_mtok": 15.0}},
            "embedder": {"model": EMBEDDER, "revision": "embedded", "fingerprint": "bench"},
            "index": {"uri": f"index/{retriever.index_fingerprint}",
                      "fingerprint": retriever.index_fingerprint},
            "retrieval": {"k": K},
            "prompt": {"citation_ids": "local", "version": prompt.version,
                       "max_answer_tokens": prompt.max_answer_tokens},
            "gate": {"verdict": "HOLD", "gates": []}, "distillation_loss_statement": "none",
        }
    )  # fmt: skip
    answering = AnswerPipeline(
        retriever=retriever,
        teacher=GuardedChatModel(teacher, breaker=CircuitBreaker(), timeout_seconds=60.0),
        student=None,
        prompt=prompt,
        router=manifest.router,
        validator=manifest.validator.policy,
        phase="hitchhiker",
        **({"count_tokens": estimate_tokens, "counts_slowly": False} | pipeline),  # type: ignore[arg-type]
    )
    return ServingEngine(pipeline=answering, manifest=manifest)


async def open_whole_path(folder: Path, fingerprint: str, upstream: str) -> ServingEngine:
    """Return an engine that embeds, searches and counts as a served release does."""
    from transformers import AutoTokenizer

    from serving.models.embedded import resolve_model
    from serving.models.embedder import load_embedder

    models = folder / "models"
    retriever = await LanceRetriever.open(
        folder, fingerprint=fingerprint, embedder=load_embedder(EMBEDDER, "embedded", models), k=K
    )
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(STUDENT_BASE, "embedded", models).path)

    def count_tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    return make_engine(upstream, retriever, count_tokens=count_tokens, counts_slowly=True)


async def serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM."""
    if options.index:
        engine = await open_whole_path(options.index.parent, options.index.name, options.upstream)
    else:
        engine = make_engine(options.upstream, SameHits(read_hits(options.hits)))
    settings = ServerSettings(home=options.home, max_concurrency=100_000, pages=False)
    writer = UntracedWriter if options.untraced else SegmentWriter
    app = create_app(
        engine=engine,
        settings=settings,
        writer=writer(settings.segments_folder),
        on_warm=set_loaded_aside,
    )
    config = uvicorn.Config(app, port=options.port, access_log=False, log_level="error")
    await uvicorn.Server(config).serve()


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True, help="root of the OpenAI-compatible server")
    parser.add_argument("--home", type=Path, required=True, help="where traces go")
    parser.add_argument("--hits", type=Path, help="chunks every question finds, as JSON")
    parser.add_argument("--index", type=Path, help="an index snapshot, for the whole path")
    parser.add_argument("--untraced", action="store_true", help="store no trace")
    run_on_server_loop(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
