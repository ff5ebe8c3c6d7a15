"""Comparisons of two groups of rows: shares by category, numbers, and what both can be told by.

scipy, statsmodels and scikit-learn compute; here rare categories are merged first and small groups
refused. Belongs here: statistics that more than one monitor asks. Does not belong here: limits,
windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

MINIMUM_EXPECTED = 5.0  # of a cell, for the chi-square distribution to be near
CLEARLY_CHANCE = 0.10  # a p above it: no alarm is near, whatever more resamples say
OTHER = "other"
SEED = 20_260_000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TableTest:
    """Two groups' counts by category: chi-square's p, how far apart the shares are, Cramér's V."""

    p_value: float
    tvd: float
    cramers_v: float
    category_count: int
    n: int


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How well a classifier tells two groups apart: the area under the curve and its interval."""

    auc: float
    lower: float
    upper: float
    p_value: float
    n: int


def count_categories(first: pl.Series, second: pl.Series) -> npt.NDArray[np.int64]:
    """Return counts [2, categories]; those too rare for chi-square are one category."""
    one, two = (s.cast(pl.String).fill_null("none").value_counts() for s in (first, second))
    name = one.columns[0]
    joined = one.join(two.rename({two.columns[0]: name}), on=name, how="full", coalesce=True)
    counts = joined.fill_null(0).sort(name).select(pl.exclude(name)).to_numpy().T.astype(np.int64)
    smaller = min(first.len(), second.len()) / max(1, first.len() + second.len())
    is_common = counts.sum(axis=0) * smaller >= MINIMUM_EXPECTED
    rare = counts[:, ~is_common].sum(axis=1, keepdims=True)
    kept = counts[:, is_common]
    if rare.sum() * smaller >= MINIMUM_EXPECTED:
        return np.hstack([kept, rare])
    if rare.any() and kept.shape[1]:
        smallest = int(kept.sum(axis=0).argmin())
        kept[:, smallest] += rare[:, 0]
    return kept


def compare_counts(first: pl.Series, second: pl.Series) -> TableTest:
    """Compare two groups by category. One category in all: nothing differs, p is 1."""
    from scipy.stats import chi2_contingency
    from scipy.stats.contingency import association

    counts = count_categories(first, second)
    n = first.len() + second.len()
    if counts.shape[1] < 2:
        return TableTest(p_value=1.0, tvd=0.0, cramers_v=0.0, category_count=1, n=n)
    shares = counts / counts.sum(axis=1, keepdims=True)
    return TableTest(
        p_value=float(chi2_contingency(counts, correction=False).pvalue),
        tvd=float(np.abs(shares[0] - shares[1]).sum() / 2),
        cramers_v=float(association(counts, method="cramer")),
        category_count=counts.shape[1],
        n=n,
    )


def tell_apart(features: object, is_second: Sequence[bool]) -> Separation:
    """Return how well a logistic regression tells two groups apart on rows it was not fitted on.

    Args:
        features: [n, d], dense or sparse.
        is_second: n group labels, each group with five rows at least.
    """
    from scipy.stats import mannwhitneyu
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    labels = np.asarray(is_second, dtype=bool)
    scores: Floats = cross_val_predict(
        LogisticRegression(C=1.0, max_iter=300),
        features,
        labels,
        cv=StratifiedKFold(5, shuffle=True, random_state=SEED),
        method="decision_function",
    )
    ones, zeros = scores[labels], scores[~labels]
    tested = mannwhitneyu(ones, zeros, alternative="greater")
    auc = float(tested.statistic) / (len(ones) * len(zeros))
    spread = 1.6449 * _estimate_error(ones, zeros)  # one-sided at 5 %
    return Separation(
        auc=auc,
        lower=max(0.0, auc - spread),
        upper=min(1.0, auc + spread),
        p_value=float(tested.pvalue),
        n=len(labels),
    )


def _estimate_error(ones: Floats, zeros: Floats) -> float:
    """Return DeLong's standard error of the area: the spread of each row's share of wins."""
    from scipy.stats import rankdata

    def place(rows: Floats, others: Floats) -> Floats:
        together = rankdata(np.concatenate([rows, others]))[: len(rows)]
        return np.asarray((together - rankdata(rows)) / len(others))

    wins, losses = place(ones, zeros), place(zeros, ones)
    return float(np.sqrt(wins.var(ddof=1) / len(ones) + losses.var(ddof=1) / len(zeros)))


def compare_vectors(first: Floats, second: Floats, *, resamples: int = 4999) -> float:
    """Return the permutation p of the kernel two-sample test (MMD) of unit vectors [n, d], [m, d].

    The kernel's width is the median distance of all pairs. A first look with a tenth of the
    resamples settles what is clearly chance; below CLEARLY_CHANCE the p is that of all resamples.
    """
    from scipy.stats import permutation_test

    both = np.vstack([first, second]).astype(np.float32)
    distances = np.maximum(2.0 - 2.0 * (both @ both.T), 0.0)
    apart = distances[distances > 1e-6]
    kernel = np.exp(-distances / (np.median(apart) if apart.size else 1.0))
    n, m = len(first), len(second)

    def statistic(x: npt.NDArray[np.int64], _: npt.NDArray[np.int64], axis: int) -> Floats:
        rows = np.moveaxis(x, axis, -1).reshape(-1, n)
        weights = np.full((len(rows), n + m), -1.0 / m, dtype=np.float32)
        np.put_along_axis(weights, rows, 1.0 / n, axis=1)
        value: Floats = np.einsum("ij,ij->i", weights @ kernel, weights)
        return value if x.ndim > 1 else value[0]

    def test(count: int) -> float:
        indices = np.arange(n + m)
        tested = permutation_test(
            (indices[:n], indices[n:]),
            statistic,
            vectorized=True,
            n_resamples=count,
            batch=512,
            alternative="greater",
            rng=np.random.default_rng([SEED, count]),
        )
        return float(tested.pvalue)

    first_look = test(resamples // 10)
    return first_look if first_look > CLEARLY_CHANCE else test(resamples)
