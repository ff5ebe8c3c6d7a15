"""Labelling: the teacher's answers through the production pipeline, made anew or kept.

Belongs here: the loop over questions, the shape of its rows, which rows of the last table are kept.
Does not belong here: how a question is answered (`serving/pipeline/answer`), caching and budgets
(`resources/chat_models`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from assets import tables
from assets.losses import REJECTED_BY_TEACHER, UNANSWERED, LossCount, allowed_losses
from assets.spending import note_spending
from serving.aio import map_bounded
from serving.errors import (
    BudgetExceededError,
    DeadlineExceededError,
    InvalidInputError,
    UpstreamError,
)
from serving.hashing import content_hash
from serving.models.protocols import ChatRequest, Embedder, Hit, Progress
from serving.pipeline.answer import Answered, AnswerPipeline
from serving.pipeline.assembly import PipelineParts
from serving.pipeline.questions import normalise_question

ANSWERING_VERSION = "3"
"""Raised with every change to how an answer becomes a row: rows that were kept are made anew."""

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


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptAnswers:
    """Rows of the last table that asking again would only repeat, one per question.

    `pipeline_fingerprint` is what all of them have, and what new rows get.
    """

    pipeline_fingerprint: str
    rows: pl.DataFrame = field(repr=False)
    places: Mapping[str, int] = field(repr=False)
    """The row of each normalised question."""

    def has(self, question: AskedQuestion) -> bool:
        """Say whether the answer to a question is kept, whatever the question's id."""
        return normalise_question(question.text) in self.places

    def copy_rows(self, asked: Mapping[int, AskedQuestion]) -> pl.DataFrame:
        """Return the rows of questions by position, under the ids they have today."""
        places = [self.places[normalise_question(question.text)] for question in asked.values()]
        ids = pl.DataFrame(
            {
                "position": list(asked),
                "question_id": [question.question_id for question in asked.values()],
                "seed_id": [question.seed_id for question in asked.values()],
            },
            schema={"position": pl.Int64, "question_id": pl.String, "seed_id": pl.String},
        )
        found = self.rows.select(pl.all().gather(pl.Series(places, dtype=pl.UInt32)))
        return ids.hstack(found.drop("question_id", "seed_id"))


def read_index(vector_index: pl.DataFrame, embedder: Embedder) -> str:
    """Return the fingerprint of the index in which questions embedded by `embedder` are looked up.

    Raises:
        InvalidInputError: another embedder made its vectors. Where they are of equal length,
            retrieval would find chunks at random and the teacher would be paid to answer from them.
    """
    row = vector_index.row(0, named=True)
    if row["embedder_fingerprint"] != embedder.fingerprint:
        raise InvalidInputError(
            f"looking questions up in the index {row['index_fingerprint']}",
            expected=f"vectors of the embedder that embeds the questions, {embedder.fingerprint}",
            found=f"vectors of {row['embedder_fingerprint']}",
            next_step="run `understudy run --select corpus`, then this stage again",
        )
    return str(row["index_fingerprint"])


def fingerprint_rows(parts: PipelineParts, index_fingerprint: str) -> str:
    """Return the identity of all that decides a row beside its question."""
    return content_hash(ANSWERING_VERSION, parts.fingerprint_answers(index_fingerprint))


def keep_answers(previous: pl.DataFrame, pipeline_fingerprint: str) -> KeptAnswers:
    """Return what a run under this fingerprint may take from the last teacher_answers table.

    Questions that were left without an answer are not in it: they are asked again. So are those the
    teacher's server rejected. An empty account is rejected in the same words as a question, by some
    with the same status, and whoever mends it changes nothing that the fingerprint covers.
    """
    rows = previous.filter(
        pl.col("pipeline_fingerprint") == pipeline_fingerprint,
        ~pl.col("validator_verdict").is_in(WITHOUT_ANSWER),
    ).unique("question", keep="first", maintain_order=True)
    places = {question: place for place, question in enumerate(rows["question"])}
    return KeptAnswers(pipeline_fingerprint=pipeline_fingerprint, rows=rows, places=places)


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
    kept: KeptAnswers,
    concurrency: int,
    progress: Progress,
    endings: Counter[str] | None = None,
) -> pl.DataFrame:
    """Return one teacher_answers row per question, in order: the kept one, or one made now.

    `endings` counts why the answers made now ended: the model's `finish_reason`.

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
    spared = {at: question for at, question in enumerate(questions) if kept.has(question)}
    allowed = allowed_losses(len(questions), MAXIMUM_LOST_RATIO)
    is_few = len(questions) - len(spared) <= allowed  # then all may fail, as they did last time
    losses = LossCount(
        work=f"labelling {len(questions)} questions",
        allowed=allowed,
        patience=allowed + 1 if is_few else concurrency,
    )
    rows = RowCollector(kept.pipeline_fingerprint)

    async def label(numbered: tuple[int, AskedQuestion]) -> None:
        position, question = numbered
        if position in spared:  # an answer like any other: losses are a share of the whole set
            losses.count_answer()
            return
        try:
            answered = await pipeline.answer(question.text, mode="teacher")
        except (UpstreamError, DeadlineExceededError) as error:
            verdict = losses.count(error)
            rows.add(position, await tabulate_loss(question, pipeline, verdict=verdict))
        else:
            losses.count_answer()
            rows.add(position, tabulate_label(question, answered, pipeline))
            if endings is not None and answered.last.completion is not None:
                endings[answered.last.completion.finish_reason] += 1

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
    return rows.to_frame(kept.copy_rows(spared))


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

    def __init__(self, pipeline_fingerprint: str) -> None:
        self._fingerprint = pipeline_fingerprint
        self._frames: list[pl.DataFrame] = []
        self._rows: list[dict[str, Any]] = []
        self._schema = pl.Schema({"position": pl.Int64(), **tables.TEACHER_ANSWERS})

    def add(self, position: int, row: dict[str, Any]) -> None:
        """Take a row; every `ROWS_PER_FRAME` of them become columns."""
        self._rows.append({"position": position, **row, "pipeline_fingerprint": self._fingerprint})
        if len(self._rows) >= ROWS_PER_FRAME:
            self._pack()

    def to_frame(self, kept: pl.DataFrame) -> pl.DataFrame:
        """Return all rows by position, among them the kept ones (with a column `position`)."""
        self._pack()
        frames = [*self._frames, kept.select(self._schema.names())]
        return pl.concat(frames).sort("position").drop("position")

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
