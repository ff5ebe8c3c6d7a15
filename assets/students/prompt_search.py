"""Searching a prompt: instructions and examples, by agreement with the teacher on held-out labels.

Successive halving (Karnin, Koren and Somekh 2013): every candidate answers a few questions of the
validation split, the better half answers more, until one is left or the calls are used up. The
prompt that `few_shot` would write is never dropped, so that the winner is compared with it on the
same questions. Belongs here: candidates, agreement, the search. Does not belong here: the model
that answers, files (`factory`).
"""

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from assets.students.few_shot import OWN_INSTRUCTIONS, choose_representative
from serving.aio import map_bounded
from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.models.prompted_student import Example, StudentPrompt, interleave
from serving.models.protocols import Progress, Vectors
from serving.pipeline.prompt import CITATION_PATTERN, REFUSAL_WORD, PromptFormat, read_answer
from serving.pipeline.statements import content_words

INSTRUCTIONS = (
    f"You answer questions about documentation. Copy the one or two sentences of the sources that "
    f"answer the question, word for word, each followed by its source id in square brackets. If no "
    f"source answers the question, write only {REFUSAL_WORD}.",
    f"Decide first whether the sources answer the question. If they do not, reply with the single "
    f"word {REFUSAL_WORD}. If they do, quote the sentence that answers it, with its [id] after it, "
    f"and add nothing.",
    f"Use only the sources that come with the question. Reply as in the examples: a quoted "
    f"sentence with its [id], or {REFUSAL_WORD}.",
)
"""Tried beside the prompt's own rules where a recipe names no instructions."""

SEARCH_LOG = pl.Schema(
    {
        "round": pl.Int32(),
        "candidate": pl.Int32(),
        "instructions": pl.Int32(),
        "example_set": pl.Int32(),
        "example_id": pl.String(),
        "answer": pl.String(),
        "agreement": pl.Float64(),
    }
)
"""One row per call: `instructions` and `example_set` are numbered from 0, the `few_shot` one."""

Ask = Callable[[StudentPrompt, Example], Awaitable[str]]
"""Answers the question of an example with a prompt."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One prompt among those searched; candidate 0 is the one `few_shot` would write."""

    number: int
    instructions: int
    example_set: int
    prompt: StudentPrompt


@dataclass(frozen=True, kw_only=True)
class PromptSearch:
    """The prompt found, its mean agreement and that of candidate 0 on the same questions."""

    best: Candidate
    agreement_ratio: float
    first_agreement_ratio: float
    question_count: int
    call_count: int
    log: pl.DataFrame


@dataclass(frozen=True, kw_only=True)
class _Round:
    """What a round asks: the candidates still in, and the questions [start, stop)."""

    number: int
    candidates: tuple[Candidate, ...]
    start: int
    stop: int


def propose_candidates(
    pool: Sequence[Example],
    vectors: Vectors,
    *,
    instructions: Sequence[str],
    example_sets: int,
    examples: int,
    refusals: int,
    seed: int,
) -> list[Candidate]:
    """Return every pair of instructions and example set.

    Set 0 are the medoids, the others are drawn by the hash of (seed, set, example id). Instructions
    0 are the prompt's own.
    """
    sets = [choose_representative(pool, vectors, examples=examples, refusals=refusals)]
    for number in range(1, example_sets):
        sets.append(_draw_set(pool, examples, refusals, (seed, number)))
    texts = [OWN_INSTRUCTIONS, *(text for text in instructions if text != OWN_INSTRUCTIONS)]
    pairs = [(text, rows) for text in range(len(texts)) for rows in range(len(sets))]
    return [
        Candidate(
            number=number,
            instructions=text,
            example_set=rows,
            prompt=StudentPrompt(
                layout="turns-1",
                instructions=texts[text],
                examples=tuple(pool[row] for row in sets[rows]),
            ),
        )
        for number, (text, rows) in enumerate(pairs)
    ]


async def search_prompt(
    candidates: Sequence[Candidate],
    validation: Sequence[Example],
    *,
    ask: Ask,
    calls: int,
    seed: int,
    concurrency: int,
    progress: Progress,
) -> PromptSearch:
    """Return the candidate that agrees most with the teacher, within `calls` calls of `ask`.

    Raises:
        InvalidInputError: there is nothing to compare on, or not one call for each candidate.
        ModelError: the model failed at a question; what it answered before is kept by its cache.
    """
    _refuse_unsearchable(candidates, validation, calls)
    questions = sorted(validation, key=lambda one: content_hash(seed, one.example_id))
    alive, asked, spent, number = tuple(candidates), 0, 0, 0
    scores: dict[int, list[float]] = {candidate.number: [] for candidate in candidates}
    logs: list[pl.DataFrame] = []
    while (step := _plan_round(number, alive, asked, len(questions), calls - spent)) is not None:
        rows = await _ask_round(step, questions, ask, concurrency, progress)
        logs.append(pl.DataFrame(rows, schema=SEARCH_LOG))
        for row in rows:
            scores[row["candidate"]].append(row["agreement"])
        asked, spent, number = step.stop, spent + len(rows), number + 1
        alive = _keep_better_half(alive, scores)
    # At a tie the prompt that needed no search wins.
    best = max(alive, key=lambda c: (float(np.mean(scores[c.number])), -c.number))
    return PromptSearch(
        best=best,
        agreement_ratio=float(np.mean(scores[best.number])),
        first_agreement_ratio=float(np.mean(scores[0])),
        question_count=asked,
        call_count=spent,
        log=pl.concat(logs),
    )


def measure_agreement(answer: str, label: Example) -> float:
    """Return how far an answer agrees with the teacher's, 0-1.

    Refusing where the teacher answers, or the reverse, is 0; refusing with it is 1. Two answers
    agree by the mean of two F1 scores: of the sources cited, and of the content words said.
    """
    refused = read_answer(answer, (), PromptFormat()).refused
    if refused or label.refused:
        return float(refused == label.refused)
    cited = [Counter(set(_cited(text))) for text in (answer, label.answer)]
    said = [
        Counter(content_words(CITATION_PATTERN.sub(" ", text))) for text in (answer, label.answer)
    ]
    return (_f1(*cited) + _f1(*said)) / 2


def _cited(text: str) -> list[str]:
    return [match["id"] for match in CITATION_PATTERN.finditer(text)]


def _f1(one: Counter[str], other: Counter[str]) -> float:
    total = one.total() + other.total()
    return 2 * (one & other).total() / total if total else 0.0


def _draw_set(
    pool: Sequence[Example], examples: int, refusals: int, salt: tuple[int, int]
) -> list[int]:
    drawn = sorted(range(len(pool)), key=lambda row: content_hash(*salt, pool[row].example_id))
    refused = [row for row in drawn if pool[row].refused][:refusals]
    answered = [row for row in drawn if not pool[row].refused][: examples - len(refused)]
    return interleave(answered, refused)


def _plan_round(
    number: int, alive: tuple[Candidate, ...], asked: int, question_count: int, calls: int
) -> _Round | None:
    """Return the next round: its share of the calls left, an equal number for each candidate."""
    if number and len(alive) == 1:
        return None
    rounds_left = max(1, math.ceil(math.log2(len(alive))))
    each = max(1, calls // rounds_left // len(alive)) if calls >= len(alive) else 0
    stop = min(question_count, asked + each)
    return _Round(number=number, candidates=alive, start=asked, stop=stop) if stop > asked else None


async def _ask_round(
    step: _Round,
    questions: Sequence[Example],
    ask: Ask,
    concurrency: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    async def one(item: tuple[Candidate, Example]) -> dict[str, Any]:
        candidate, label = item
        answer = await ask(candidate.prompt, label)
        return {
            "round": step.number,
            "candidate": candidate.number,
            "instructions": candidate.instructions,
            "example_set": candidate.example_set,
            "example_id": label.example_id,
            "answer": answer,
            "agreement": measure_agreement(answer, label),
        }

    items = [(c, label) for c in step.candidates for label in questions[step.start : step.stop]]
    description = f"prompt search, round {step.number + 1}"
    return await map_bounded(
        one, items, concurrency=concurrency, progress=progress, description=description
    )


def _keep_better_half(
    alive: tuple[Candidate, ...], scores: dict[int, list[float]]
) -> tuple[Candidate, ...]:
    """Return the better half, candidate 0 in any case, in their order."""
    ranked = sorted(alive, key=lambda c: (-float(np.mean(scores[c.number])), c.number))
    kept = ranked[: math.ceil(len(ranked) / 2)]
    if len(alive) > 2 and all(candidate.number for candidate in kept):
        kept[-1] = next(candidate for candidate in alive if not candidate.number)
    return tuple(sorted(kept, key=lambda candidate: candidate.number))


def _refuse_unsearchable(
    candidates: Sequence[Candidate], validation: Sequence[Example], calls: int
) -> None:
    attempted = f"searching {len(candidates)} prompts on the validation split"
    if not validation:
        raise InvalidInputError(
            attempted,
            expected="labelled examples in the validation split",
            found="none",
            next_step="add seed questions: about 15 % of the seeds validate",
        )
    if calls < len(candidates):
        raise InvalidInputError(
            attempted,
            expected="at least one call for each prompt",
            found=f"calls: {calls}",
            next_step="raise `calls`, or lower `example_sets` or the number of `instructions`",
        )
