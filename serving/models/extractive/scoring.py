"""How well a text bears on a question: two cosines and the words they share, none of them an LLM.

Belongs here: the measure. Does not belong here: thresholds on it (`answering`), the form of a text
(`fitness`).
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from serving.models.extractive.vectors import SentenceVectors
from serving.models.extractive.wording import FILLER
from serving.pipeline.statements import content_words

HEADED_COSINE_WEIGHT = 0.35
UNIT_COSINE_WEIGHT = 0.35
OVERLAP_WEIGHT = 0.30

_HEADING_WORD_WEIGHT = 0.6
_TELLING_WORDS = 5
"""A long question tells a story around what it asks: matching this many of its rarest words is all
the overlap that can be expected."""


def support_texts(
    question: str, texts: Sequence[str], headings: Sequence[str], vectors: SentenceVectors
) -> list[float]:
    """Score how well each text, read under its heading, bears on the question."""
    if not texts:
        return []
    headed = [f"{heading}: {text}" for heading, text in zip(headings, texts, strict=True)]
    asked = vectors.embed([question])[0]
    plain_cosines = np.clip(vectors.embed(texts) @ asked, 0.0, 1.0)
    headed_cosines = np.clip(vectors.embed(headed) @ asked, 0.0, 1.0)
    overlaps = _overlaps(question, texts, headings)
    return [
        HEADED_COSINE_WEIGHT * float(h) + UNIT_COSINE_WEIGHT * float(p) + OVERLAP_WEIGHT * overlap
        for h, p, overlap in zip(headed_cosines, plain_cosines, overlaps, strict=True)
    ]


def _overlaps(question: str, texts: Sequence[str], headings: Sequence[str]) -> list[float]:
    """Return the idf-weighted share of the question's words that each text and its heading hold.

    The idf is taken over these texts: a word that is in every one of them tells none apart, a word
    that is in none of them counts fully against all.
    """
    asked = set(word_stems(question))
    if not asked:
        return [0.0] * len(texts)
    bags = [set(word_stems(text)) for text in texts]
    heading_bags = [set(word_stems(heading)) for heading in headings]
    held_by = Counter(word for bag in bags for word in bag)
    weights = {w: math.log(1 + len(texts) / (0.5 + held_by[w])) for w in sorted(asked)}
    expected = sum(sorted(weights.values(), reverse=True)[:_TELLING_WORDS])
    return [
        min(
            1.0,
            sum(
                weight * (1.0 if w in bag else _HEADING_WORD_WEIGHT if w in heading_bag else 0.0)
                for w, weight in weights.items()
            )
            / expected,
        )
        for bag, heading_bag in zip(bags, heading_bags, strict=True)
    ]


def word_stems(text: str) -> list[str]:
    """Return the content words of a text, filler dropped, endings cut, identifiers in parts too."""
    stems: list[str] = []
    for word in content_words(text):
        if word in FILLER:
            continue
        stems.append(_stem(word))
        parts = [part for part in re.split(r"[_./:-]+", word) if part]
        if len(parts) > 1:
            stems.extend(_stem(part) for part in parts)
    return stems


def _stem(word: str) -> str:
    """Cut common English endings: `chunks` matches `chunk`, `splitting` matches `split`."""
    for ending in ("ing", "ies", "ied", "ed", "es", "s", "e", "ly"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word.removesuffix(ending)
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word
