"""The examples a student is shown: which of the train split stand for all of it.

Belongs here: examples from labelled rows, the choice of the most representative ones. Does not
belong here: choosing for one question at a time (`serving.models.prompted_student`), searching
(`prompt_search`), files (`factory`).
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from serving.models.prompted_student import Example, StudentPrompt, interleave
from serving.models.protocols import Embedder, Vectors
from serving.pipeline.prompt import REFUSAL_WORD, RULES, read_sources_text

OWN_INSTRUCTIONS = RULES.format(refusal=REFUSAL_WORD).partition("\n\nSources:")[0]
"""The rules of the one prompt, without its sources: they stand with each question."""

BLOCK = 512  # examples whose similarity to all others is in memory at once


def read_examples(labelled: pl.DataFrame) -> list[Example]:
    """Return labelled examples (example_id, messages, completion, refused) as they are shown."""
    return [
        Example(
            example_id=row["example_id"],
            sources=read_sources_text(row["messages"]),
            question=row["messages"][-1]["content"],
            answer=row["completion"],
            refused=row["refused"],
        )
        for row in labelled.sort("example_id").iter_rows(named=True)
    ]


def write_fixed_prompt(
    pool: Sequence[Example], vectors: Vectors, *, examples: int, refusals: int
) -> StudentPrompt:
    """Return a prompt with the most representative answers and refusals of a pool.

    Args:
        pool: of the train split.
        vectors: [n, d] unit vectors of its questions.
        examples: how many are shown.
        refusals: how many of these are refusals.
    """
    rows = choose_representative(pool, vectors, examples=examples, refusals=refusals)
    return StudentPrompt(
        layout="turns-1",
        instructions=OWN_INSTRUCTIONS,
        examples=tuple(pool[row] for row in rows),
    )


def write_nearest_prompt(
    pool: Sequence[Example], embedder: Embedder, *, examples: int, refusals: int
) -> StudentPrompt:
    """Return a prompt with the whole pool, of which each question is shown the nearest."""
    return StudentPrompt(
        layout="turns-1",
        instructions=OWN_INSTRUCTIONS,
        examples=tuple(pool),
        is_nearest=True,
        shown=examples,
        refusals=refusals,
        embedder_fingerprint=embedder.fingerprint,
    )


def choose_representative(
    pool: Sequence[Example], vectors: Vectors, *, examples: int, refusals: int
) -> list[int]:
    """Return rows of the pool in the order they are shown; answers and refusals chosen apart."""
    refused = [row for row, example in enumerate(pool) if example.refused]
    answered = [row for row, example in enumerate(pool) if not example.refused]
    chosen = choose_medoids(vectors[refused], min(refusals, len(refused)))
    of_refusals = [refused[place] for place in chosen]
    chosen = choose_medoids(vectors[answered], min(examples - len(of_refusals), len(answered)))
    return interleave([answered[place] for place in chosen], of_refusals)


def choose_medoids(vectors: Vectors, count: int) -> list[int]:
    """Return the rows that together are nearest to all, the one that gains most first.

    Each is the row that most raises the sum of every row's cosine to its nearest chosen one: the
    BUILD phase of PAM (Kaufman and Rousseeuw 1990). At a tie the first row is taken, so equal input
    gives equal rows.
    """
    nearest = np.full(len(vectors), -1.0, dtype=np.float32)
    chosen: list[int] = []
    for _ in range(count):
        gains = np.concatenate(
            [
                np.maximum(vectors[start : start + BLOCK] @ vectors.T - nearest, 0.0).sum(axis=1)
                for start in range(0, len(vectors), BLOCK)
            ]
        )
        gains[chosen] = -1.0
        best = int(np.argmax(gains))
        chosen.append(best)
        nearest = np.maximum(nearest, vectors @ vectors[best])
    return chosen
