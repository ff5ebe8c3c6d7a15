"""Weak regions: which seeds stand nearest to what the student could not answer.

Production says only where to look: no text of a user leaves this module. Before anybody has asked,
what the student got wrong on the validation split says it. Belongs here: counting, and the order of
the seeds. Does not belong here: writing questions (`dreaming`), reading hours (`assets/traces`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
import polars as pl

from assets.paraphrases.vetting import SEED_COSINE_FLOOR
from assets.statistics import wilson_interval
from assets.traces.deciding import is_asked
from serving.models.protocols import Vectors

WEAK_REASONS = ("low_confidence", "low_retrieval", "long_context")
"""Why the router sends to the teacher what the student cannot do; chance and phases say nothing."""

HANDWRITTEN = "handwritten"

Evidence = Literal["production", "validation"]
"""What says where the student is weak: traces, or answers of the validation split."""


@dataclass(frozen=True, kw_only=True)
class WeakSpot:
    """A seed that may be written around, and what is known of its cluster."""

    seed_id: str
    text: str
    evidence: Evidence
    asked_count: int
    """Different questions that are nearest to a seed of its cluster."""
    weak_count: int
    """Those of them that the student could not answer."""

    @property
    def weak_ratio(self) -> float:
        """The share that is weak, as far as so few questions can say: Wilson's lower bound."""
        return wilson_interval(self.weak_count, self.asked_count).lower


def select_asks(records: pl.LazyFrame) -> pl.DataFrame:
    """Return the questions that may say where the student is weak, each once: question, is_weak.

    Only what could be trained on counts: nobody steers the writing by escalations or injections.
    """
    is_weak = (pl.col("selection_mode") == "fallback") | (
        (pl.col("served_by") == "teacher") & pl.col("route_reason").is_in(WEAK_REASONS)
    )
    return (
        records.filter(
            is_asked(),
            pl.col("env") == "prod",
            pl.col("outcome") == "answered",
            pl.col("trainable"),
            ~pl.col("is_injection"),
            ~pl.col("escalation_requested"),
            pl.col("question").is_not_null(),
        )
        .group_by("question_hash")
        .agg(pl.col("question").first(), is_weak.fill_null(value=False).any().alias("is_weak"))
        .sort("question_hash")
        .collect()
    )


def choose_evidence(
    asks: pl.DataFrame, read_misses: Callable[[], pl.DataFrame]
) -> tuple[pl.DataFrame, Evidence]:
    """Return production's questions, or the validation split's while production shows none weak.

    So it is before anybody asks, and while the teacher answers everything.
    """
    return (asks, "production") if asks["is_weak"].any() else (read_misses(), "validation")


def rank_weak_spots(
    asks: pl.DataFrame,
    seeds: pl.DataFrame,
    *,
    evidence: Evidence,
    embed_asks: Callable[[Sequence[str]], Vectors],
    embed_seeds: Callable[[Sequence[str]], Vectors],
    is_taught: Callable[[str], bool],
) -> list[WeakSpot]:
    """Return one seed for each cluster with a weak question, the weakest cluster first.

    Args:
        asks: as `select_asks` returns them.
        evidence: where they are from.
        seeds: question_id, text, source, cluster_id and distance (to the cluster's medoid).
        embed_asks: gives unit vectors and keeps none: users wrote these texts.
        embed_seeds: gives unit vectors.
        is_taught: whether what grows from a seed is trained on, by the seed's id.

    Returns:
        Of each cluster the hand-written and taught seed nearest to the medoid: what grows from a
        harvested one would outlive its deletion. Questions far from every seed count nowhere.
    """
    if asks.is_empty() or seeds.is_empty():
        return []
    cosines = embed_asks(asks["question"].to_list()) @ embed_seeds(seeds["text"].to_list()).T
    nearest = np.argmax(cosines, axis=1)
    placed = asks.with_columns(
        pl.Series("cluster_id", seeds["cluster_id"].to_numpy()[nearest]),
        pl.Series("cosine", cosines[np.arange(len(nearest)), nearest]),
    ).filter(pl.col("cosine") >= SEED_COSINE_FLOOR)
    counts = placed.group_by("cluster_id").agg(
        pl.len().alias("asked_count"), pl.col("is_weak").sum().alias("weak_count")
    )
    taught = [is_taught(seed_id) for seed_id in seeds["question_id"]]
    parents = (
        seeds.filter(pl.Series(taught, dtype=pl.Boolean), pl.col("source") == HANDWRITTEN)
        .sort("distance", "question_id")
        .unique("cluster_id", keep="first", maintain_order=True)
    )
    spots = [
        WeakSpot(
            seed_id=row["question_id"],
            text=row["text"],
            evidence=evidence,
            asked_count=row["asked_count"],
            weak_count=row["weak_count"],
        )
        for row in parents.join(counts, on="cluster_id").iter_rows(named=True)
        if row["weak_count"]
    ]
    return sorted(spots, key=lambda spot: (-spot.weak_ratio, -spot.weak_count, spot.seed_id))


def leave_out_dreamed(
    spots: Sequence[WeakSpot], dreams: pl.DataFrame, *, since: datetime | None
) -> list[WeakSpot]:
    """Return the spots that no night has written around since a student was asked.

    Validation misses stay as they are until another student is asked; production's asks do not.

    Args:
        spots: by validation misses.
        dreams: what was written so far.
        since: when the misses were measured; None where nothing was.
    """
    done = set() if since is None else set(dreams.filter(pl.col("dreamed_at") >= since)["seed_id"])
    return [spot for spot in spots if spot.seed_id not in done]
