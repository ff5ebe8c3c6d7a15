"""The gate on clusters in shadow: what kinds of question this student loses that nobody measures.

As in the agreement gate, only pairs of this very pipeline are evidence, for the count and for its
chance. Belongs here: the gate. Does not belong here: clustering and its chance (`disagreements`),
the golden cases' clusters (`assets/parity/behaviours`), what monitoring watches from week to week
(`assets/monitoring/clusters`).
"""

import polars as pl

from assets.releases.disagreements import Registry, cluster_pairs
from assets.releases.gates import GatePolicy, GateResult
from assets.releases.shadow import (
    ALPHA,
    ShadowedPipeline,
    find_shortage,
    leave_out_others,
    take_first,
)
from serving.models.protocols import Embedder


def check_shadow_clusters(
    pairs: pl.DataFrame,
    pipeline: ShadowedPipeline,
    policy: GatePolicy,
    embedder: Embedder,
    registry: Registry,
) -> GateResult:
    """No kind of real question that the registry does not know is lost by this very student.

    It fails where as many questions of one kind disagree as the limit of golden cases allows not,
    and more than chance among the questions around them. With too few pairs, as the agreement gate
    counts them, it is shown and not counted, unless it fails: a lost kind is lost all the same.

    Args:
        pairs: of `read_pairs`.
        pipeline: whose pairs are evidence.
        policy: the limits, those of the agreement gate and of the golden cases' clusters.
        embedder: of the questions.
        registry: which kinds of question are measured.
    """
    own, _ = leave_out_others(pairs, pipeline)
    found = cluster_pairs(own, embedder, registry, agreement_ratio=policy.minimum_agreement_ratio)
    kinds = [one for one in found if not one.cluster.is_registered]
    limit = policy.unregistered_cluster_cases
    lost = [one for one in kinds if one.question_count >= limit and one.p_value < ALPHA]
    shortage = find_shortage(own, pipeline, policy)
    n, counted = take_first(own).height, lost or kinds
    detail = f"{len(kinds)} clusters of disagreements outside the behaviour registry"
    if lost:
        detail += f" over {n} pairs of {pipeline.student}"
        detail += "".join(
            f"; {one.question_count} like trace {one.medoid_trace_id}, of {one.asked_count} "
            "questions of its kind"
            for one in lost[:5]
        )
        detail += ": add cases of that kind to the behaviour registry"
    else:
        detail += f"; {shortage}" if shortage else f" over {n} pairs of {pipeline.student}"
    return GateResult(
        name="shadow_clusters",
        unit="count",
        relation="at most",
        outcome="FAIL" if lost else "INCONCLUSIVE" if shortage else "PASS",
        number=float(max((one.question_count for one in counted), default=0)) if n else None,
        limit=float(limit - 1),
        n=n,
        detail=detail,
        is_gating=bool(lost) or not shortage,
    )
