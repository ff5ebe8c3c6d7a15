"""Statistics: intervals and tests on counts and arrays, each naming the method it uses.

scipy and statsmodels do the work wherever they have it; Tango's interval and clustered bootstraps
are written here because they do not. Both are imported where they are used: they take a second that
the code location need not wait for. Empty or impossible input raises `ValueError`: no evidence is
no zero. Belongs here: numbers in, numbers out. Does not belong here: frames, metrics, verdicts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

BOOTSTRAP_RESAMPLES = 10_000
BOOTSTRAP_SEED = 20_260_000
KEPT_DRAWS = 64
"""Draws of one size serve every arm and metric of that size; drawing costs more than summing. Those
of 150 units and 10,000 resamples take 3 MB."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its confidence limits; `n` counts the independent units it rests on."""

    value: float
    lower: float
    upper: float
    n: int


def wilson_interval(successes: float, n: float, *, alpha: float = 0.05) -> Interval:
    """Return the Wilson score interval of a proportion (statsmodels), two-sided at 1 - alpha.

    Pass 2 * alpha to read one limit as a one-sided bound at alpha. Counts may be fractional.
    """
    from statsmodels.stats.proportion import proportion_confint

    _check(n > 0 and 0 <= successes <= n, f"0 <= successes <= n and n > 0, not {successes}/{n}")
    _check(0 < alpha < 1, f"alpha between 0 and 1, not {alpha}")
    lower, upper = proportion_confint(successes, n, alpha=alpha, method="wilson")
    value = successes / n
    return Interval(
        value=value, lower=min(float(lower), value), upper=max(float(upper), value), n=round(n)
    )


def clopper_pearson_interval(successes: int, n: int, *, alpha: float = 0.05) -> Interval:
    """Return the exact interval of a proportion (statsmodels), two-sided at 1 - alpha.

    It never promises too much, which Wilson's may: for what must not happen at all. Pass 2 * alpha
    to read one limit as a one-sided bound at alpha.
    """
    from statsmodels.stats.proportion import proportion_confint

    _check(n > 0 and 0 <= successes <= n, f"0 <= successes <= n and n > 0, not {successes}/{n}")
    _check(0 < alpha < 1, f"alpha between 0 and 1, not {alpha}")
    lower, upper = proportion_confint(successes, n, alpha=alpha, method="beta")
    # Where nothing, or everything, succeeded one limit is known, and statsmodels may say NaN.
    lower, upper = (0.0 if not successes else lower), (1.0 if successes == n else upper)
    return Interval(value=successes / n, lower=float(lower), upper=float(upper), n=n)


def clustered_wilson_interval(
    numerators: Sequence[float], denominators: Sequence[float], *, alpha: float = 0.05
) -> Interval:
    """Return a pooled share (sum over sum) with a Wilson interval that counts answers.

    The sentences of one answer are right or wrong together more often than not, so the interval
    assumes they always are: its n is Kish's effective number of answers, (sum d)^2 / sum d^2, which
    is at most their count.
    """
    num, den = _floats(numerators), _floats(denominators)
    _check(len(num) == len(den) and bool((den > 0).all()), "one positive denominator per numerator")
    effective = float(den.sum() ** 2 / (den**2).sum())
    share = float(num.sum() / den.sum())
    wilson = wilson_interval(share * effective, effective, alpha=alpha)
    return Interval(value=share, lower=wilson.lower, upper=wilson.upper, n=len(den))


def mcnemar_exact(n10: int, n01: int) -> float:
    """Return the two-sided p of McNemar's exact test (statsmodels); 1 without discordance."""
    from statsmodels.stats.contingency_tables import mcnemar

    _check(n10 >= 0 and n01 >= 0, f"counts of at least 0, not {n10} and {n01}")
    return min(1.0, float(mcnemar([[0, n10], [n01, 0]], exact=True).pvalue))


def tango_statistic(n10: float, n01: float, n: float, delta: float) -> float:
    """Return Tango's score statistic of the paired difference p10 - p01 against `delta`.

    The variance uses the maximum-likelihood p01 under the hypothesis, the positive root of
    2n p^2 + b p + c = 0 (Tango 1998, Statistics in Medicine 17:891-908, equations 24-26).
    """
    b = -n10 - n01 + (2 * n - n10 + n01) * delta
    c = -n01 * delta * (1 - delta)
    root = math.sqrt(max(b * b - 8 * n * c, 0.0))
    # The two forms are equal; each is chosen where it does not subtract nearly equal numbers.
    p01 = (root - b) / (4 * n) if b <= 0 else -2 * c / (root + b)
    variance = n * (2 * p01 + delta * (1 - delta))
    gap = n10 - n01 - n * delta
    if variance <= 0:
        return 0.0 if gap == 0 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


def tango_interval(n10: float, n01: float, n: float, *, alpha: float = 0.05) -> Interval:
    """Return Tango's score interval of the paired difference (n10 - n01) / n.

    `n10` counts pairs only the first arm got right, `n01` pairs only the second did, `n` all pairs.
    Two-sided at 1 - alpha. Pass 2 * alpha to read one limit as a one-sided bound at alpha.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    _check(n > 0 and n10 >= 0 and n01 >= 0, f"counts of at least 0 and n > 0: {n10}, {n01}, {n}")
    _check(n10 + n01 <= n, f"at most n = {n} discordant pairs, not {n10 + n01}")
    _check(0 < alpha < 1, f"alpha between 0 and 1, not {alpha}")
    z, point, edge = float(norm.ppf(1 - alpha / 2)), (n10 - n01) / n, 1 - 1e-12

    def distance(delta: float, target: float) -> float:
        statistic = 0.0 if delta == point else tango_statistic(n10, n01, n, delta)
        return max(min(statistic, 1e9), -1e9) - target

    lower = upper = point
    if point > -edge:
        lower = float(brentq(distance, -edge, point, args=(z,), xtol=1e-12))
    if point < edge:
        upper = float(brentq(distance, point, edge, args=(-z,), xtol=1e-12))
    return Interval(value=point, lower=lower, upper=upper, n=round(n))


def clustered_bootstrap(
    numerators: Sequence[float],
    clusters: Sequence[str],
    *,
    denominators: Sequence[float] | None = None,
    alpha: float = 0.05,
    resamples: int = BOOTSTRAP_RESAMPLES,
    seed: int = BOOTSTRAP_SEED,
) -> Interval:
    """Return sum(numerators) / sum(denominators) with a percentile bootstrap over whole clusters.

    Without denominators that is the mean. `n` counts rows.
    """
    num = _floats(numerators)
    den = np.ones_like(num) if denominators is None else _floats(denominators)
    nums, dens = _resample(clusters, (num, den), resamples=resamples, seed=seed)
    value = float(num.sum() / den.sum()) if den.sum() else math.nan
    return _percentile_limits(value, _divide(nums, dens), len(num), alpha)


def clustered_bootstrap_difference(
    first: tuple[Sequence[float], Sequence[float]],
    second: tuple[Sequence[float], Sequence[float]],
    clusters: Sequence[str],
    *,
    alpha: float = 0.05,
    resamples: int = BOOTSTRAP_RESAMPLES,
    seed: int = BOOTSTRAP_SEED,
) -> Interval:
    """Return the difference of two ratios (numerators, denominators) measured on the same rows.

    Both arms see the same resampled clusters, so what is hard for both cancels out.
    """
    parts = tuple(_floats(part) for pair in (first, second) for part in pair)
    na, da, nb, db = _resample(clusters, parts, resamples=resamples, seed=seed)
    value = float(parts[0].sum() / parts[1].sum() - parts[2].sum() / parts[3].sum())
    samples = _divide(na, da) - _divide(nb, db)
    return _percentile_limits(value, samples, len(parts[0]), alpha)


def bootstrap_percentile(
    values: Sequence[float],
    percentile: float,
    *,
    minus: Sequence[float] | None = None,
    alpha: float = 0.05,
    resamples: int = BOOTSTRAP_RESAMPLES,
    seed: int = BOOTSTRAP_SEED,
) -> Interval:
    """Return a percentile (0-100) with its bootstrap interval.

    With `minus`, measured on the same rows, it is the difference of the two percentiles.
    """
    first = _floats(values)
    second = None if minus is None else _floats(minus)
    _check(second is None or len(second) == len(first), "both arms measured on the same rows")
    rows = _draw_rows(len(first), resamples, seed)
    value = float(np.percentile(first, percentile))
    samples: Floats = np.percentile(first[rows], percentile, axis=1)
    if second is not None:
        value -= float(np.percentile(second, percentile))
        samples = samples - np.percentile(second[rows], percentile, axis=1)
    return _percentile_limits(value, samples, len(first), alpha)


def adjust_by_holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return Holm's adjusted p-values of a family (statsmodels), in the order given."""
    from statsmodels.stats.multitest import multipletests

    _check(len(p_values) > 0, "at least one p-value")
    return tuple(float(p) for p in multipletests(_floats(p_values), method="holm")[1])


def _resample(
    clusters: Sequence[str], columns: tuple[Floats, ...], *, resamples: int, seed: int
) -> Floats:
    """Return each column's sum per resample of whole clusters, [columns, resamples]."""
    _check(
        all(len(column) == len(clusters) for column in columns),
        f"one cluster per value, not {len(clusters)} for {[len(c) for c in columns]}",
    )
    names, codes = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    sums = [np.bincount(codes, weights=column, minlength=len(names)) for column in columns]
    # Single precision is seven digits, and a resample's own chance error is in the third.
    draws = _draw_counts(len(names), resamples, seed).astype(np.float32)
    return (np.stack(sums).astype(np.float32) @ draws).astype(np.float64)


@lru_cache(maxsize=8)
def _draw_rows(size: int, resamples: int, seed: int) -> npt.NDArray[np.uint32]:
    """Return [resamples, size]: which units are drawn, with replacement."""
    drawn = np.random.default_rng(seed).integers(size, size=(resamples, size))
    return drawn.astype(np.uint32)


@lru_cache(maxsize=KEPT_DRAWS)
def _draw_counts(size: int, resamples: int, seed: int) -> npt.NDArray[np.uint16]:
    """Return [size, resamples]: how often each unit is drawn in `size` draws with replacement."""
    drawn = np.random.default_rng(seed).integers(size, size=(resamples, size))
    flat = (drawn + np.arange(resamples)[:, None] * size).ravel()
    counts = np.bincount(flat, minlength=resamples * size).reshape(resamples, size)
    # Kept in many sizes, so it is kept small, and as the sums read it.
    return np.ascontiguousarray(counts.T, dtype=np.uint16)


def _divide(numerators: Floats, denominators: Floats) -> Floats:
    return np.divide(
        numerators, denominators, out=np.full_like(numerators, np.nan), where=denominators != 0
    )


def _percentile_limits(value: float, samples: Floats, n: int, alpha: float) -> Interval:
    _check(math.isfinite(value), "a denominator that is not zero")
    kept = samples[np.isfinite(samples)]
    lower, upper = np.quantile(kept, [alpha / 2, 1 - alpha / 2])
    return Interval(value=value, lower=float(lower), upper=float(upper), n=n)


def _floats(values: Sequence[float]) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    _check(array.size > 0, "at least one value")
    _check(bool(np.isfinite(array).all()), "finite values only")
    return array


def _check(condition: bool, expected: str) -> None:  # noqa: FBT001 - an assertion's argument
    if not condition:
        raise ValueError(f"expected {expected}")
