"""Estimates over logged traffic, weighted by how likely each answer's model was to be chosen.

A router sends hard questions to the teacher, so the mean over what a model answered speaks of the
questions it was given, not of all of them. Exploration gives every eligible question some chance of
either model, and the trace logs that chance as `propensity`: weighting by its inverse undoes the
choice (Hajek's self-normalised estimator; Horvitz and Thompson 1952). Belongs here: the estimator,
and how many rows it is really worth. Does not belong here: drawing the route
(`serving/pipeline/router`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from assets.statistics import Interval, clustered_bootstrap
from serving.errors import InvalidInputError

MINIMUM_EFFECTIVE_COUNT = 30  # below it the weighted estimate is not worth comparing
EXPLORED = ("default", "explore", "canary", "low_confidence")
"""Reasons under which chance chose the model that was asked first; other rules decide for certain.
`low_confidence` is among them: the student was asked, and its answer doubted afterwards."""


@dataclass(frozen=True, kw_only=True)
class WeightedEstimate:
    """A mean over what one model was asked: as logged, and as it would be over all questions."""

    arm: str
    naive: float
    weighted: Interval
    row_count: int
    effective_count: float
    """(sum of weights)² / sum of squared weights (Kish): what the rows are worth."""

    @property
    def is_conclusive(self) -> bool:
        """Whether the weighted rows are worth enough."""
        return self.effective_count >= MINIMUM_EFFECTIVE_COUNT


def select_explored(records: pl.DataFrame) -> pl.DataFrame:
    """Return the records whose first model chance chose, with it as the column `asked_first`.

    A student whose answer fell back to the teacher was asked all the same: leaving such rows out
    would keep only what it could answer. What a rule decides has no chance of the other model, and
    no weight makes up for that.
    """
    return records.filter(
        pl.col("route_reason").is_in(EXPLORED),
        pl.col("selection_mode").is_in(["rule", "explore", "fallback"]),
        pl.col("propensity") > 0,
        pl.col("attempts").list.len() > 0,
    ).with_columns(pl.col("attempts").list.first().struct.field("role").alias("asked_first"))


def estimate_weighted(
    arm: str,
    values: Sequence[float],
    propensities: Sequence[float],
    *,
    clusters: Sequence[str] | None = None,
) -> WeightedEstimate:
    """Return naive and inverse-propensity-weighted means of one arm's logged values.

    Args:
        arm: whose answers these are.
        values: one figure per answer: whether it is a refusal, its cost, its agreement.
        propensities: the logged chance of the arm for that question, in (0, 1].
        clusters: rows that were drawn together, such as a conversation; None: each its own.

    Raises:
        InvalidInputError: there are no rows, or a propensity is no chance.
    """
    chances = np.asarray(propensities, dtype=np.float64)
    if (
        len(values) == 0
        or len(values) != len(chances)
        or not ((chances > 0) & (chances <= 1)).all()
    ):
        raise InvalidInputError(
            f"weighting the answers of the {arm}",
            expected="as many propensities as values, at least one, each in (0, 1]",
            found=f"{len(values)} values and propensities {sorted(set(propensities))[:5]}",
            next_step="leave out rows without a logged chance (`select_explored`)",
        )
    weights = 1 / chances
    totals = np.asarray(values, dtype=np.float64) * weights
    groups = clusters or [str(number) for number in range(len(values))]
    return WeightedEstimate(
        arm=arm,
        naive=float(np.mean(values)),
        weighted=clustered_bootstrap(totals.tolist(), groups, denominators=weights.tolist()),
        row_count=len(values),
        effective_count=float(weights.sum() ** 2 / (weights**2).sum()),
    )
