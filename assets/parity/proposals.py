"""Proposals for the next version of a frozen set: what the last measurement could not decide.

A proposal is a question and the evidence for asking it. It is no case: a person writes what a right
answer must hold, or strikes it. Belongs here: choosing questions. Does not belong here: writing
files (`orchestration/eval_cli`), changing a frozen version, which nothing does.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from assets.parity.behaviours import find_disagreement_clusters
from assets.students.held_out import STUDENT
from serving.models.protocols import Embedder
from serving.pipeline.questions import fold_text, normalise_question

Bucket = Literal["answerable", "boundary", "out_of_scope"]

LEAST_SLICE_CASES = 30  # below: a slice is shown and never gated
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


def find_thin_slices(report: pl.DataFrame, buckets: Collection[str]) -> dict[str, int]:
    """Return how many cases each bucket lacks to be gated, where it lacks any."""
    rows = report.filter(
        pl.col("slice").is_in(list(buckets)), kind="arm", arm="teacher", metric="exact_match"
    )
    counts = dict(rows.select("slice", "n").iter_rows())
    missing = {bucket: LEAST_SLICE_CASES - counts.get(bucket, 0) for bucket in buckets}
    return {bucket: count for bucket, count in missing.items() if count > 0}


def propose_cases(
    candidates: pl.DataFrame,
    *,
    thin: Mapping[str, int],
    known_questions: Sequence[str],
    buckets: Collection[str],
    embedder: Embedder,
) -> list[Proposal]:
    """Return proposals: one per cluster of disagreements, then questions for thin slices.

    Args:
        candidates: rows of `list_candidates`.
        thin: cases that a bucket lacks.
        known_questions: of the frozen version; none is proposed again.
        buckets: those that the set holds.
        embedder: by which disagreements are grouped.
    """
    known = {fold_text(question) for question in known_questions}
    fresh = candidates.filter(
        pl.col("bucket").is_in(list(buckets)),
        ~pl.col("question").map_elements(lambda q: fold_text(q) in known, return_dtype=pl.Boolean),
    )
    proposals = _propose_from_clusters(fresh.filter("is_disagreement"), embedder)
    taken = {proposal.question for proposal in proposals}
    for bucket, count in thin.items():
        rest = fresh.filter(~pl.col("question").is_in(list(taken)), bucket=bucket).head(count)
        reason = f"the slice {bucket} lacks {count} cases to be gated"
        proposals += [
            Proposal(question=question, bucket=bucket, reason=reason)  # type: ignore[arg-type]
            for question in rest["question"]
        ]
    return proposals[:MOST_PROPOSALS]


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
