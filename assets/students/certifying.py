"""Thresholds with a guarantee: fixed-sequence testing with Clopper-Pearson bounds.

The thresholds to try are fixed by the fitting part; of the certifying part only the number of
answers above each is known beforehand, no label. They are tested from the strictest on, each at the
whole error rate, and the first that fails ends the sequence: so the chance that a certified
threshold breaks its promise stays within that rate (Learn Then Test, Angelopoulos et al. 2021).
The bound counts independent answers, and rewordings of one seed fare alike: one a seed counts.
Belongs here: the bound and the sequence. Does not belong here: what a confidence is
(`calibration`).
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serving.pipeline.confidence import RiskThreshold

RISK_LIMITS = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30)
CERTIFYING_ALPHA = 0.05  # a certified threshold breaks its promise with at most this probability
COVERAGE_STEPS = 20  # thresholds tried: 5 %, 10 % … 100 % of the answers accepted

Floats = npt.NDArray[np.float64]


def bound_risk(wrong: int, accepted: int, *, alpha: float = CERTIFYING_ALPHA) -> float:
    """Return the one-sided Clopper-Pearson upper bound (scipy) of a share; 1 without cases."""
    from scipy.stats import beta

    if not 0 <= wrong <= accepted:
        raise ValueError(f"expected 0 <= wrong <= accepted, found {wrong} of {accepted}")
    return 1.0 if wrong == accepted else float(beta.ppf(1 - alpha, wrong + 1, accepted - wrong))


def count_needed(risk_limit_ratio: float, *, alpha: float = CERTIFYING_ALPHA) -> int:
    """Return how many accepted answers certify a limit when none of them is wrong: 59 for 5 %."""
    return math.ceil(math.log(alpha) / math.log1p(-risk_limit_ratio))


def certify_thresholds(
    *,
    fitting_confidences: Floats,
    confidences: Floats,
    agrees: npt.NDArray[np.bool_],
    seeds: Sequence[str],
    limits: Sequence[float] = RISK_LIMITS,
) -> tuple[RiskThreshold, ...]:
    """Return for each limit the lowest threshold that is certified, with the counts behind it.

    Each limit's promise holds at the error rate by itself; the best of several would not.

    Args:
        fitting_confidences: of the cases the calibration was fitted on; they set what is tried.
        confidences: of the certifying cases.
        agrees: whether each of these is right.
        seeds: of these, in an order that knows no label: the first of each seed counts.
        limits: shares of wrong answers to promise; each is certified on its own.
    """
    first = take_first_of_each(seeds)
    return tuple(
        _certify(limit, fitting_confidences, confidences[first], agrees[first]) for limit in limits
    )


def take_first_of_each(seeds: Sequence[str]) -> npt.NDArray[np.intp]:
    """Return the places at which a seed stands for the first time."""
    places = np.unique(np.asarray(seeds, dtype=np.str_), return_index=True)[1]
    return np.sort(places)


def list_candidates(fitting_confidences: Floats) -> list[float]:
    """Return the thresholds to try, the strictest first; the last one accepts every answer."""
    if not fitting_confidences.size:
        return [0.0]
    levels = np.arange(1, COVERAGE_STEPS) / COVERAGE_STEPS
    found = np.quantile(fitting_confidences, levels, method="higher")
    return [*sorted({float(value) for value in found}, reverse=True), 0.0]


def _certify(
    limit: float,
    fitting_confidences: Floats,
    confidences: Floats,
    agrees: npt.NDArray[np.bool_],
) -> RiskThreshold:
    certified = RiskThreshold(risk_limit_ratio=limit, threshold=None)
    for threshold in list_candidates(fitting_confidences):
        accepted = confidences >= threshold
        if int(accepted.sum()) < count_needed(limit):
            continue  # too few to certify anything, whatever their labels: no test, so no failure
        wrong = int((accepted & ~agrees).sum())
        upper = bound_risk(wrong, int(accepted.sum()))
        if upper > limit:
            break
        certified = RiskThreshold(
            risk_limit_ratio=limit,
            threshold=threshold,
            accepted_count=int(accepted.sum()),
            wrong_count=wrong,
            coverage_ratio=float(accepted.mean()),
            risk_upper_ratio=upper,
        )
    return certified
