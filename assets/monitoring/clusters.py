"""Clusters of disagreement: what the student and the teacher part over, by what is asked.

Belongs here: rows of clusters over shadow pairs, and their verdict. Does not belong here:
clustering (`assets/parity/behaviours`), agreement as a share (`agreement`).
"""

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import polars as pl

from assets import tables
from assets.monitoring.measurements import Measurement, compare_number, leave_open
from assets.parity.behaviours import CLUSTER_SIZE, DisagreementCluster, find_disagreement_clusters
from serving.hashing import content_hash
from serving.models.protocols import Embedder, Vectors
from serving.pipeline.questions import normalise_question

KEPT_IDS = 50


def cluster_pairs(
    pairs: pl.DataFrame, embedder: Embedder, *, registered: Vectors, behaviours: Sequence[str]
) -> list[tuple[DisagreementCluster, pl.DataFrame]]:
    """Return the clusters of differing questions that disagree, each with its pairs.

    A question that many people ask counts once: it is one kind of disagreement, not many.
    """
    apart = pairs.filter(~pl.col("agrees"))
    distinct = apart.unique("question_hash", keep="first", maintain_order=True)
    if distinct.is_empty():
        return []
    vectors = embedder.embed([normalise_question(text or "") for text in distinct["question"]])
    clusters = find_disagreement_clusters(
        distinct["question_hash"].to_list(), vectors, registered=registered, behaviours=behaviours
    )
    return [
        (cluster, apart.filter(pl.col("question_hash").is_in(cluster.question_ids)))
        for cluster in clusters
    ]


def tabulate_clusters(
    clusters: Sequence[tuple[DisagreementCluster, pl.DataFrame]], *, start: datetime, end: datetime
) -> pl.DataFrame:
    """Return one row per cluster, the largest first; texts stay in the traces that are named."""
    rows = []
    for cluster, pairs in clusters:
        ids = pairs["trace_id"].to_list()
        medoid = pairs.filter(pl.col("question_hash") == cluster.medoid)["trace_id"][0]
        rows.append(
            {
                "cluster_id": content_hash(sorted(cluster.question_ids)),
                "medoid_trace_id": medoid,
                "question_count": len(cluster.question_ids),
                "pair_count": len(ids),
                "trace_ids": ids[:KEPT_IDS],
                "nearest_behaviour": cluster.nearest_behaviour,
                "nearest_cosine": cluster.nearest_cosine,
                "is_registered": cluster.is_registered,
                "window_start": start,
                "window_end": end,
            }
        )
    return pl.DataFrame(rows, schema=tables.DISAGREEMENT_CLUSTERS)


def read_registered(eval_embeddings: pl.DataFrame, suite: str) -> tuple[Vectors, list[str]]:
    """Return the vectors and names of the registry's cases."""
    mine = eval_embeddings.filter(pl.col("suite") == suite)
    if mine.is_empty():
        return np.zeros((0, 0), dtype=np.float32), []
    return np.asarray(mine["vector"].to_list(), dtype=np.float32), mine["case_id"].to_list()


def judge_clusters(clusters: pl.DataFrame, shadow_agreement: pl.DataFrame) -> Measurement:
    """Return the largest cluster that the registry does not know against its limit."""
    limit = CLUSTER_SIZE - 1
    compared = shadow_agreement.filter(metric="agreement", slice="all")["n"].sum()
    if clusters.is_empty() and not compared:
        told = shadow_agreement.filter(metric="agreement", slice="all")["detail"].to_list()
        reason = told[0] if told else "no question was answered by both models"
        return leave_open("unregistered_cluster", reason, relation="at most", limit=limit)
    strays = clusters.filter(~pl.col("is_registered"))
    largest = strays.sort("question_count").tail(1)
    size = int(largest["question_count"].sum())
    named = f", the largest like trace {largest['medoid_trace_id'][0]}" if size else ""
    return compare_number(
        "unregistered_cluster",
        size,
        relation="at most",
        limit=limit,
        n=int(clusters["pair_count"].sum()),
        detail=f"{strays.height} clusters outside the behaviour registry{named}",
    )
