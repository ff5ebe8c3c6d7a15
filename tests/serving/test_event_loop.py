"""What costs CPU runs beside the event loop: one question never holds up the others."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from serving.models.extractive.app import create_app
from serving.models.openai_chat import connect_in_process
from serving.models.protocols import Price, Vectors
from serving.pipeline.assembly import PipelineParts, estimate_tokens
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.router import RouterPolicy
from serving.pipeline.validator import ValidatorPolicy
from tests.serving.fakes import make_engine
from tests.serving.pipeline.test_retrieval import LetterEmbedder, index, make_chunks
from tests.serving.running import run_app
from tests.tiny_student import make_tokenizer

ASKED = 20


@dataclass
class Watched(LetterEmbedder):
    """An embedder, a reranker and a tokenizer that note by which threads they are called."""

    callers: dict[str, set[int]] = field(default_factory=dict)

    def note(self, what: str) -> None:
        self.callers.setdefault(what, set()).add(threading.get_ident())

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.note("embed")
        return super().embed(texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        self.note("count for the teacher")
        return super().count_tokens(texts)

    def score(self, _question: str, texts: Sequence[str]) -> Vectors:
        self.note("rerank")
        return np.linspace(0.9, 0.5, len(texts), dtype=np.float32)

    def count_prompt(self, text: str) -> int:
        self.note("count the prompt")
        return len(make_tokenizer().encode(text))


async def _make_parts(folder: Path, watched: Watched) -> tuple[PipelineParts, str]:
    fingerprint = await asyncio.to_thread(index, folder, make_chunks(), watched)
    teacher = connect_in_process(create_app(watched), model="extractive-v1", price=Price())
    parts = PipelineParts(
        index_folder=folder,
        embedder=watched,
        k=3,
        teacher=teacher,
        prompt=PromptFormat(),
        router=RouterPolicy(),
        validator=ValidatorPolicy(),
        count_tokens=watched.count_prompt,
        reranker=watched,
    )
    return parts, fingerprint


async def test_no_model_index_or_tokenizer_is_run_on_the_event_loop(tmp_path: Path) -> None:
    """Retrieval, reranking, tokenising and the embedded teacher, for questions asked at once."""
    watched = Watched()
    parts, fingerprint = await _make_parts(tmp_path / "index", watched)
    pipeline = await parts.assemble(fingerprint, phase="hitchhiker")
    engine = make_engine(**{
        name: getattr(pipeline, name)
        for name in ("retriever", "teacher", "count_tokens", "counts_slowly", "phase")
    })  # fmt: skip
    watched.callers.clear()  # an index may be opened, and was built, in any thread
    async with run_app(engine, tmp_path) as running:
        replies = await asyncio.gather(
            *(running.ask(question=f"How often is backup {n} taken?") for n in range(ASKED))
        )
    assert [reply.status_code for reply in replies] == [200] * ASKED
    assert set(watched.callers) == {
        "embed", "rerank", "count the prompt", "count for the teacher",
    }  # fmt: skip
    on_loop = [w for w, callers in watched.callers.items() if threading.get_ident() in callers]
    assert on_loop == []


async def test_an_estimate_that_costs_nothing_takes_no_thread(tmp_path: Path) -> None:
    watched = Watched()
    parts, fingerprint = await _make_parts(tmp_path / "index", watched)
    assert (await parts.assemble(fingerprint)).counts_slowly
    estimating = PipelineParts(**{**vars(parts), "count_tokens": estimate_tokens})
    assert not (await estimating.assemble(fingerprint)).counts_slowly
