"""Disagreements: what student and teacher part over, by what is asked, and how likely by chance.

A student may disagree now and then, and of many questions some that it parts over are alike by
chance. A cluster tells of a lost kind of question only where more of the questions around it
disagree than may anywhere. Belongs here: clusters over pairs, that test, the registry's vectors.
Does not belong here: clustering itself (`assets/parity/behaviours`), the gate (`shadow_clusters`),
what monitoring tells of them from week to week (`assets/monitoring/clusters`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from assets.eval_set.suites import BEHAVIOURS
from assets.eval_set.vectors import read_vectors
from assets.parity.behaviours import (
    CLUSTER_COSINE,
    DisagreementCluster,
    find_disagreement_clusters,
)
from serving.models.protocols import Embedder, Vectors
from serving.pipeline.questions import normalise_question

Flags = npt.NDArray[np.bool_]
LARGEST_COMPARED = 5000  # differing questions that are embedded


@dataclass(frozen=True, kw_only=True)
class Registry:
    """The behaviour registry's cases: [m, d] unit vectors, and the m names of their behaviours."""

    vectors: Vectors
    behaviours: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class FoundCluster:
    """A cluster with its pairs that disagree, and what the questions around it say of it.

    `asked_count` questions lie as near to the medoid as one kind's do, itself included. `p_value`
    is the chance of as many disagreements among them, somewhere, for a student as good as allowed.
    """

    cluster: DisagreementCluster
    pairs: pl.DataFrame
    asked_count: int
    p_value: float

    @property
    def question_count(self) -> int:
        """How many different questions disagree."""
        return len(self.cluster.question_ids)

    @property
    def medoid_trace_id(self) -> str:
        """The trace that first asked what the cluster is most alike to."""
        is_medoid = pl.col("question_hash") == self.cluster.medoid
        return str(self.pairs.filter(is_medoid)["trace_id"][0])


def read_registered(eval_embeddings: pl.DataFrame, *, embedder: Embedder) -> Registry:
    """Return the registry of the table eval_set/eval_embeddings, for questions of `embedder`.

    Raises:
        InvalidInputError: another embedder made its vectors: no cluster would be registered.
    """
    mine = eval_embeddings.filter(suite=BEHAVIOURS)
    vectors = read_vectors(mine, embedder=embedder)
    return Registry(vectors=vectors, behaviours=mine["case_id"].to_list())


def cluster_pairs(
    pairs: pl.DataFrame, embedder: Embedder, registry: Registry, *, agreement_ratio: float
) -> list[FoundCluster]:
    """Return the clusters of differing questions that disagree, the largest first.

    A question that many people ask counts once, as it was first answered, and so does a
    conversation: whoever asks again in other words asks the same.

    Args:
        pairs: of `pair_answers`.
        embedder: of the questions; users' texts are kept nowhere.
        registry: which kinds of question are measured.
        agreement_ratio: the share that a student as good as allowed answers alike.
    """
    first = pairs.unique("conversation", keep="first", maintain_order=True)
    distinct = first.drop_nulls("question_hash").unique("question_hash", keep="first")
    distinct = distinct.sort("question_hash").head(LARGEST_COMPARED)  # a hash is a lot drawn
    is_apart = ~distinct["agrees"].to_numpy()
    if not is_apart.any():
        return []
    vectors = embedder.embed([normalise_question(text or "") for text in distinct["question"]])
    ids = distinct["question_hash"].to_list()
    clusters = find_disagreement_clusters(
        distinct.filter(~pl.col("agrees"))["question_hash"].to_list(),
        vectors[is_apart],
        registered=registry.vectors,
        behaviours=registry.behaviours,
    )
    apart = pairs.filter(~pl.col("agrees"))
    found = []
    for cluster in clusters:
        asked_count, p = _examine_kind(
            ids.index(cluster.medoid), vectors, is_apart, agreement_ratio
        )
        mine = apart.filter(pl.col("question_hash").is_in(cluster.question_ids))
        found.append(FoundCluster(cluster=cluster, pairs=mine, asked_count=asked_count, p_value=p))
    return found


def _examine_kind(
    medoid: int, vectors: Vectors, is_apart: Flags, agreement_ratio: float
) -> tuple[int, float]:
    """Return how many questions are of the medoid's kind, and the chance of their disagreements.

    The medoid was chosen for disagreeing and says nothing itself. It might have been any of those
    that do, so the binomial chance is multiplied by their number (Bonferroni).
    """
    from scipy.stats import binom

    is_near = vectors @ vectors[medoid] >= CLUSTER_COSINE
    is_near[medoid] = False
    n, count = int(is_near.sum()), int((is_near & is_apart).sum())
    p = float(binom.sf(count - 1, n, 1 - agreement_ratio))
    return n + 1, min(1.0, p * int(is_apart.sum()))
