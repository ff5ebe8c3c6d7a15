"""Labelling: the teacher's answers through the production pipeline.

Belongs here: the loop over questions and the shape of its rows. Does not belong here: how a
question is answered (`serving/pipeline/answer`), caching and budgets (`resources/chat_models`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving.aio import map_bounded
from serving.models.protocols import Hit, Progress
from serving.pipeline.answer import Answered, AnswerPipeline


@dataclass(frozen=True, kw_only=True)
class AskedQuestion:
    """A question to label, and the seed it descends from."""

    question_id: str
    seed_id: str
    text: str


async def label_questions(
    questions: Sequence[AskedQuestion],
    *,
    pipeline: AnswerPipeline,
    concurrency: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Return one teacher_answers row per question, in order.

    Every answer is kept by the teacher's cache before the next is asked, so an interrupt loses only
    the calls in flight, and the rerun buys only what is missing.
    """

    async def label(question: AskedQuestion) -> dict[str, Any]:
        answered = await pipeline.answer(question.text, mode="teacher")
        return tabulate_label(question, answered, pipeline)

    return await map_bounded(
        label, questions, concurrency=concurrency, progress=progress, description="labelling"
    )


def tabulate_label(
    question: AskedQuestion, answered: Answered, pipeline: AnswerPipeline
) -> dict[str, Any]:
    """Return the teacher_answers row of one answered question."""
    completion = answered.last.completion
    if completion is None:
        raise ValueError(f"{question.question_id} has no completion")
    return {
        "question_id": question.question_id,
        "seed_id": question.seed_id,
        "question": answered.question,
        "retrieved": tabulate_hits(answered.retrieved),
        "messages": [dict(message) for message in answered.request.messages],
        "raw": completion.text,
        "answer": answered.answer,
        "citations": [hit.chunk_id for hit in answered.cited],
        "refused": answered.refused,
        "validator_verdict": str(answered.last.verdict),
        "teacher_id": completion.model,
        "prompt_version": pipeline.prompt.version,
        "index_fingerprint": pipeline.retriever.index_fingerprint,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "cost_usd": completion.cost_usd,
        "latency_ms": completion.latency_ms,
        "content_key": answered.request.content_key(pipeline.teacher.name),
    }


def tabulate_hits(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """Return hits as the `retrieved` column stores them."""
    return [
        {"chunk_id": hit.chunk_id, "content_hash": hit.content_hash, "score": hit.score}
        for hit in hits
    ]
