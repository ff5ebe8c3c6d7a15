"""Clusters of disagreement: what the student and the teacher part over, from week to week.

Belongs here: rows of clusters over shadow pairs, reading the last ones, and their verdict. Does not
belong here: the clusters and their chance (`assets/releases/disagreements`), agreement as a share
(`agreement`).
"""

from collections.abc import Sequence
from datetime import datetime

import polars as pl

from assets import tables
from assets.monitoring.measurements import (
    Measurement,
    MonitoringPlan,
    compare_number,
    leave_open,
)
from assets.releases.disagreements import FoundCluster
from serving.hashing import content_hash
from serving.home import Home

KEPT_IDS = 50


def tabulate_clusters(
    clusters: Sequence[FoundCluster], *, start: datetime, end: datetime
) -> pl.DataFrame:
    """Return one row per cluster, the largest first; texts stay in the traces that are named."""
    rows = []
    for found in clusters:
        cluster, ids = found.cluster, found.pairs["trace_id"].to_list()
        rows.append(
            {
                "cluster_id": content_hash(sorted(cluster.question_ids)),
                "medoid_trace_id": found.medoid_trace_id,
                "question_count": found.question_count,
                "pair_count": len(ids),
                "asked_count": found.asked_count,
                "p_value": found.p_value,
                "trace_ids": ids[:KEPT_IDS],
                "nearest_behaviour": cluster.nearest_behaviour,
                "nearest_cosine": cluster.nearest_cosine,
                "is_registered": cluster.is_registered,
                "window_start": start,
                "window_end": end,
            }
        )
    return pl.DataFrame(rows, schema=tables.DISAGREEMENT_CLUSTERS)


def read_clusters(home: Home) -> pl.DataFrame | None:
    """Return the clusters that monitoring found last; None where it never looked.

    A table of another version says nothing: what it counted may be another thing.
    """
    path = home.table("monitoring/disagreement_clusters")
    found = pl.read_parquet(path) if path.exists() else None
    return found if found is not None and found.schema == tables.DISAGREEMENT_CLUSTERS else None


def judge_clusters(
    clusters: pl.DataFrame, shadow_agreement: pl.DataFrame, plan: MonitoringPlan
) -> Measurement:
    """Return the cluster that is least likely chance, of those the registry does not know.

    Where none of them is large enough to be a kind of question, the largest is within the limit;
    of too few pairs to judge agreement by, that says nothing.
    """
    limit = plan.unregistered_cluster_cases - 1
    agreement = shadow_agreement.filter(metric="agreement", slice="all")
    compared = int(agreement["n"].sum())
    strays = clusters.filter(~pl.col("is_registered"))
    kinds = strays.filter(pl.col("question_count") > limit).sort("p_value")
    if kinds.is_empty() and agreement["number"].null_count() == agreement.height:
        reason = next(iter(agreement["detail"]), "no question was answered by both models")
        return leave_open(
            "unregistered_cluster", reason, n=compared, relation="at most", limit=limit
        )
    worst = kinds.head(1) if kinds.height else strays.sort("question_count").tail(1)
    detail = f"{strays.height} clusters outside the behaviour registry"
    for row in worst.iter_rows(named=True):
        detail += f"; {row['question_count']} disagree like trace {row['medoid_trace_id']}, "
        detail += f"of {row['asked_count']} questions of its kind"
    return compare_number(
        "unregistered_cluster",
        int(worst["question_count"].sum()),
        relation="at most",
        limit=limit,
        n=compared,
        p_value=float(worst["p_value"].sum()) if worst.height else 1.0,
        detail=detail,
    )
