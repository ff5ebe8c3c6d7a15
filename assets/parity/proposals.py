"""Proposals for the next version of a frozen set: what the last measurement could not decide.

A proposal is a question and the evidence for asking it. It is no case: a person writes what a right
answer must hold, or strikes it. Belongs here: choosing questions. Does not belong here: which
slices lack cases (`shortages`), writing files (`orchestration/eval_cli`), changing a frozen
version, which nothing does.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from assets.parity.behaviours import find_disagreement_clusters
from assets.parity.shortages import Bucket, Shortage
from assets.students.held_out import STUDENT
from serving.models.protocols import Embedder
from serving.pipeline.questions import fold_text, normalise_question

MOST_PROPOSALS = 30


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A question for the next version, and why it is asked."""

    question: str
    bucket: Bucket
    reason: str

    @property
    def should_refuse(self) -> bool:
        """Whether the teacher refuses it: where a person begins to think, and no verdict."""
        return self.bucket != "answerable"


def list_candidates(held_out: pl.DataFrame) -> pl.DataFrame:
    """Return (example_id, question, bucket, is_disagreement) of what the student was asked.

    The arms disagree where one refuses and the other does not, or where both cite other chunks.
    """
    asked = held_out.filter(
        pl.col("error").is_null() & pl.col("verdict").is_not_null(), arm=STUDENT
    ).unique("question", keep="first", maintain_order=True)
    other_citations = pl.col("citations").list.sort() != pl.col("label_citations").list.sort()
    both_answer = ~pl.col("refused") & ~pl.col("label_refused")
    return asked.select(
        "example_id",
        "question",
        pl.when("is_out_of_scope")
        .then(pl.lit("out_of_scope"))
        .when("label_refused")
        .then(pl.lit("boundary"))
        .otherwise(pl.lit("answerable"))
        .alias("bucket"),
        ((pl.col("refused") != pl.col("label_refused")) | (both_answer & other_citations)).alias(
            "is_disagreement"
        ),
    )


def propose_from_traffic(clusters: pl.DataFrame, answers: pl.DataFrame) -> list[Proposal]:
    """Return one question for each kind of real question that divides student and teacher.

    The kinds come first that no behaviour of the registry covers, then the larger ones. A kind
    whose trace was deleted gives nothing: what a user took back is not asked of anybody.

    Args:
        clusters: the table disagreement_clusters.
        answers: traces of the clusters' medoids and of their shadows: trace_id, parent_trace_id,
            question, served_by and refused.
    """
    asked = answers.filter(pl.col("question").is_not_null()).select("trace_id", "question")
    teacher = answers.filter(served_by="teacher").select(
        pl.coalesce("parent_trace_id", "trace_id").alias("trace_id"), "refused"
    )
    told = (
        clusters.join(asked, left_on="medoid_trace_id", right_on="trace_id")
        .join(teacher, left_on="medoid_trace_id", right_on="trace_id")
        .unique("cluster_id", keep="first", maintain_order=True)
        .sort("is_registered", "question_count", "cluster_id", descending=[False, True, False])
    )
    return [
        Proposal(
            question=row["question"],
            bucket="boundary" if row["refused"] else "answerable",
            reason=f"{row['question_count']} questions of users like this one divide student and "
            f"teacher{'' if row['is_registered'] else ', and no behaviour covers them'}; it is a "
            "user's own words, so put it in yours",
        )
        for row in told.iter_rows(named=True)
    ]


def propose_cases(
    candidates: pl.DataFrame,
    *,
    thin: Mapping[Bucket, Shortage],
    known_questions: Sequence[str],
    buckets: Collection[str],
    embedder: Embedder,
    of_traffic: Sequence[Proposal] = (),
) -> list[Proposal]:
    """Return proposals: of traffic, one per cluster of disagreements, questions for thin slices.

    Args:
        candidates: rows of `list_candidates`.
        thin: what buckets lack.
        known_questions: of the frozen version; none is proposed again.
        buckets: those that the set holds.
        embedder: by which disagreements are grouped.
        of_traffic: of `propose_from_traffic`; those of other buckets are left out.
    """
    known = {fold_text(question) for question in known_questions}
    fresh = candidates.filter(
        pl.col("bucket").is_in(list(buckets)),
        ~pl.col("question").map_elements(lambda q: fold_text(q) in known, return_dtype=pl.Boolean),
    )
    proposals = [
        proposal
        for proposal in of_traffic
        if proposal.bucket in buckets and fold_text(proposal.question) not in known
    ]
    proposals += _propose_from_clusters(fresh.filter("is_disagreement"), embedder)
    taken = [proposal.question for proposal in proposals]
    for bucket, lacking in thin.items():
        rest = fresh.filter(~pl.col("question").is_in(taken), bucket=bucket).head(lacking.count)
        proposals += [
            Proposal(question=question, bucket=bucket, reason=lacking.reason)
            for question in rest["question"]
        ]
    distinct: dict[str, Proposal] = {}
    for proposal in proposals:
        distinct.setdefault(fold_text(proposal.question), proposal)
    return list(distinct.values())[:MOST_PROPOSALS]


def _propose_from_clusters(disagreements: pl.DataFrame, embedder: Embedder) -> list[Proposal]:
    if disagreements.is_empty():
        return []
    rows = {row["example_id"]: row for row in disagreements.iter_rows(named=True)}
    vectors = embedder.embed([normalise_question(row["question"]) for row in rows.values()])
    clusters = find_disagreement_clusters(
        list(rows), vectors, registered=vectors[:0], behaviours=()
    )
    return [
        Proposal(
            question=rows[cluster.medoid]["question"],
            bucket=rows[cluster.medoid]["bucket"],
            reason=f"{len(cluster.question_ids)} held-out questions like this one divide student "
            "and teacher",
        )
        for cluster in clusters
    ]
