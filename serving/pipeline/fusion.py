"""From two searches to one order: candidates by reciprocal rank, relevance by scores.

Belongs here: arithmetic on ranks, vectors and scores of one question. Does not belong here:
searching (`retrieval`), storage (`indexing`).

Ranks choose the candidates, for the lists' scores have no common scale yet. Scores order them, for
ranks forget how much better one hit is than the next: relevance is the mean of nearness (of chunk
and page, by cosine) and of the share of what BM25 can give to the question. Neither part depends on
what else was found; scaling by the best hit (min-max) would call the best match of words a full
one, even where a question shares one filler word with a chunk. Convex combinations: Bruch et al.,
"An Analysis of Fusion Functions for Hybrid Retrieval", TOIS 2023, section 4.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serving.models.protocols import Vectors

Scores = npt.NDArray[np.float64]

BM25_SATURATION = 1.2  # k1 of LanceDB's BM25: a word counts at most k1 + 1 times its weight
TYPICAL_TERMS = 5
"""Words of the shorter development questions, stop words aside (data/retrieval); 4 and 6 order
as well."""
RANK_CONSTANT = 60  # Cormack et al., "Reciprocal Rank Fusion outperforms Condorcet", SIGIR 2009


def merge_candidates(rankings: Sequence[Sequence[int]], *, limit: int) -> list[int]:
    """Return at most `limit` items of the rankings by reciprocal rank fusion, best first.

    An item earns 1 / (60 + rank) in every ranking that has it; of equals the smaller is first.
    """
    earned: dict[int, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, start=1):
            earned[item] = earned.get(item, 0.0) + 1 / (RANK_CONSTANT + rank)
    return sorted(sorted(earned), key=earned.__getitem__, reverse=True)[:limit]


def limit_bm25(chunk_count: int, term_count: int) -> float:
    """Return the BM25 score that is a full match of a question, or 1.0 for one without words.

    A word found weighs most if it stands in one of the n chunks alone, ln(1 + (n - 0.5) / 1.5), and
    its frequency saturates at k1 + 1. A question of `TYPICAL_TERMS` words must have all found so;
    with their number the score asked for grows by its square root, because the longer a question
    is, the smaller the share of its words that even the right chunk repeats.
    """
    rarest = math.log(1 + (chunk_count - 0.5) / 1.5)
    return (BM25_SATURATION + 1) * rarest * math.sqrt(TYPICAL_TERMS * term_count) or 1.0


def read_vectors(
    question: Vectors, windows: Sequence[Vectors], pages: Vectors
) -> tuple[Scores, Scores]:
    """Return how near each chunk is to the question: by its best window, and with its page.

    The second is the mean of the best window's cosine and the page's: a passage of the page that is
    about the matter comes before one that mentions it aside. Each counts half, which is no tuned
    number and as good as the weight that the development sets choose for each other
    (`bench/page_weight.py`). Among the chunks of one page the page says nothing.

    Args:
        question: [dimension] unit vector.
        windows: for each of n chunks [its windows, dimension] unit vectors, at least one each.
        pages: [n, dimension] the direction of the mean of all parts of each chunk's page.

    Returns:
        ([n], [n]), each in -1..1.
    """
    begins = np.cumsum([0, *(len(vectors) for vectors in windows[:-1])])
    cosines = compare(np.concatenate(windows), question).astype(np.float64)
    best = np.maximum.reduceat(cosines, begins)
    return best, (best + compare(pages, question)) / 2


def compare(vectors: Vectors, question: Vectors) -> Vectors:
    """Return [n] cosines of [n, dimension] unit vectors with one.

    Without BLAS: its threads wait by spinning, on the cores that the search by words runs on, and
    its sums depend on where in the matrix a row stands.
    """
    cosines: Vectors = np.einsum("nd,d->n", vectors, question)
    return cosines


def fuse(cosines: Scores, bm25: Scores, *, limit: float) -> Scores:
    """Return [n] relevances in 0-1: the even mean of the clipped cosine and BM25 over its limit.

    Args:
        cosines: [n] in -1..1.
        bm25: [n] from 0, which a chunk has that shares no word.
        limit: what `limit_bm25` says of the question.
    """
    fused: Scores = (np.clip(cosines, 0.0, 1.0) + np.clip(bm25 / limit, 0.0, 1.0)) / 2
    return fused
