"""Assembling the request path from its parts, the same way in the factory and in production.

Belongs here: which part goes where. Does not belong here: where parts come from (resources,
releases).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving.models.protocols import ChatModel, Embedder, Reranker
from serving.pipeline.answer import AnswerPipeline
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.retrieval import LanceRetriever
from serving.pipeline.router import Phase, RouterPolicy
from serving.pipeline.validator import ValidatorPolicy


@dataclass(frozen=True, kw_only=True)
class PipelineParts:
    """Everything an `AnswerPipeline` needs except which index snapshot and which student."""

    index_folder: Path
    embedder: Embedder
    k: int
    teacher: ChatModel
    prompt: PromptFormat
    router: RouterPolicy
    validator: ValidatorPolicy
    count_tokens: Callable[[str], int]
    reranker: Reranker | None = None

    async def assemble(
        self, index_fingerprint: str, *, student: ChatModel | None = None, phase: Phase = "switch"
    ) -> AnswerPipeline:
        """Open the index snapshot and return the pipeline over it."""
        retriever = await LanceRetriever.open(
            self.index_folder,
            fingerprint=index_fingerprint,
            embedder=self.embedder,
            k=self.k,
            reranker=self.reranker,
        )
        return AnswerPipeline(
            retriever=retriever,
            teacher=self.teacher,
            student=student,
            prompt=self.prompt,
            router=self.router,
            validator=self.validator,
            phase=phase,
            count_tokens=self.count_tokens,
        )


def estimate_tokens(text: str) -> int:
    """Estimate tokens where no student is loaded: 4 characters each, English's rule of thumb."""
    return len(text) // 4
