"""Labelling: the teacher's answers through the production pipeline.

Belongs here: the loop over questions and the shape of its rows. Does not belong here: how a
question is answered (`serving/pipeline/answer`), caching and budgets (`resources/chat_models`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving.aio import map_bounded
from serving.errors import UpstreamRejectedError
from serving.models.protocols import ChatRequest, Hit, Progress
from serving.pipeline.answer import Answered, AnswerPipeline, normalise_question

REJECTED_BY_TEACHER = "rejected_by_teacher"
"""The verdict on a question the teacher's server refused to take, as content filters do."""

MAXIMUM_REJECTED_RATIO = 0.02


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

    Raises:
        UpstreamRejectedError: the teacher refuses more than content filters explain: a wrong key or
            model is refused for every question, and its own message says most about it.
    """
    rejected_count = 0

    async def label(question: AskedQuestion) -> dict[str, Any]:
        nonlocal rejected_count
        try:
            answered = await pipeline.answer(question.text, mode="teacher")
        except UpstreamRejectedError:
            rejected_count += 1
            if rejected_count > allowed_rejections(len(questions)):
                raise
            return await tabulate_rejection(question, pipeline)
        return tabulate_label(question, answered, pipeline)

    return await map_bounded(
        label, questions, concurrency=concurrency, progress=progress, description="labelling"
    )


def allowed_rejections(question_count: int) -> int:
    """Return how many questions the teacher may refuse: 2 %, and one in a set of any size."""
    return max(1, int(question_count * MAXIMUM_REJECTED_RATIO))


def tabulate_label(
    question: AskedQuestion, answered: Answered, pipeline: AnswerPipeline
) -> dict[str, Any]:
    """Return the teacher_answers row of one answered question."""
    completion = answered.last.completion
    if completion is None:
        raise ValueError(f"{question.question_id} has no completion")
    return _tabulate_request(
        question, answered.question, answered.retrieved, answered.request, pipeline
    ) | {
        "raw": completion.text,
        "answer": answered.answer,
        "citations": [hit.chunk_id for hit in answered.cited],
        "refused": answered.refused,
        "validator_verdict": str(answered.last.verdict),
        "teacher_id": completion.model,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "cost_usd": completion.cost_usd,
        "latency_ms": completion.latency_ms,
    }


async def tabulate_rejection(question: AskedQuestion, pipeline: AnswerPipeline) -> dict[str, Any]:
    """Return the teacher_answers row of a question the teacher would not take.

    It holds the request once more, so that the table shows what was refused; it is never valid, so
    nobody judges it or learns from it.
    """
    text = normalise_question(question.text)
    hits = await pipeline.retriever.retrieve(text)
    request = pipeline.prompt.write_request(text, hits)
    return _tabulate_request(question, text, hits, request, pipeline) | {
        "raw": "",
        "answer": "",
        "citations": [],
        "refused": False,
        "validator_verdict": REJECTED_BY_TEACHER,
        "teacher_id": pipeline.teacher.name,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "cost_usd": 0.0,
        "latency_ms": None,
    }


def _tabulate_request(
    question: AskedQuestion,
    text: str,
    hits: Sequence[Hit],
    request: ChatRequest,
    pipeline: AnswerPipeline,
) -> dict[str, Any]:
    """Return the columns that say what was asked of whom, the same for every outcome."""
    return {
        "question_id": question.question_id,
        "seed_id": question.seed_id,
        "question": text,
        "retrieved": tabulate_hits(hits),
        "messages": [dict(message) for message in request.messages],
        "prompt_version": pipeline.prompt.version,
        "index_fingerprint": pipeline.retriever.index_fingerprint,
        "content_key": request.content_key(pipeline.teacher.name),
    }


def tabulate_hits(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """Return hits as the `retrieved` column stores them."""
    return [
        {"chunk_id": hit.chunk_id, "content_hash": hit.content_hash, "score": hit.score}
        for hit in hits
    ]
