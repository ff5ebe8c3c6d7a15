"""Labelling: the teacher's answers through the production pipeline.

Belongs here: the loop over questions and the shape of its rows. Does not belong here: how a
question is answered (`serving/pipeline/answer`), caching and budgets (`resources/chat_models`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from assets import tables
from assets.losses import REJECTED_BY_TEACHER, UNANSWERED, LossCount, allowed_losses
from assets.spending import note_spending
from serving.aio import map_bounded
from serving.errors import (
    BudgetExceededError,
    DeadlineExceededError,
    UpstreamError,
)
from serving.models.protocols import ChatRequest, Embedder, Hit, Progress
from serving.pipeline.answer import Answered, AnswerPipeline
from serving.pipeline.questions import normalise_question

WITHOUT_ANSWER = (REJECTED_BY_TEACHER, UNANSWERED)

MAXIMUM_LOST_RATIO = 0.02  # share of questions that may be rejected, and that may stay unanswered

ROWS_PER_FRAME = 1024
"""Rows become columns in slices of this size: Python objects take several times the room."""


@dataclass(frozen=True, kw_only=True)
class AskedQuestion:
    """A question to label, and the seed it descends from."""

    question_id: str
    seed_id: str
    text: str


def embed_ahead(questions: Sequence[AskedQuestion], embedder: Embedder) -> None:
    """Let a caching embedder see the questions in bulk: one at a time costs five times as much.

    The guard has embedded most of them already, so this mostly finds nothing to do.
    """
    for first in range(0, len(questions), ROWS_PER_FRAME):
        part = questions[first : first + ROWS_PER_FRAME]
        embedder.embed([normalise_question(question.text) for question in part])


async def label_questions(
    questions: Sequence[AskedQuestion],
    *,
    pipeline: AnswerPipeline,
    concurrency: int,
    progress: Progress,
) -> pl.DataFrame:
    """Return one teacher_answers row per question, in order.

    Every answer is on disk in the teacher's cache before it becomes a row, so an interrupt loses
    only the calls in flight, and the rerun buys only what is missing. A question that cannot be
    answered now gets a row that says so; more of them than chance explains stop the run.

    Raises:
        BudgetExceededError: the budget is used up; says how many questions are answered.
        UpstreamRejectedError: the teacher refuses more than content filters explain: a wrong key or
            model is refused for every question, and its own message says most about it.
        UpstreamError, DeadlineExceededError: too many questions failed after all retries, or one
            after the other did: the server is down.
    """
    losses = LossCount(
        work=f"labelling {len(questions)} questions",
        allowed=allowed_losses(len(questions), MAXIMUM_LOST_RATIO),
        patience=concurrency,
    )
    rows = RowCollector()

    async def label(numbered: tuple[int, AskedQuestion]) -> None:
        position, question = numbered
        try:
            answered = await pipeline.answer(question.text, mode="teacher")
        except (UpstreamError, DeadlineExceededError) as error:
            verdict = losses.count(error)
            rows.add(position, await tabulate_loss(question, pipeline, verdict=verdict))
        else:
            losses.count_answer()
            rows.add(position, tabulate_label(question, answered, pipeline))

    try:
        await map_bounded(
            label,
            list(enumerate(questions)),
            concurrency=concurrency,
            progress=progress,
            description="labelling",
            note=lambda: note_spending(pipeline.teacher),
        )
    except BudgetExceededError as error:
        raise _explain_budget(error, losses.answered_count, len(questions)) from error
    return rows.to_frame()


def _explain_budget(
    error: BudgetExceededError, answered_count: int, question_count: int
) -> BudgetExceededError:
    return BudgetExceededError(
        f"labelling {question_count} questions ({error.attempted})",
        expected=error.expected,
        found=f"{error.found}; {answered_count} questions are answered, "
        f"{question_count - answered_count} remain",
        next_step=error.next_step,
    )


class RowCollector:
    """Rows of one table in any order of arrival; `to_frame` puts them in order."""

    def __init__(self) -> None:
        self._frames: list[pl.DataFrame] = []
        self._rows: list[dict[str, Any]] = []
        self._schema = pl.Schema({"position": pl.Int64(), **tables.TEACHER_ANSWERS})

    def add(self, position: int, row: dict[str, Any]) -> None:
        """Take a row; every `ROWS_PER_FRAME` of them become columns."""
        self._rows.append({"position": position, **row})
        if len(self._rows) >= ROWS_PER_FRAME:
            self._pack()

    def to_frame(self) -> pl.DataFrame:
        """Return all rows by position."""
        self._pack()
        return pl.concat(self._frames).sort("position").drop("position")

    def _pack(self) -> None:
        self._frames.append(pl.DataFrame(self._rows, schema=self._schema))
        self._rows = []


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


async def tabulate_loss(
    question: AskedQuestion, pipeline: AnswerPipeline, *, verdict: str
) -> dict[str, Any]:
    """Return the teacher_answers row of a question without an answer.

    It holds the request once more, so that the table shows what was asked; it is never valid, so
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
        "validator_verdict": verdict,
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
