"""Asking the judge about many answers, for labels and for the arms of the report alike.

Belongs here: the loop and the shape of its rows. Does not belong here: the rubric (`judging`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from assets.labels.judging import (
    AXES,
    RUBRIC_VERSION,
    Judgement,
    read_judgement,
    write_judge_request,
)
from assets.replies import ask_until_read
from serving.aio import map_bounded
from serving.models.protocols import ChatModel, Progress
from serving.pipeline.prompt import REFUSAL_WORD, read_sources_text


@dataclass(frozen=True, kw_only=True)
class Rateable:
    """An answer as its model wrote it, with the messages it was given (they hold the sources)."""

    question: str
    messages: Sequence[Mapping[str, str]]
    answer: str


def read_rateables(answers: pl.DataFrame) -> list[Rateable]:
    """Return what the judge reads of answer rows (question, messages, raw, refused)."""
    return [
        Rateable(
            question=row["question"],
            messages=row["messages"],
            answer=REFUSAL_WORD if row["refused"] else row["raw"],
        )
        for row in answers.iter_rows(named=True)
    ]


async def rate_answers(
    items: Sequence[Rateable], *, judge: ChatModel, concurrency: int, progress: Progress
) -> list[Judgement | None]:
    """Return one judgement per item; None where none of the judge's replies could be read.

    Raises:
        ModelError: the judge cannot be reached: silence is not an opinion.
        InvalidInputError: the messages of an item hold no sources.
    """

    async def rate(item: Rateable) -> Judgement | None:
        sources = read_sources_text(item.messages)
        request = write_judge_request(item.question, sources, item.answer)
        return await ask_until_read(judge, request, read_judgement)

    return await map_bounded(
        rate, items, concurrency=concurrency, progress=progress, description="judging"
    )


def tabulate_ratings(
    ids: Sequence[Mapping[str, str]],
    ratings: Sequence[Judgement | None],
    *,
    rater_id: str,
    epoch: str,
) -> list[dict[str, Any]]:
    """Return judged_answers rows: one per answer and axis, score null where inconclusive."""
    return [
        {
            "content_key": identity["content_key"],
            "question_id": identity["question_id"],
            "axis": axis,
            "score": rating.scores[axis] if rating else None,
            "rater_kind": "judge",
            "rater_id": rater_id,
            "judge_epoch": epoch,
            "rubric_version": RUBRIC_VERSION,
            "rationale": rating.rationale if rating else "the judge's reply could not be read",
        }
        for identity, rating in zip(ids, ratings, strict=True)
        for axis in AXES
    ]
