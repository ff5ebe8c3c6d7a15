"""Clusters of seeds: which questions are about the same thing, and which one stands for them.

Belongs here: clustering and medoids. Does not belong here: rewording (`rewriting`).
"""

import math
from dataclasses import dataclass

import numpy as np

from serving.models.protocols import Vectors


@dataclass(frozen=True, kw_only=True)
class ClusterMember:
    """One seed's cluster, whether it stands for it, and its cosine distance to the medoid."""

    cluster_id: int
    is_medoid: bool
    distance: float


def cluster_questions(vectors: Vectors, *, questions_per_cluster: int) -> list[ClusterMember]:
    """Group questions by meaning (average-linkage agglomerative clustering on cosine distance).

    Args:
        vectors: [n, d] unit vectors.
        questions_per_cluster: average cluster size; ceil(n / it) clusters are formed.

    Returns:
        n members in input order; each cluster has exactly one medoid, the member whose summed
        distance to the others is least (ties: the earlier one).
    """
    from sklearn.cluster import AgglomerativeClustering

    count = math.ceil(len(vectors) / questions_per_cluster)
    if count < 2:
        labels = np.zeros(len(vectors), dtype=int)
    else:
        model = AgglomerativeClustering(n_clusters=count, metric="cosine", linkage="average")
        labels = model.fit_predict(vectors)
    distances = 1.0 - np.clip(vectors @ vectors.T, -1.0, 1.0)
    medoid_of = {int(label): _find_medoid(distances, labels == label) for label in set(labels)}
    return [
        ClusterMember(
            cluster_id=int(label),
            is_medoid=medoid_of[int(label)] == row,
            distance=0.0
            if medoid_of[int(label)] == row
            else float(distances[row, medoid_of[int(label)]]),
        )
        for row, label in enumerate(labels)
    ]


def _find_medoid(distances: Vectors, members: np.ndarray) -> int:
    rows = np.flatnonzero(members)
    return int(rows[np.argmin(distances[np.ix_(rows, rows)].sum(axis=1))])
