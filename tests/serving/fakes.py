"""Test doubles at the protocol seam: a canned model, a canned retriever, and an engine of them."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from serving.engine import ServingEngine
from serving.errors import ModelError
from serving.models.protocols import ChatRequest, Completion, Hit, Price
from serving.pipeline.answer import AnswerPipeline
from serving.pipeline.assembly import estimate_tokens
from serving.pipeline.prompt import PromptFormat
from serving.releases.manifest import ReleaseManifest

TEACHER_PRICE = Price(input_usd_per_mtok=3.0, output_usd_per_mtok=15.0)
STUDENT_PRICE = Price(input_usd_per_mtok=0.05, output_usd_per_mtok=0.2)
HITS = (
    Hit(
        chunk_id="docs:guides/environment-variables/2",
        content_hash="aaaa",
        text="Put environment variables in a .env file. Restart the server after a change.",
        title="Environment variables",
        url="https://docs.example/guides/environment-variables/",
        heading_path=("Environment variables", "Files"),
        score=0.86,
    ),
    Hit(
        chunk_id="docs:guides/deploy/1",
        content_hash="bbbb",
        text="Deploy with the build command.",
        title="Deploy",
        url="https://docs.example/guides/deploy/",
        heading_path=("Deploy",),
        score=0.61,
    ),
)
GOOD = "Put environment variables in a .env file. [1]"
INVALID = "Everything is stored on the moon by penguins."
Answer = str | ModelError | Exception | Callable[[ChatRequest], str]


@dataclass
class CannedChatModel:
    """A `ChatModel` that says what it was told to, after a delay, and keeps what it was asked."""

    name: str
    answer: Answer = GOOD
    price: Price = field(default_factory=Price)
    delay_seconds: float = 0.0
    requests: list[ChatRequest] = field(default_factory=list)

    async def complete(self, request: ChatRequest) -> Completion:
        self.requests.append(request)
        await asyncio.sleep(self.delay_seconds)
        if isinstance(self.answer, Exception):
            raise self.answer
        text = self.answer if isinstance(self.answer, str) else self.answer(request)
        return Completion(
            text=text,
            model=self.name,
            prompt_tokens=100,
            completion_tokens=20,
            finish_reason="stop",
            latency_ms=self.delay_seconds * 1000,
            cost_usd=self.price.cost_usd(100, 20),
        )


@dataclass
class CannedRetriever:
    """A `Retriever` that finds the same chunks for every question."""

    hits: Sequence[Hit] = HITS
    index_fingerprint: str = "feedfacefeedface"
    questions: list[str] = field(default_factory=list)

    async def retrieve(self, question: str) -> tuple[Hit, ...]:
        self.questions.append(question)
        return tuple(self.hits)


def make_manifest(**changes: Any) -> ReleaseManifest:
    """A valid manifest of one student; `changes` replace top-level fields."""
    content: dict[str, Any] = {
        "created_at": datetime(2026, 11, 21, tzinfo=UTC),
        "phase": "switch",
        "students": {
            "compact": {
                "adapter": "compact@3f9c0a1b2c4d",
                "adapter_sha256": "0" * 64,
                "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
                "base_revision": "embedded",
                "base_hash": "beef",
                "activation": "question",
                "context_tokens": 2048,
                "max_answer_tokens": 160,
                "price": {"input_usd_per_mtok": 0.05, "output_usd_per_mtok": 0.2},
            }
        },
        "teacher": {
            "provider": "extractive",
            "model": "extractive-v1",
            "price": {"input_usd_per_mtok": 3.0, "output_usd_per_mtok": 15.0},
        },
        "embedder": {"model": "minilm", "revision": "embedded", "fingerprint": "e0e0"},
        "index": {"uri": "index/feedfacefeedface", "fingerprint": "feedfacefeedface"},
        "retrieval": {"k": 3},
        "prompt": {
            "citation_ids": "local",
            "version": PromptFormat().version,
            "max_answer_tokens": 120,
        },
        "gate": {"verdict": "PROMOTE", "gates": [{"name": "slices", "value": 0.61, "n": 150}]},
        "distillation_loss_statement": "It refuses a little more often.",
    }
    manifest = ReleaseManifest.model_validate(content | changes)
    return manifest.model_copy(update={"release_id": manifest.content_id()})


def make_engine(
    *,
    teacher: CannedChatModel | None = None,
    student: CannedChatModel | None = None,
    retriever: CannedRetriever | None = None,
    manifest: ReleaseManifest | None = None,
    **pipeline: Any,
) -> ServingEngine:
    """An engine over canned parts; `pipeline` goes to `AnswerPipeline`."""
    return ServingEngine(
        manifest=manifest or make_manifest(),
        pipeline=AnswerPipeline(
            retriever=retriever or CannedRetriever(),
            teacher=teacher or CannedChatModel("extractive-v1", price=TEACHER_PRICE),
            student=student or CannedChatModel("compact@3f9c0a1b2c4d", price=STUDENT_PRICE),
            **({"prompt": PromptFormat()} | _policies() | pipeline),
        ),
    )


def _policies() -> dict[str, Any]:
    manifest = make_manifest()
    return {
        "router": manifest.router,
        "validator": manifest.validator.policy,
        "count_tokens": estimate_tokens,
    }
