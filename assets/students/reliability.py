"""How good confidences are: calibration (Brier, ECE) and ranking (AURC, risk at a coverage).

Equal confidences are one group everywhere: no measure depends on the order of the rows. Belongs
here: arrays in, numbers out. Does not belong here: fitting (`calibration`), drawing (`charts`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ECE_BINS = 15
COVERAGES = (0.80, 0.90)
RESAMPLES = 1_000
SEED = 20_260_000

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Answers of neighbouring confidence: how sure they were, and how often they were right."""

    confidence: float
    accuracy: float
    count: int


def measure_reliability(
    confidences: Floats, agrees: Flags, seeds: Sequence[str]
) -> dict[str, float]:
    """Return every measure of some answers; the interval of the ECE resamples whole seeds."""
    lower, upper = bootstrap_ece(confidences, agrees, seeds)
    risks = {
        f"risk_at_{round(100 * coverage)}": find_risk(confidences, agrees, coverage)
        for coverage in COVERAGES
    }
    return {
        "brier": score_brier(confidences, agrees),
        "ece": score_ece(confidences, agrees),
        "ece_lower": lower,
        "ece_upper": upper,
        "aurc": score_aurc(confidences, agrees),
        **risks,
    }


def score_brier(confidences: Floats, agrees: Flags) -> float:
    """Brier score: mean squared difference between confidence and outcome."""
    return float(np.mean((confidences - agrees) ** 2))


def score_ece(confidences: Floats, agrees: Flags, *, bins: int = ECE_BINS) -> float:
    """Expected calibration error: mean gap of confidence and accuracy over bins of equal mass.

    With few answers a bin holds few, and chance alone makes gaps: compare it before and after.
    """
    found = bin_answers(confidences, agrees, bins=bins)
    gaps = sum(b.count * abs(b.confidence - b.accuracy) for b in found)
    return float(gaps / len(confidences))


def bin_answers(
    confidences: Floats, agrees: Flags, *, bins: int = ECE_BINS
) -> list[ReliabilityBin]:
    """Return bins of equal mass, the least confident first; fewer where there are fewer answers."""
    order, shares = _rank(confidences, agrees)
    parts = np.array_split(np.arange(len(order)), min(bins, len(order)))
    return [
        ReliabilityBin(
            confidence=float(confidences[order[part]].mean()),
            accuracy=float(shares[part].mean()),
            count=len(part),
        )
        for part in parts
    ]


def bootstrap_ece(
    confidences: Floats, agrees: Flags, seeds: Sequence[str], *, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Return the percentile interval (95 %) of the ECE over resampled seeds."""
    names, codes = np.unique(np.asarray(seeds, dtype=str), return_inverse=True)
    rows = [np.flatnonzero(codes == code) for code in range(len(names))]
    generator = np.random.default_rng(SEED)
    scores = []
    for _ in range(resamples):
        drawn = np.concatenate([rows[i] for i in generator.integers(len(rows), size=len(rows))])
        scores.append(score_ece(confidences[drawn], agrees[drawn]))
    lower, upper = np.quantile(scores, [0.025, 0.975])
    return float(lower), float(upper)


def score_aurc(confidences: Floats, agrees: Flags) -> float:
    """Area under the risk-coverage curve: mean risk of the k most confident, k from 1 to all."""
    return float(_find_risks(confidences, agrees).mean())


def find_risk(confidences: Floats, agrees: Flags, coverage: float) -> float:
    """Return the share of wrong ones among the most confident answers, so many as cover it."""
    count = int(np.ceil(round(coverage * len(confidences), 9)))
    return float(_find_risks(confidences, agrees)[count - 1])


def _find_risks(confidences: Floats, agrees: Flags) -> Floats:
    """Return the risk of the k most confident answers at position k - 1."""
    _, shares = _rank(confidences, agrees)
    wrong = 1.0 - shares[::-1]
    return np.asarray(np.cumsum(wrong) / np.arange(1, len(wrong) + 1), dtype=np.float64)


def _rank(confidences: Floats, agrees: Flags) -> tuple[npt.NDArray[np.intp], Floats]:
    """Return the order by confidence, and in it the share of right ones at each confidence."""
    _, codes = np.unique(confidences, return_inverse=True)
    shares = np.bincount(codes, weights=agrees) / np.bincount(codes)
    order = np.argsort(confidences, kind="stable")
    return order, np.asarray(shares[codes][order], dtype=np.float64)
