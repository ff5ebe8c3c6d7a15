"""From medoids to paraphrases: ask the teacher, keep what is new.

Belongs here: the loop over medoids and deduplication across seeds. Does not belong here: the prompt
and the reading of its answer (`rewriting`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from assets.eval_set.guard import normalise_text
from assets.paraphrases.rewriting import (
    REWRITE_PROMPT_VERSION,
    read_paraphrases,
    write_rewrite_request,
)
from assets.replies import ask_until_read
from serving.aio import map_bounded
from serving.hashing import content_hash
from serving.models.protocols import ChatModel, Progress

SEED = 20260601


@dataclass(frozen=True, kw_only=True)
class Paraphrase:
    """A reworded seed, with its parent and who wrote it."""

    question_id: str
    seed_id: str
    text: str
    teacher_id: str
    temperature: float
    prompt_version: str


async def paraphrase_medoids(
    medoids: Sequence[tuple[str, str]],
    *,
    known_texts: Sequence[str],
    teacher: ChatModel,
    count: int,
    temperature: float,
    concurrency: int,
    progress: Progress,
) -> list[Paraphrase]:
    """Return paraphrases of (seed_id, text) medoids, each new among seeds and paraphrases.

    A medoid may yield fewer than `count`: what repeats a known text is dropped, not padded. One of
    whose replies none can be read yields nothing; the last progress note counts these.
    """

    async def ask(medoid: tuple[str, str]) -> tuple[str, ...] | None:
        request = write_rewrite_request(medoid[1], count=count, temperature=temperature, seed=SEED)
        return await ask_until_read(teacher, request, partial(read_paraphrases, original=medoid[1]))

    answers = await map_bounded(
        ask, medoids, concurrency=concurrency, progress=progress, description="paraphrasing"
    )
    if unread := sum(answer is None for answer in answers):
        note = f"{unread} without a readable reply"
        progress.advance("paraphrasing", len(answers), len(answers), note)
    seen = {normalise_text(text) for text in known_texts}
    kept: list[Paraphrase] = []
    for (seed_id, _), texts in zip(medoids, answers, strict=True):
        for text in (texts or ())[:count]:
            identity = normalise_text(text)
            if not identity or identity in seen:
                continue
            seen.add(identity)
            kept.append(
                Paraphrase(
                    question_id=content_hash(seed_id, text),
                    seed_id=seed_id,
                    text=text,
                    teacher_id=teacher.name,
                    temperature=temperature,
                    prompt_version=REWRITE_PROMPT_VERSION,
                )
            )
    return kept
