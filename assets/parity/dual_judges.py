"""The dual-judge window: two rulers on the same anchors, when one takes over from the other.

A new judge (or epoch, or rubric) rates every anchor, and the one before it had rated them too: so
for that window both have judged the same answers. Belongs here: how far they agree. Does not belong
here: whether either is right (`rulers`), scores of models under test, which are never compared
across epochs.
"""

from dataclasses import dataclass

import polars as pl

from assets.statistics import Interval, wilson_interval


@dataclass(frozen=True, kw_only=True)
class DualWindow:
    """What two rulers made of the same anchors and axes.

    Attributes:
        agreement: the share of ratings on which both say good, or both say bad.
        kappa: Cohen's, which takes off what agrees by chance; None where one of them says one thing
            of everything.
    """

    agreement: Interval
    kappa: float | None

    def to_numbers(self) -> dict[str, float]:
        """Return what a check shows of it."""
        numbers = {
            "dual_rating_count": float(self.agreement.n),
            "dual_agreement_ratio": self.agreement.value,
            "dual_agreement_lower": self.agreement.lower,
        }
        return numbers if self.kappa is None else numbers | {"dual_kappa": self.kappa}


def compare_rulers(old: pl.DataFrame, new: pl.DataFrame) -> DualWindow | None:
    """Return how two rulers agree; None where they rated nothing in common.

    Args:
        old: the first rating of each anchor and axis by the ruler before: with `called_good`.
        new: likewise by the ruler of today.
    """
    both = old.join(new, on=("anchor_id", "axis"), suffix="_new")
    if both.is_empty():
        return None
    agreed = int((both["called_good"] == both["called_good_new"]).sum())
    return DualWindow(agreement=wilson_interval(agreed, both.height), kappa=_measure_kappa(both))


def _measure_kappa(both: pl.DataFrame) -> float | None:
    from sklearn.metrics import cohen_kappa_score

    sides = [both[name].to_numpy() for name in ("called_good", "called_good_new")]
    if any(side.all() or not side.any() for side in sides):
        return None
    return float(cohen_kappa_score(*sides))
