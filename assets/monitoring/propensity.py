"""Estimates over logged traffic, weighted by how likely each answer's model was to be chosen.

A router sends hard questions to the teacher, so the mean over what a model answered speaks of the
questions it was given, not of all of them. Exploration gives every eligible question some chance of
either model, and the trace logs that chance as `propensity`: weighting by its inverse undoes the
choice (Hajek's self-normalised estimator; Horvitz and Thompson 1952). Belongs here: the estimator,
how many rows it is really worth, and the figures it is shown for. Does not belong here: drawing the
route (`serving/pipeline/router`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from assets.monitoring.measurements import Measurement
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


def measure_unbiased(asks: pl.DataFrame) -> list[Measurement]:
    """Return what each model does with what it is asked, naive and weighted, side by side.

    `fallback_share`: the student was asked and the teacher answered. `refused_share`: the answer
    was a refusal. Nothing is decided on them: they show how far the router's choice flatters each.
    """
    explored = select_explored(asks).with_columns(
        (pl.col("asked_first") != pl.col("served_by")).alias("fallback_share"),
        pl.col("refused").alias("refused_share"),
    )
    shown: list[Measurement] = []
    for arm in ("student", "teacher"):
        asked = explored.filter(pl.col("asked_first") == arm)
        for metric in ("fallback_share", "refused_share"):
            rows = asked.filter(pl.col(metric).is_not_null())
            if rows.height and (metric, arm) != ("fallback_share", "teacher"):
                estimate = estimate_weighted(
                    arm,
                    rows[metric].cast(pl.Float64).to_list(),
                    rows["propensity"].to_list(),
                    clusters=rows["conversation"].to_list(),
                )
                shown.append(_show(metric, estimate))
    return shown


def _show(metric: str, estimate: WeightedEstimate) -> Measurement:
    worth = "" if estimate.is_conclusive else f", too few to compare ({MINIMUM_EFFECTIVE_COUNT})"
    return Measurement(
        metric=f"{metric}_weighted",
        slice=f"asked_first={estimate.arm}",
        outcome="shown",
        number=estimate.weighted.value,
        lower=estimate.weighted.lower,
        upper=estimate.weighted.upper,
        n=estimate.row_count,
        detail=f"naive {estimate.naive:.3f}; worth {estimate.effective_count:.0f} rows{worth}",
    )
