"""Is the measurement alive? Agreement among raters is worth something while they can disagree.

Raters who copy each other, or one model rating with itself, agree more and more while they see less
and less. So agreement is read beside what nobody can talk himself into: anchors whose quality is
known. Belongs here: Krippendorff's alpha and the four alarms. Does not belong here: asking raters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import polars as pl

from assets.parity.rulers import (
    ALPHA_RISE,
    ENTROPY_DROP_RATIO,
    GOOD_SCORE,
    LEAST_ALPHA,
    LEAST_SENTINEL_AUC,
    Finding,
)
from assets.parity.standing import RULER, keep_standing
from assets.statistics import clustered_bootstrap

LEAST_SHARED = 30  # ratings of two raters or more below which agreement says nothing
SCORES = (1, 2, 3, 4, 5)
LEAST_RATERS = 2


def krippendorff_alpha(ratings: npt.NDArray[np.float64]) -> float:
    """Return Krippendorff's alpha for ordinal ratings, [raters, units], NaN where not rated.

    Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section D: one minus observed
    over expected disagreement of the coincidences. 1 where nothing varies and all agree.

    Raises:
        ValueError: no unit was rated twice.
    """
    values = np.unique(ratings[~np.isnan(ratings)])
    counts = np.stack([(ratings == value).sum(axis=0) for value in values])
    counts = counts[:, counts.sum(axis=0) >= LEAST_RATERS].astype(np.float64)
    if not counts.size:
        raise ValueError("expected units with two ratings or more")
    per_unit = counts.sum(axis=0)
    coincidences = (counts / (per_unit - 1)) @ counts.T
    coincidences[np.diag_indices_from(coincidences)] -= (counts / (per_unit - 1)).sum(axis=1)
    totals = coincidences.sum(axis=0)
    middle = np.cumsum(totals) - totals / 2  # the ranks that ordinal differences are made of
    distance = (middle[:, None] - middle[None, :]) ** 2
    expected = float((np.outer(totals, totals) * distance).sum()) / (float(totals.sum()) - 1)
    return 1.0 if not expected else 1.0 - float((coincidences * distance).sum()) / expected


def judge_measurement(ratings: pl.DataFrame) -> Finding:
    """Do raters agree, without having stopped to see the difference?

    Read of the rulers that stand: a retired judge is neither compared with the one of today nor
    pooled with it.
    Alarms: agreement too low; agreement risen by 0.05 while accuracy on the gold did not; known-bad
    anchors no longer told from known-good ones; scores squeezed into fewer values.
    """
    known = keep_standing(ratings.filter(pl.col("score").is_not_null()))
    shared = _list_shared(known)
    if len(shared) < LEAST_SHARED:
        return Finding(
            holds=False,
            is_conclusive=False,
            reasons=(f"{len(shared)} of {LEAST_SHARED} ratings by two raters or more",),
            numbers={},
        )
    alpha = krippendorff_alpha(_spread(shared))
    auc, drops = measure_sentinels(known), measure_entropy_drops(known)
    numbers = {"alpha": alpha, "sentinel_auc": auc, "shared_count": float(len(shared))}
    reasons = []
    if alpha < LEAST_ALPHA:
        reasons.append(f"Krippendorff's alpha {alpha:.3f} is under {LEAST_ALPHA}")
    if auc < LEAST_SENTINEL_AUC:
        reasons.append(f"known-bad anchors are told apart with AUC {auc:.2f}, at least 0.90")
    if drops:
        rater, drop = max(drops.items(), key=lambda item: item[1])
        numbers["entropy_drop_ratio"] = drop
        if drop >= ENTROPY_DROP_RATIO:
            reasons.append(f"the entropy of {rater}'s scores fell by {drop:.0%}, at most 20 %")
    if found := measure_convergence(known):
        numbers |= {"alpha_rise": found.alpha_rise, "gold_gain_upper": found.gold_gain_upper}
        if found.is_blind:
            reasons.append(
                f"agreement rose by {found.alpha_rise:.2f} between {' and '.join(found.raters)}, "
                "and accuracy on the gold did not"
            )
    return Finding(holds=not reasons, is_conclusive=True, reasons=tuple(reasons), numbers=numbers)


def measure_sentinels(known: pl.DataFrame) -> float:
    """Return how well the latest scores tell known-good from known-bad (ROC AUC)."""
    from sklearn.metrics import roc_auc_score

    latest = known.sort("wave").unique(
        ("anchor_id", "axis", "rater_kind", "rater_id"), keep="last", maintain_order=True
    )
    if latest["is_good"].n_unique() < 2:
        return 0.5  # one side alone tells nothing apart
    return float(roc_auc_score(latest["is_good"].to_numpy(), latest["score"].to_numpy()))


def measure_entropy_drops(known: pl.DataFrame) -> dict[str, float]:
    """Return by rater how much of the entropy of its scores is lost since its first wave.

    A rater is compared with itself alone, on the anchors of its latest wave: another judge may use
    a narrower scale and be right. One that rated fewer than 30 of them in either wave is left out.
    """
    from scipy.stats import entropy

    drops = {}
    for (rater, *_), rows in known.sort("wave", *RULER).group_by(RULER, maintain_order=True):
        last = rows.filter(pl.col("wave") == pl.col("wave").max())
        shared = last.select("anchor_id", "axis").unique()
        first = rows.filter(pl.col("wave") == pl.col("wave").min()).join(
            shared, on=("anchor_id", "axis"), how="semi"
        )
        is_later = first["wave"].max() != last["wave"].max()
        if is_later and min(first.height, last.height) >= LEAST_SHARED:
            before, now = (float(entropy(_count_scores(wave))) for wave in (first, last))
            drops[str(rater)] = 1 - now / before if before else 0.0
    return drops


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """How two raters came closer since they first shared a wave, and what they see better for it.

    `gold_gain_upper` is the upper limit of the bootstrap over cores of accuracy against the labels,
    on anchors of both waves.
    """

    raters: tuple[str, str]
    alpha_rise: float
    gold_gain_upper: float

    @property
    def is_blind(self) -> bool:
        """True where they agree more and see no more."""
        return self.alpha_rise >= ALPHA_RISE and self.gold_gain_upper <= 0


def measure_convergence(known: pl.DataFrame) -> Convergence | None:
    """Return the pair of raters that converged most, blindly if any did.

    Pairs are compared with themselves: agreement of others says nothing about whether these two
    copy each other. None where no pair shared 30 ratings in two waves.
    """
    named = known.with_columns(rater=pl.format("{} {}", "rater_kind", "rater_id"))
    found = [
        _compare_waves((one, other), named.filter(pl.col("rater").is_in([one, other])))
        for one, other in combinations(named["rater"].unique().sort(), 2)
    ]
    return max(
        (pair for pair in found if pair), key=lambda p: (p.is_blind, p.alpha_rise), default=None
    )


def _compare_waves(raters: tuple[str, str], rows: pl.DataFrame) -> Convergence | None:
    measured = []
    for wave in sorted(rows["wave"].unique()):
        rated = rows.filter(wave=wave)
        shared = _list_shared(rated)
        if len(shared) >= LEAST_SHARED:
            measured.append((krippendorff_alpha(_spread(shared)), _grade(rated)))
    if len(measured) < 2:
        return None
    (alpha_first, first), (alpha_last, last) = measured[0], measured[-1]
    both = first.join(last, on=("anchor_id", "axis"), suffix="_last")
    if both.is_empty():
        return None
    change = (both["accuracy_last"] - both["accuracy"]).to_list()
    gain = clustered_bootstrap(change, both["core_id"].to_list())
    return Convergence(
        raters=raters, alpha_rise=alpha_last - alpha_first, gold_gain_upper=gain.upper
    )


def _grade(rows: pl.DataFrame) -> pl.DataFrame:
    is_right = (pl.col("score") >= GOOD_SCORE) == pl.col("is_good")
    return rows.group_by("anchor_id", "axis", maintain_order=True).agg(
        is_right.mean().alias("accuracy"), pl.col("core_id").first()
    )


def _count_scores(rows: pl.DataFrame) -> list[int]:
    return [int((rows["score"] == score).sum()) for score in SCORES]


def _list_shared(known: pl.DataFrame) -> Sequence[dict[str, float]]:
    """Return, for every anchor, axis and wave with two raters or more, the score by rater."""
    units = known.group_by("anchor_id", "axis", "wave", maintain_order=True).agg(
        pl.format("{}:{}", "rater_kind", "rater_id").alias("rater"), "score"
    )
    pairs = (
        dict(zip(raters, scores, strict=True))
        for raters, scores in units.select("rater", "score").iter_rows()
    )
    return [unit for unit in pairs if len(unit) >= LEAST_RATERS]


def _spread(shared: Sequence[dict[str, float]]) -> npt.NDArray[np.float64]:
    raters = sorted({rater for unit in shared for rater in unit})
    return np.array([[unit.get(rater, np.nan) for unit in shared] for rater in raters])
