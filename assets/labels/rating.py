"""Asking the judge about many answers, for labels and for the arms of the report alike.

Belongs here: the loop, what a failure costs, the shape of the rows. Does not belong here: the
rubric (`judging`), which answers are kept (`selection`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import polars as pl

from assets.labels.judging import (
    AXES,
    HIGHEST_SCORE,
    LOWEST_SCORE,
    Inconclusive,
    Judgement,
    Rating,
    Ruler,
    read_judgement,
    write_judge_request,
)
from assets.replies import MAXIMUM_DRAWS, ask_until_read
from assets.spending import note_spending
from serving.aio import map_bounded
from serving.errors import (
    DeadlineExceededError,
    InvalidInputError,
    ModelError,
    UpstreamError,
    UpstreamRejectedError,
)
from serving.hashing import content_hash
from serving.models.protocols import ChatModel, ChatRequest, Progress, identify_model
from serving.pipeline.prompt import REFUSAL_WORD, read_sources_text

RATING_VERSION = "3"
"""Raised with every change to how a reply becomes a row: kept judgements are made anew."""

STOP_INCONCLUSIVE_RATIO = 0.05  # above: the run stops; every check that reads ratings allows less
STOP_IN_A_ROW = 5  # at least so many without a judgement between them: the judge is down or mute


NOTHING_KEPT: Mapping[int, Judgement] = MappingProxyType({})


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
    items: Sequence[Rateable],
    *,
    judge: ChatModel,
    concurrency: int,
    progress: Progress,
    kept: Mapping[int, Judgement] = NOTHING_KEPT,
) -> list[Rating]:
    """Return one rating per item; what the judge could not decide is `Inconclusive`.

    Args:
        items: what is rated.
        judge: who is asked.
        concurrency: how many at once.
        progress: told how far it is.
        kept: judgements that need not be asked for, by position.

    Raises:
        ModelError: too many answers are inconclusive because the judge's server failed or refused
            them, or the judge's budget is used up. Judgements made so far are kept in the cache.
        InvalidInputError: too many are because no reply could be read; or the messages of an item
            hold no sources.
    """
    allowed = max(1, int(len(items) * STOP_INCONCLUSIVE_RATIO))
    is_few = len(items) - len(kept) <= allowed  # then all may fail, as they did last time
    doubts = _Doubts(
        item_count=len(items),
        allowed=allowed,
        patience=allowed + 1 if is_few else max(STOP_IN_A_ROW, concurrency),
    )

    async def rate(numbered: tuple[int, Rateable]) -> Rating:
        position, item = numbered
        if position in kept:  # a judgement like any other: doubts are a share of the whole set
            return doubts.count_judgement(kept[position])
        try:
            judgement = await ask_until_read(judge, _write_request(item), read_judgement)
        except (UpstreamError, DeadlineExceededError) as error:
            return doubts.count_failure(error)
        return doubts.count_judgement(judgement)

    return await map_bounded(
        rate,
        list(enumerate(items)),
        concurrency=concurrency,
        progress=progress,
        description="judging",
        note=lambda: note_spending(judge),
    )


def _write_request(item: Rateable) -> ChatRequest:
    return write_judge_request(item.question, read_sources_text(item.messages), item.answer)


def key_judgements(items: Sequence[Rateable], *, judge: ChatModel, ruler: Ruler) -> list[str]:
    """Return the identity of each judgement: who reads what under which ruler."""
    name, identity = identify_model(judge)
    terms = [RATING_VERSION, ruler.rater_id, ruler.epoch, ruler.rubric_version, identity]
    return [content_hash(terms, _write_request(item).content_key(name)) for item in items]


def keep_judgements(previous: pl.DataFrame, judging_keys: Sequence[str]) -> dict[int, Judgement]:
    """Return what a run with these keys may take from the last judged_answers table, by position.

    What was inconclusive, or has not one sound score for every axis, is not in it: the judge is
    asked again.
    """
    is_sound = pl.col("score").is_between(LOWEST_SCORE, HIGHEST_SCORE)
    judged = previous.filter(pl.col("status") == "judged", is_sound, pl.col("axis").is_in(AXES))
    found: dict[str, dict[str, int]] = {}
    rationales: dict[str, str] = {}
    columns = ("judging_key", "axis", "score", "rationale")
    for key, axis, score, rationale in judged.select(columns).iter_rows():
        found.setdefault(key, {})[axis] = score
        rationales[key] = rationale or ""
    whole = {key: scores for key, scores in found.items() if len(scores) == len(AXES)}
    return {
        position: Judgement(scores=whole[key], rationale=rationales[key])
        for position, key in enumerate(judging_keys)
        if key in whole
    }


@dataclass(kw_only=True)
class _Doubts:
    """Counts what is inconclusive, and stops the run when it is more than chance explains."""

    item_count: int
    allowed: int
    patience: int
    count: int = 0
    in_a_row: int = 0

    def count_judgement(self, judgement: Judgement | None) -> Rating:
        if judgement is not None:
            self.in_a_row = 0
            return judgement
        detail = f"none of {MAXIMUM_DRAWS} replies could be read"
        self._add(
            InvalidInputError(
                f"judging {self.item_count} answers",
                expected="replies with JSON as the rubric asks for, nearly always",
                found=f"{self.count + 1} answers with replies that could not be read",
                next_step="use a judge that follows a JSON schema and does not reason before it "
                "answers",
            )
        )
        return Inconclusive(reason="unreadable", detail=detail)

    def count_failure(self, error: ModelError) -> Rating:
        self._add(error)
        is_refusal = isinstance(error, UpstreamRejectedError)
        return Inconclusive(reason="rejected" if is_refusal else "unreachable", detail=error.found)

    def _add(self, error: Exception) -> None:
        self.count += 1
        self.in_a_row += 1
        if self.count > self.allowed or self.in_a_row >= self.patience:
            raise error


def tabulate_ratings(
    ids: Sequence[Mapping[str, str]], ratings: Sequence[Rating], *, ruler: Ruler
) -> list[dict[str, Any]]:
    """Return judged_answers rows: one per answer and axis, score null where inconclusive.

    `status` is `judged` or the reason why not, and then `rationale` says what was found.
    """
    return [
        {
            "content_key": identity["content_key"],
            "question_id": identity["question_id"],
            "axis": axis,
            "score": rating.scores[axis] if isinstance(rating, Judgement) else None,
            "status": "judged" if isinstance(rating, Judgement) else rating.reason,
            "rater_kind": "judge",
            "rater_id": ruler.rater_id,
            "judge_epoch": ruler.epoch,
            "rubric_version": ruler.rubric_version,
            "rationale": rating.rationale if isinstance(rating, Judgement) else rating.detail,
            "judging_key": identity["judging_key"],
        }
        for identity, rating in zip(ids, ratings, strict=True)
        for axis in AXES
    ]


def require_ruler(judged: pl.DataFrame, ruler: Ruler) -> None:
    """Refuse scores that were measured by another ruler than the one in use, or by several.

    Raises:
        InvalidInputError: names the rulers found.
    """
    columns = ("rater_id", "judge_epoch", "rubric_version")
    expected = (ruler.rater_id, ruler.epoch, ruler.rubric_version)
    found = set(judged.select(columns).unique().iter_rows())
    if found - {expected}:
        raise InvalidInputError(
            "comparing the judge's scores",
            expected=f"all of {ruler.rater_id} in epoch {ruler.epoch}, rubric "
            f"{ruler.rubric_version}",
            found="; ".join(f"{r} in epoch {e}, rubric {v}" for r, e, v in sorted(found)),
            next_step="judge again with `understudy run --select labels/judged_answers`: scores "
            "of two judges, epochs or rubrics do not compare",
        )
