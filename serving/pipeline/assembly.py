"""Assembling the request path from its parts, the same way in the factory and in production.

Belongs here: which part goes where. Does not belong here: where parts come from (resources,
releases).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from serving.hashing import content_hash
from serving.models.protocols import ChatModel, Embedder, Reranker, identify_model
from serving.pipeline.answer import AnswerPipeline
from serving.pipeline.confidence import ConfidenceCalibration
from serving.pipeline.indexing import RETRIEVAL_VERSION
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.retrieval import LanceRetriever
from serving.pipeline.router import Phase, RouterPolicy
from serving.pipeline.skills import Skill
from serving.pipeline.tiers import Tier
from serving.pipeline.validator import VALIDATOR_VERSION, ValidatorPolicy


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
        self,
        index_fingerprint: str,
        *,
        student: ChatModel | None = None,
        calibration: ConfidenceCalibration | None = None,
        smaller: tuple[Tier, ...] = (),
        skills: tuple[Skill, ...] = (),
        phase: Phase = "switch",
    ) -> AnswerPipeline:
        """Open the index snapshot and return the pipeline over it.

        `calibration` is the student's, where it has one; `smaller` are students asked before it,
        `skills` those asked in their stead.
        """
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
            counts_slowly=self.count_tokens is not estimate_tokens,
            calibration=calibration,
            smaller=smaller,
            skills=skills,
        )

    def fingerprint_answers(self, index_fingerprint: str) -> str:
        """Return the identity of all that decides what the teacher answers to a given question.

        It covers index, retrieval, prompt, sampling, teacher, price and validator. Whatever has the
        same fingerprint answers the same, as often as it is asked; router and student have no part.
        """
        request = self.prompt.write_request("", ())  # its key holds wording, limit and sampling
        return content_hash(
            [index_fingerprint, self.embedder.fingerprint, RETRIEVAL_VERSION, self.k],
            self.reranker.fingerprint if self.reranker else None,
            [self.prompt.version, request.content_key(self.teacher.name)],
            [*identify_model(self.teacher), asdict(self.teacher.price)],
            [VALIDATOR_VERSION, asdict(self.validator)],
        )


def estimate_tokens(text: str) -> int:
    """Estimate tokens where no student is loaded: 4 characters each, English's rule of thumb."""
    return len(text) // 4
