"""Waves: who rated which anchors when, as rows that are appended and never edited.

Belongs here: choosing a wave's anchors, and the shape of its rows. Does not belong here: the
anchors (`assets/eval_set/anchors`), what the waves say (`rulers`, `liveness`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import polars as pl

from assets import tables
from assets.eval_set.anchors import choose_anchors
from assets.labels.judging import RUBRIC_VERSION, Judgement, Rating, Ruler
from assets.labels.rating import Rateable
from serving.errors import InvalidInputError
from serving.home import Home
from serving.models.protocols import ChatModel, ChatRequest, Completion, Price

BLIND_EVERY = 10  # every tenth anchor of a wave is rated once more, in another draw
DRAWS_PER_WAVE = 20
BLIND_DRAW = 10
KEY = "parity/judge_anchor_run"


@dataclass(frozen=True, kw_only=True)
class Reseeded:
    """A judge whose kept answers are of other draws: what it said yesterday is not asked of a file.

    A judge that changed behind its name would otherwise be read from the cache for ever.
    """

    model: ChatModel
    offset: int

    @property
    def name(self) -> str:
        """The judge's name."""
        return self.model.name

    @property
    def price(self) -> Price:
        """What a token of it costs."""
        return self.model.price

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer in this wave's draw."""
        return await self.model.complete(replace(request, seed=request.seed + self.offset))


def reseed(judge: ChatModel, wave: date, *, is_blind: bool) -> Reseeded:
    """Return the judge in the draw of a wave, blind or not."""
    draw = wave.toordinal() * DRAWS_PER_WAVE + (BLIND_DRAW if is_blind else 0)
    return Reseeded(model=judge, offset=draw)


def read_waves(home: Home) -> pl.DataFrame:
    """Return the waves so far.

    Raises:
        InvalidInputError: the table cannot be read, or has other columns: it is a history, and is
            not dropped for that.
    """
    path, schema = home.table(KEY), tables.JUDGE_ANCHOR_RUN
    if not path.exists():
        return schema.to_frame()
    try:
        found = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise _unreadable(str(path), str(error).splitlines()[0]) from error
    if found.schema != schema:
        raise _unreadable(str(path), f"columns {found.columns}")
    return found


def _unreadable(path: str, found: str) -> InvalidInputError:
    return InvalidInputError(
        f"reading the waves of the judge's anchors from {path}",
        expected=f"a Parquet file with the columns {tables.JUDGE_ANCHOR_RUN.names()}",
        found=found,
        next_step="restore the file from a backup, or move it away to begin a new history",
    )


def choose_wave(
    anchors: pl.DataFrame, waves: pl.DataFrame, *, ruler: Ruler, day: date
) -> pl.DataFrame:
    """Return the anchors to rate: all under a ruler that never rated these, else the day's share.

    One row per anchor; a wave that is repeated on its day asks for the same.
    """
    whole = anchors.unique("anchor_id", keep="first", maintain_order=True)
    mine = waves.filter(
        pl.col("wave") < day,
        rater_id=ruler.rater_id,
        judge_epoch=ruler.epoch,
        rubric_version=ruler.rubric_version,
        rater_kind="judge",
    ).join(anchors.select("set_hash").unique(), on="set_hash", how="semi")
    if mine.is_empty():
        return whole
    return whole.filter(
        pl.col("anchor_id").is_in(choose_anchors(whole["anchor_id"].to_list(), day))
    )


def list_rateables(chosen: pl.DataFrame) -> list[Rateable]:
    """Return what the judge reads of anchors."""
    return [
        Rateable(question=row["question"], messages=row["messages"], answer=row["answer"])
        for row in chosen.iter_rows(named=True)
    ]


def tabulate_wave(
    anchors: pl.DataFrame,
    chosen: pl.DataFrame,
    ratings: Sequence[Rating],
    *,
    rater_kind: str,
    ruler: Ruler,
    wave: date,
) -> pl.DataFrame:
    """Return the rows of one rating of a wave: the labelled axes of each anchor."""
    scores = {
        anchor_id: rating.scores if isinstance(rating, Judgement) else {}
        for anchor_id, rating in zip(chosen["anchor_id"], ratings, strict=True)
    }
    rows = [
        _carry(row)
        | {
            "wave": wave,
            "score": scores[row["anchor_id"]].get(row["axis"]),
            "rater_kind": rater_kind,
            "rater_id": ruler.rater_id,
            "judge_epoch": ruler.epoch,
            "rubric_version": ruler.rubric_version,
        }
        for row in anchors.iter_rows(named=True)
        if row["anchor_id"] in scores
    ]
    return pl.DataFrame(rows, schema=tables.JUDGE_ANCHOR_RUN)


def tabulate_human(anchors: pl.DataFrame, lines: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Return the rows of people's ratings. People have no epoch; an unknown anchor is left out."""
    labelled = {(row["anchor_id"], row["axis"]): row for row in anchors.iter_rows(named=True)}
    rows = [
        _carry(labelled[line["anchor_id"], line["axis"]])
        | {
            "wave": line["wave"],
            "score": line["score"],
            "rater_kind": "human",
            "rater_id": line["rater_id"],
            "judge_epoch": "",
            "rubric_version": RUBRIC_VERSION,
        }
        for line in lines
        if (line["anchor_id"], line["axis"]) in labelled
    ]
    return pl.DataFrame(rows, schema=tables.JUDGE_ANCHOR_RUN)


def append_wave(waves: pl.DataFrame, *made: pl.DataFrame) -> pl.DataFrame:
    """Return the history with the new rows; what is rated again on its day replaces itself."""
    identity = ("wave", "anchor_id", "axis", "rater_kind", "rater_id", "judge_epoch",
                "rubric_version", "set_hash")  # fmt: skip
    return pl.concat([waves, *made]).unique(identity, keep="last", maintain_order=True)


def _carry(anchor: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("anchor_id", "core_id", "construction", "axis", "is_good", "set_hash")
    return {name: anchor[name] for name in kept}
