"""Clusters of seeds: which questions are about the same thing, and which one stands for them.

A changed medoid is dear: its paraphrases, their answers and their judgements are bought anew. So
k-means starts from seeds drawn by the hash of their ids: one seed more or less moves one start, and
not the whole clustering as it does where a dendrogram is cut. Belongs here: clustering and medoids.
Does not belong here: rewording (`rewriting`).
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.hashing import content_hash
from serving.models.protocols import Vectors

MEDOID_TIE_DISTANCE = 0.05  # this near to the least mean distance: as central as the most central
"""Without it a medoid loses its role whenever a neighbour comes or goes: 3 more seeds then cost
2.5 % of the calls and not 1.7 % (260 seeds of this repository, `bench/clustering.py`)."""

MAXIMUM_ROUNDS = 10  # of Lloyd's algorithm; each lets a change travel one cluster further

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class ClusterMember:
    """One seed's cluster, whether it stands for it, and its cosine distance to the medoid."""

    cluster_id: int
    is_medoid: bool
    distance: float


def cluster_questions(
    question_ids: Sequence[str], vectors: Vectors, *, questions_per_cluster: int
) -> list[ClusterMember]:
    """Group questions by meaning (k-means on unit vectors) and choose each group's medoid.

    Args:
        question_ids: of the n questions, distinct; they decide where k-means starts.
        vectors: [n, d] unit vectors.
        questions_per_cluster: average cluster size; ceil(n / it) clusters are formed, fewer only
            where vectors are equal.

    Returns:
        n members in input order, clusters numbered by first member. Each has one medoid: of the
        members whose mean distance to the others is within `MEDOID_TIE_DISTANCE` of the least, the
        first in hash order. Memory is n x d plus one block of distances to the centres.
    """
    count = math.ceil(len(vectors) / questions_per_cluster)
    ranks = _rank_by_hash(question_ids)
    labels = _run_kmeans(vectors, starts=np.argsort(ranks)[:count])
    members: list[ClusterMember | None] = [None] * len(vectors)
    for number, rows in enumerate(_group_rows(labels)):
        medoid = rows[_find_medoid(vectors[rows], ranks[rows])]
        distances = 1.0 - np.clip(vectors[rows] @ vectors[medoid], -1.0, 1.0)
        for row, distance in zip(rows, distances, strict=True):
            members[row] = ClusterMember(
                cluster_id=number,
                is_medoid=bool(row == medoid),
                distance=0.0 if row == medoid else float(distance),
            )
    return [member for member in members if member is not None]


def _rank_by_hash(question_ids: Sequence[str]) -> Rows:
    """Return each question's place in the order of their hashes: the same in every set."""
    return np.argsort(np.argsort([content_hash(name) for name in question_ids]))


def _run_kmeans(vectors: Vectors, *, starts: Rows) -> Rows:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    if len(starts) < 2:
        return np.zeros(len(vectors), dtype=np.intp)
    model = KMeans(len(starts), init=vectors[starts], n_init=1, max_iter=MAXIMUM_ROUNDS, tol=0.0)
    with warnings.catch_warnings():
        # Equal vectors leave some starts without members; those clusters are not formed.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels: Rows = model.fit_predict(vectors).astype(np.intp)
    return labels


def _group_rows(labels: Rows) -> list[Rows]:
    """Return the rows of each cluster in ascending order, the cluster of the first row first."""
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(labels) else []
    return sorted(groups, key=lambda rows: int(rows[0]))


def _find_medoid(vectors: Vectors, ranks: Rows) -> int:
    count = len(vectors)
    # The distances from a member to all, itself included, sum to n less its product with the sum.
    mean = (count - vectors @ vectors.sum(axis=0)) / max(count - 1, 1)
    central = np.flatnonzero(mean <= mean.min() + MEDOID_TIE_DISTANCE)
    return int(central[np.argmin(ranks[central])])
