"""From medoids to paraphrases: ask the teacher, drop what is no rewording, keep what is new.

Belongs here: the loop over medoids, the second asking, repetition within and across seeds. Does not
belong here: the prompt and the reading of its answer (`rewriting`), single faults (`vetting`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from assets.losses import LossCount, allowed_losses
from assets.paraphrases.rewriting import (
    REWRITE_PROMPT_VERSION,
    read_paraphrases,
    write_rewrite_request,
)
from assets.paraphrases.vetting import SEED_COSINE_FLOOR, find_fault
from assets.replies import MAXIMUM_DRAWS, ask_until_read
from assets.seeds.duplicates import mark_near_duplicates
from assets.spending import note_spending
from serving.aio import map_bounded
from serving.errors import DeadlineExceededError, UpstreamError
from serving.hashing import content_hash
from serving.models.protocols import ChatModel, Progress, Vectors
from serving.pipeline.questions import fold_text, normalise_question

SEED = 20260601
MAXIMUM_ASKINGS = 2  # a medoid is asked for once, and once more if too little was usable
ENOUGH_RATIO = 0.5  # share of usable rewordings below which a medoid is asked for again
MINIMUM_KEPT_RATIO = 0.5  # share of all rewordings asked for; below: the teacher ignores the prompt
MAXIMUM_LOST_RATIO = 0.05  # share of medoids that may be rejected, and that may stay unanswered

Question = tuple[str, str]
"""An id and a text."""


@dataclass(frozen=True, kw_only=True)
class Paraphrase:
    """A reworded seed, with its parent and who wrote it."""

    question_id: str
    seed_id: str
    text: str
    teacher_id: str
    temperature: float
    prompt_version: str


@dataclass(frozen=True, kw_only=True)
class Multiplication:
    """The paraphrases that were kept, and what became of the rest."""

    paraphrases: tuple[Paraphrase, ...]
    dropped_by_reason: dict[str, int]
    unread_count: int
    """Medoids of whose replies none could be read."""
    asked_again_count: int
    lost_by_verdict: dict[str, int]
    """Medoids the teacher refused or failed at: they keep what they yielded before, if anything."""


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """What a teacher returned for one medoid: usable texts, and the faults of the others."""

    seed_id: str
    texts: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    asking_count: int = 0
    is_unread: bool = True
    loss: str | None = None
    """The verdict on the medoid, when the teacher refused it or failed at it."""


async def paraphrase_medoids(
    medoids: Sequence[Question],
    *,
    seeds: Sequence[Question],
    teacher: ChatModel,
    embed: Callable[[Sequence[str]], Vectors],
    count: int,
    temperature: float,
    concurrency: int,
    progress: Progress,
    first_seed: int = SEED,
) -> Multiplication:
    """Return rewordings of the medoids, each new among all seeds and paraphrases.

    A medoid may yield fewer than `count`: what has a fault or repeats a text is dropped and not
    padded. Where less than `ENOUGH_RATIO` is usable the teacher is asked once more, for another
    draw. A medoid that the teacher refuses, or fails at after all retries, costs its rewordings;
    more of them than `MAXIMUM_LOST_RATIO`, or one after the other, cost the run.

    Args:
        medoids: the seeds to reword.
        seeds: every seed, the medoids among them: what paraphrases must not repeat.
        teacher: who rewords.
        embed: gives unit vectors.
        count: rewordings wanted per medoid.
        temperature: of the sampling.
        concurrency: calls in flight.
        progress: told after every medoid.
        first_seed: of the sampling; another one asks the same medoid for other rewordings.

    Raises:
        BudgetExceededError: the budget is used up; what was bought is kept.
        UpstreamError, DeadlineExceededError: too many medoids were refused or stayed unanswered.
    """
    losses = LossCount(
        work=f"paraphrasing {len(medoids)} medoids",
        allowed=allowed_losses(len(medoids), MAXIMUM_LOST_RATIO),
        patience=concurrency,
    )

    async def draft(medoid: Question) -> _Draft:
        made = _Draft(seed_id=medoid[0])
        while made.asking_count < MAXIMUM_ASKINGS and len(made.texts) < ENOUGH_RATIO * count:
            request = write_rewrite_request(
                medoid[1],
                count=count,
                temperature=temperature,
                seed=first_seed + MAXIMUM_DRAWS * made.asking_count,
            )
            read = partial(read_paraphrases, original=medoid[1])
            try:
                reply = await ask_until_read(teacher, request, read)
            except (UpstreamError, DeadlineExceededError) as error:
                return replace(made, loss=losses.count(error))
            losses.count_answer()
            made = _extend(made, medoid[1], reply)
        return made

    drafts = await map_bounded(
        draft,
        medoids,
        concurrency=concurrency,
        progress=progress,
        description="paraphrasing",
        note=lambda: note_spending(teacher),
    )
    lost = Counter(made.loss for made in drafts if made.loss)
    unread_count = sum(made.is_unread and not made.loss for made in drafts)
    if unread_count:
        note = f"{unread_count} without a readable reply"
        progress.advance("paraphrasing", len(drafts), len(drafts), note)
    kept, dropped = select_new(drafts, seeds=seeds, embed=embed, count=count)
    return Multiplication(
        paraphrases=tuple(
            Paraphrase(
                question_id=content_hash(seed_id, text),
                seed_id=seed_id,
                text=normalise_question(text),  # as production asks it; the id stays
                teacher_id=teacher.name,
                temperature=temperature,
                prompt_version=REWRITE_PROMPT_VERSION,
            )
            for seed_id, text in kept
        ),
        dropped_by_reason=dict(sorted(dropped.items())),
        unread_count=unread_count,
        asked_again_count=sum(made.asking_count > 1 for made in drafts),
        lost_by_verdict=dict(sorted(lost.items())),
    )


def _extend(made: _Draft, original: str, reply: tuple[str, ...] | None) -> _Draft:
    known = {fold_text(text) for text in (original, *made.texts)}
    texts, faults = list(made.texts), list(made.faults)
    for text in reply or ():
        folded = fold_text(text)
        fault = "same_text" if folded in known else find_fault(text, original=original)
        if fault:
            faults.append(fault)
            continue
        known.add(folded)
        texts.append(text)
    return replace(
        made,
        texts=tuple(texts),
        faults=tuple(faults),
        asking_count=made.asking_count + 1,
        is_unread=made.is_unread and reply is None,
    )


def select_new(
    drafts: Sequence[_Draft],
    *,
    seeds: Sequence[Question],
    embed: Callable[[Sequence[str]], Vectors],
    count: int,
) -> tuple[list[Question], Counter[str]]:
    """Return at most `count` (seed_id, text) per draft, and how many were dropped by reason.

    Dropped are texts that repeat a seed or an earlier paraphrase (`same_text`, `near_duplicate`),
    that are far from their seed (`far_from_seed`), and what exceeds `count` (`surplus`).
    """
    dropped = Counter(fault for made in drafts for fault in made.faults)
    known = {fold_text(text) for _, text in seeds}
    fresh: list[Question] = []
    for made in drafts:
        for text in made.texts:
            if (folded := fold_text(text)) in known:
                dropped["same_text"] += 1
            else:
                known.add(folded)
                fresh.append((made.seed_id, text))
    row_of = {seed_id: row for row, (seed_id, _) in enumerate(seeds)}
    parents = [row_of[seed_id] for seed_id, _ in fresh]
    known_vectors = embed([text for _, text in seeds])
    vectors = embed([text for _, text in fresh])
    parent_vectors = known_vectors[np.asarray(parents, dtype=np.intp)]
    near = np.einsum("nd,nd->n", vectors, parent_vectors) >= SEED_COSINE_FLOOR
    dropped["far_from_seed"] = len(fresh) - int(near.sum())
    close = [question for question, is_near in zip(fresh, near, strict=True) if is_near]
    is_duplicate = mark_near_duplicates(
        np.concatenate([known_vectors, vectors[near]]), known_count=len(seeds)
    )[len(seeds) :]
    dropped["near_duplicate"] = int(is_duplicate.sum())
    kept: list[Question] = []
    room = Counter({made.seed_id: count for made in drafts})
    for question, repeats in zip(close, is_duplicate, strict=True):
        if repeats:
            continue
        if not room[question[0]]:
            dropped["surplus"] += 1
            continue
        room[question[0]] -= 1
        kept.append(question)
    return kept, +dropped
