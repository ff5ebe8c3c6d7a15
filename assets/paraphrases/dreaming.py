"""Dreaming: questions that nobody asked, written by night where the student is weak.

What is written is kept in a journal and never bought twice; the guard, the labels and the judge
treat it like every other candidate. Belongs here: the journal, the loop over weak spots and its
limits. Does not belong here: which spots are weak (`weakness`), the prompt (`rewriting`), when a
night is (`orchestration/dreaming`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

import polars as pl

from assets import tables
from assets.paraphrases.multiplying import (
    MAXIMUM_ASKINGS,
    SEED,
    Question,
    paraphrase_medoids,
)
from assets.paraphrases.weakness import WeakSpot
from assets.replies import MAXIMUM_DRAWS
from assets.traces.journal import Journal
from serving.errors import BudgetExceededError
from serving.home import Home
from serving.models.protocols import ChatModel, Progress, Vectors
from serving.pipeline.questions import fold_text

DREAMED = "dreamed"
"""The origin of a candidate question that was written by night."""

SEEDS_PER_GENERATION = MAXIMUM_DRAWS * MAXIMUM_ASKINGS
"""Each night is a generation, which samples anew whatever became of those before it."""

Stop = Literal["spots", "questions", "budget"]
"""Why a night ended: every weak spot was written around, or a limit was reached."""


class Dreams(Protocol):
    """The journal of what was written; without one, nothing was."""

    def fingerprint(self) -> str:
        """Return the identity of what was written."""
        ...

    def read(self) -> pl.DataFrame:
        """Return rows of `tables.DREAMED_QUESTIONS` in order."""
        ...


@dataclass(frozen=True, kw_only=True)
class DreamPlan:
    """What a night may write. What it may spend is the teacher's budget of that night.

    `is_taught` says of a seed's id whether what grows from it is trained on. `read_misses` says
    where the student is weak while production cannot, in the columns of `select_asks`, and
    `date_misses` when that was measured.
    """

    maximum_questions: int
    questions_per_spot: int
    temperature: float
    concurrency: int
    window_days: int
    is_taught: Callable[[str], bool]
    read_misses: Callable[[], pl.DataFrame]
    date_misses: Callable[[], datetime | None]


@dataclass
class Night:
    """What one night wrote, and why it ended."""

    stopped_by: Stop = "spots"
    written_count: int = 0
    spots: list[str] = field(default_factory=list)
    barren: list[str] = field(default_factory=list)
    """Those of the spots about which nothing new came back; another night asks anew."""


def open_dreams(home: Home) -> Journal:
    """Return the journal of dreamed questions."""
    return Journal(home.root / "dreams" / "dreamed_questions.jsonl", tables.DREAMED_QUESTIONS)


def count_tonight(dreams: pl.DataFrame, now: datetime) -> int:
    """Return how many questions were written on this day (UTC) so far."""
    return dreams.filter(pl.col("dreamed_at").dt.date() == now.date()).height


async def dream_questions(
    spots: Sequence[WeakSpot],
    *,
    known: Sequence[Question],
    dreams: pl.DataFrame,
    keep: Callable[[Mapping[str, Any]], None],
    teacher: ChatModel,
    embed: Callable[[Sequence[str]], Vectors],
    plan: DreamPlan,
    now: datetime,
    progress: Progress,
) -> Night:
    """Write around the weak spots in order until a limit of the night is reached.

    A spot's rewordings are kept before the next spot is asked about, so an interrupt loses none;
    the answers behind them lie in the answer cache besides.

    Args:
        spots: the weakest first.
        known: every seed and paraphrase, the spots among them: what no dream may repeat.
        dreams: what earlier nights wrote; it counts as known too.
        keep: stores one row durably.
        teacher: who writes; raises when its budget is used up.
        embed: gives unit vectors.
        plan: the limits.
        now: when this is.
        progress: told after every spot.
    """
    night = Night()
    generation = now.toordinal()
    room = plan.maximum_questions - count_tonight(dreams, now)
    texts = [*known, *dreams.select("question_id", "text").iter_rows()]
    for spot in spots:
        if room <= 0:
            night.stopped_by = "questions"
            break
        try:
            made = await paraphrase_medoids(
                [(spot.seed_id, spot.text)],
                seeds=texts,
                teacher=teacher,
                embed=embed,
                count=plan.questions_per_spot,
                temperature=plan.temperature,
                concurrency=plan.concurrency,
                progress=progress,
                first_seed=SEED + SEEDS_PER_GENERATION * generation,
            )
        except BudgetExceededError:
            night.stopped_by = "budget"
            break
        night.spots.append(spot.seed_id)
        if not made.paraphrases:
            night.barren.append(spot.seed_id)
        for row in made.paraphrases[:room]:
            keep(
                asdict(row)
                | {
                    "generation": generation,
                    "evidence": spot.evidence,
                    "weak_ratio": spot.weak_ratio,
                    "asked_count": spot.asked_count,
                    "dreamed_at": now,
                }
            )
            texts.append((row.question_id, row.text))
            night.written_count += 1
            room -= 1
    return night


def choose_candidates(
    dreams: pl.DataFrame, seed_questions: pl.DataFrame, paraphrases: pl.DataFrame
) -> pl.DataFrame:
    """Return the dreams that go to the guard: question_id, text, seed_id, origin.

    Left out are those whose seed is gone, and texts that are a seed or a paraphrase by now.
    """
    known = {fold_text(text) for text in (*seed_questions["text"], *paraphrases["text"])}
    is_new = [fold_text(text) not in known for text in dreams["text"]]
    return (
        dreams.filter(pl.Series(is_new, dtype=pl.Boolean))
        .join(seed_questions, left_on="seed_id", right_on="question_id", how="semi")
        .unique("question_id", keep="first", maintain_order=True)
        .select("question_id", "text", "seed_id", pl.lit(DREAMED).alias("origin"))
    )
