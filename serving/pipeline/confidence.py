"""Confidence: from what a student's answer shows to the probability that it is the teacher's.

The numbers are fitted in the factory (`assets/students/calibration`) and shipped in the release;
here they are only applied, so that production needs no library that fits. Belongs here: the signals
of an answer, the formula, the threshold in force. Does not belong here: fitting and certifying,
what happens to an answer below the threshold (`answer`).
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from serving.models.protocols import Completion, Hit

CalibrationMethod = Literal["constant", "temperature", "platt", "isotonic"]

RAW_LOGIT = "raw_logit"
RETRIEVAL_SIGNALS = ("retrieval_score", "retrieval_margin", "is_refusal")
DECODING_SIGNALS = (RAW_LOGIT, "citation_logprob", "first_margin", "mean_margin")
SIGNALS = (*DECODING_SIGNALS, *RETRIEVAL_SIGNALS)

SUREST_LOGPROB = -1e-6  # a mean logprob nearer to 0 says no more, and its logit has no bound


@dataclass(frozen=True, kw_only=True)
class RiskThreshold:
    """What was certified for one promise: at most `risk_limit_ratio` of the answers are wrong.

    Answers with a confidence of at least `threshold` keep the promise, at the confidence level of
    the calibration; None: nothing could be certified. `accepted_count` answers of the certifying
    part passed the threshold, `wrong_count` of them were wrong, and `risk_upper_ratio` is the
    Clopper-Pearson upper bound of their risk.
    """

    risk_limit_ratio: float
    threshold: float | None
    accepted_count: int = 0
    wrong_count: int = 0
    coverage_ratio: float = 0.0
    risk_upper_ratio: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ConfidenceCalibration:
    """How the confidence of one student is computed. It holds for this adapter, engine and dtype.

    The score is `intercept` plus the weighted signals, each less its mean and by its scale; the
    confidence is its logistic function, or with `knots` the straight lines between them.
    """

    adapter_sha256: str
    engine: str
    dtype: str
    method: CalibrationMethod
    case_count: int
    signals: tuple[str, ...] = ()
    means: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    intercept: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()
    thresholds: tuple[RiskThreshold, ...] = ()

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together: a release may have been edited."""
        sizes = {len(p) for p in (self.signals, self.means, self.scales, self.weights)}
        if len(sizes) > 1 or not set(self.signals) <= set(SIGNALS):
            raise ValueError(
                f"expected a mean, scale and weight for each of some of {SIGNALS}, "
                f"found {self.signals} with {sorted(sizes)} numbers"
            )
        if any(scale <= 0 for scale in self.scales):
            raise ValueError(f"expected scales above 0, found {self.scales}")

    def find_threshold(self, maximum_risk_ratio: float | None) -> float | None:
        """Return the threshold certified for the largest limit within this risk; None: none is.

        One limit is read, whatever the others have certified: each test may be wrong one time in
        twenty, so the best of six would break its promise more often than that.
        """
        within = [
            row for row in self.thresholds if row.risk_limit_ratio <= (maximum_risk_ratio or 0.0)
        ]
        largest = max(within, key=lambda row: row.risk_limit_ratio, default=None)
        return None if largest is None else largest.threshold


def read_signals(
    completion: Completion, hits: Sequence[Hit], *, is_refusal: bool
) -> dict[str, float]:
    """Return what is known of an answer, by signal; an engine without logprobs gives fewer.

    A refusal and an answer without a citation have no citation to be unsure of: 0.
    """
    scores = sorted((hit.score for hit in hits), reverse=True)
    signals = {
        "retrieval_score": scores[0] if scores else 0.0,
        "retrieval_margin": scores[0] - scores[1] if len(scores) > 1 else 0.0,
        "is_refusal": float(is_refusal),
    }
    if completion.mean_logprob is None or completion.signs is None:
        return signals
    cited = completion.signs["minimum_citation_logprob"]
    return signals | {
        RAW_LOGIT: find_logit(completion.mean_logprob),
        "citation_logprob": 0.0 if cited is None else cited,
        "first_margin": completion.signs["first_margin"],
        "mean_margin": completion.signs["mean_margin"],
    }


def find_logit(mean_logprob: float) -> float:
    """Return the logit of the raw confidence exp(mean_logprob)."""
    bounded = min(mean_logprob, SUREST_LOGPROB)
    return bounded - math.log(-math.expm1(bounded))


def estimate_confidence(
    signals: Mapping[str, float], calibration: ConfidenceCalibration
) -> float | None:
    """Return the probability that the answer agrees with the teacher; None: a signal is missing."""
    if not set(calibration.signals) <= signals.keys():
        return None
    parts = zip(
        calibration.signals,
        calibration.means,
        calibration.scales,
        calibration.weights,
        strict=True,
    )
    score = calibration.intercept + sum(
        weight * (signals[name] - mean) / scale for name, mean, scale, weight in parts
    )
    return interpolate(score, calibration.knots) if calibration.knots else squash(score)


def squash(score: float) -> float:
    """Return the logistic function of a score, without overflow."""
    if score >= 0:
        return 1 / (1 + math.exp(-score))
    return math.exp(score) / (1 + math.exp(score))


def interpolate(score: float, knots: Sequence[tuple[float, float]]) -> float:
    """Return the value at a score on the straight lines between knots, constant beyond them."""
    place = bisect_right(knots, score, key=lambda knot: knot[0])
    if place == 0 or place == len(knots):
        return knots[0][1] if place == 0 else knots[-1][1]
    (left, low), (right, high) = knots[place - 1], knots[place]
    return low + (high - low) * (score - left) / (right - left)
