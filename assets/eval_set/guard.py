"""The contamination guard: no question that trains comes near a question that grades.

It belongs to what it protects, so every stage that adds training text imports it from here. Belongs
here: the limit and the comparison. Does not belong here: embedding, reading or writing tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from serving.models.protocols import Vectors

LEAKAGE_COSINE_LIMIT = 0.92  # at or above: rejected
NEAR_MISS_COSINE = 0.85  # at or above (and below the limit): kept, and shown
UNIT_TOLERANCE = 1e-3  # how far a vector's length may be from 1
BLOCK_ROWS = 8192
"""Candidates compared at once: 8192 x 150 float32 is 5 MB, whatever the pool's size."""


@dataclass(frozen=True, kw_only=True)
class GuardVerdict:
    """What the guard says of one candidate question."""

    nearest_case_id: str
    nearest_cosine: float
    verdict: Literal["kept", "rejected"]
    reason: Literal["", "cosine", "same_text"]


def reject_near_duplicates(
    texts: Sequence[str],
    vectors: Vectors,
    *,
    case_ids: Sequence[str],
    case_texts: Sequence[str],
    case_vectors: Vectors,
) -> list[GuardVerdict]:
    """Compare candidates with every eval case.

    Args:
        texts: n candidate questions.
        vectors: [n, d] their unit vectors.
        case_ids: of the m eval cases.
        case_texts: their questions.
        case_vectors: [m, d] their unit vectors, by the same embedder.

    Returns:
        n verdicts: rejected at or above `LEAKAGE_COSINE_LIMIT`, or when the normalised texts are
        equal.

    Raises:
        ValueError: there is no eval case to compare with, lengths differ, or a vector is not of
            unit length: the guard does not guess.
    """
    if not len(case_ids) == len(case_texts) == len(case_vectors) or not len(case_ids):
        raise ValueError(
            f"the guard needs eval cases with vectors: got {len(case_ids)} ids, "
            f"{len(case_texts)} texts, {len(case_vectors)} vectors"
        )
    if len(texts) != len(vectors):
        raise ValueError(f"{len(texts)} texts but {len(vectors)} vectors")
    _check_unit_length(case_vectors, "eval case")
    _check_unit_length(vectors, "candidate")
    known = {normalise_text(text) for text in case_texts}
    verdicts: list[GuardVerdict] = []
    for start in range(0, len(texts), BLOCK_ROWS):
        cosines = vectors[start : start + BLOCK_ROWS] @ case_vectors.T
        nearest = np.argmax(cosines, axis=1)
        values = cosines[np.arange(len(nearest)), nearest]
        block = texts[start : start + BLOCK_ROWS]
        for text, case, value in zip(block, nearest, values, strict=True):
            verdicts.append(_judge(text, case_ids[int(case)], float(value), known))
    return verdicts


def normalise_text(text: str) -> str:
    """Fold case and drop everything but letters and digits, so spelling variants compare equal."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def _check_unit_length(vectors: Vectors, name: str) -> None:
    """Refuse vectors whose product is no cosine."""
    if not len(vectors):
        return
    norms = np.linalg.norm(vectors, axis=1)
    wrong = np.flatnonzero(~(np.abs(norms - 1.0) <= UNIT_TOLERANCE))  # NaN and infinity are wrong
    if len(wrong):
        raise ValueError(
            f"the guard compares unit vectors: {len(wrong)} of {len(vectors)} {name} vectors are "
            f"not finite or not of length 1 (row {wrong[0]}: length {norms[wrong[0]]}); "
            "embed them again with an embedder that normalises"
        )


def _judge(text: str, case_id: str, cosine: float, known: set[str]) -> GuardVerdict:
    same_text = normalise_text(text) in known
    near = not (cosine < LEAKAGE_COSINE_LIMIT)  # also true of NaN: in doubt, rejected
    return GuardVerdict(
        nearest_case_id=case_id,
        nearest_cosine=cosine,
        verdict="rejected" if near or same_text else "kept",
        reason="cosine" if near else "same_text" if same_text else "",
    )
