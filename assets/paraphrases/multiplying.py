"""From medoids to paraphrases: ask the teacher, keep what is new.

Belongs here: the loop over medoids and deduplication across seeds. Does not belong here: the prompt
and the reading of its answer (`rewriting`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from assets.eval_set.guard import normalise_text
from assets.paraphrases.rewriting import (
    REWRITE_PROMPT_VERSION,
    read_paraphrases,
    write_rewrite_request,
)
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

    A medoid may yield fewer than `count`: what repeats a known text is dropped, not padded.
    """

    async def ask(medoid: tuple[str, str]) -> tuple[str, ...]:
        request = write_rewrite_request(medoid[1], count=count, temperature=temperature, seed=SEED)
        completion = await teacher.complete(request)
        return read_paraphrases(completion.text, original=medoid[1])

    answers = await map_bounded(
        ask, medoids, concurrency=concurrency, progress=progress, description="paraphrasing"
    )
    seen = {normalise_text(text) for text in known_texts}
    kept: list[Paraphrase] = []
    for (seed_id, _), texts in zip(medoids, answers, strict=True):
        for text in texts[:count]:
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
