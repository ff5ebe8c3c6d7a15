"""Statistics against published examples, the library's own answers and simulation."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import norm

from assets.statistics import (
    Interval,
    adjust_by_holm,
    bootstrap_percentile,
    clopper_pearson_interval,
    clustered_bootstrap,
    clustered_bootstrap_difference,
    clustered_wilson_interval,
    mcnemar_exact,
    tango_interval,
    tango_statistic,
    wilson_interval,
)


def test_wilson_matches_newcombe_1998() -> None:
    """Newcombe 1998 (Statistics in Medicine 17:857), method 3: 81/263, 15/148, 0/20, 1/29."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, n), (lower, upper) in published.items():
        interval = wilson_interval(successes, n)
        assert (round(interval.lower, 4), round(interval.upper, 4)) == (lower, upper)
        assert interval.n == n


def test_wilson_one_sided_bound_allows_three_disagreements_in_150() -> None:
    """EVALUATION section 3: agreement of 95 % allows 3 disagreements at 150 and 16 at 500."""
    for n, allowed in ((150, 3), (500, 16)):
        assert wilson_interval(n - allowed, n, alpha=0.10).lower >= 0.95
        assert wilson_interval(n - allowed - 1, n, alpha=0.10).lower < 0.95


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (5, 4), (-1, 4)])
def test_impossible_counts_raise_instead_of_being_zero(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        wilson_interval(successes, n)
    with pytest.raises(ValueError, match="expected"):
        tango_interval(successes, 0, n)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    """Six discordant cases one way are the fewest with p < 0.05."""
    assert mcnemar_exact(0, 6) == pytest.approx(2 / 2**6)
    assert mcnemar_exact(0, 5) == pytest.approx(2 / 2**5)
    assert mcnemar_exact(0, 5) > 0.05 > mcnemar_exact(0, 6)
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(4, 4) == 1.0


def test_exact_mcnemar_matches_what_r_publishes() -> None:
    """The vignette of R's exact2x2 (Fay 2010), matrix(c(21, 9, 2, 12)): 2 against 9, p = 0.06543.

    Its `mcnemar.exact` conditions on the discordant pairs; statsmodels had no part in it.
    """
    assert round(mcnemar_exact(2, 9), 5) == round(mcnemar_exact(9, 2), 5) == 0.06543


def test_tango_reproduces_the_worked_example_of_the_paper() -> None:
    """Tango 1998 section 6.1 (soft contact lenses): 0 against 1 discordant of 44, margin 0.1."""
    statistic = tango_statistic(0, 1, 44, -0.1)
    assert round(statistic, 3) == 1.709
    assert round(float(norm.sf(statistic)), 3) == 0.044
    assert round(tango_interval(0, 1, 44, alpha=0.10).lower, 3) == -0.096


@pytest.mark.parametrize(
    ("n10", "n01", "n", "alpha", "limits", "digits"),
    [
        (28, 25, 618, 0.10, (-0.0148, 0.0247), 4),
        (48, 41, 549, 0.10, (-0.0157, 0.0414), 4),
        (20, 60, 1000, 0.05, (-0.0584, -0.0231), 4),
    ],
)
def test_tango_matches_figures_published_from_r_propcis(
    n10: int, n01: int, n: int, alpha: float, limits: tuple[float, float], digits: int
) -> None:
    """Figures that users of R's PropCIs::scoreci.mp printed in their own documentation."""
    interval = tango_interval(n10, n01, n, alpha=alpha)
    assert (round(interval.lower, digits), round(interval.upper, digits)) == limits


def test_tango_at_zero_is_the_mcnemar_statistic() -> None:
    assert tango_statistic(12, 5, 150, 0.0) == pytest.approx((12 - 5) / math.sqrt(12 + 5))


@pytest.mark.parametrize(
    ("n10", "n01", "n"),
    [(0, 0, 1), (0, 0, 150), (1, 0, 30), (0, 7, 150), (40, 20, 160), (10, 0, 10), (0, 10, 10),
     (5, 5, 10), (0.5, 9.25, 90)],
)  # fmt: skip
def test_tango_limits_solve_the_score_equation(n10: float, n01: float, n: float) -> None:
    interval, z = tango_interval(n10, n01, n), float(norm.ppf(0.975))
    assert -1 <= interval.lower <= interval.value <= interval.upper <= 1
    if interval.value > -1:
        assert tango_statistic(n10, n01, n, interval.lower) == pytest.approx(z, abs=1e-5)
    if interval.value < 1:
        assert tango_statistic(n10, n01, n, interval.upper) == pytest.approx(-z, abs=1e-5)
    mirrored = tango_interval(n01, n10, n)
    assert mirrored.lower == pytest.approx(-interval.upper, abs=1e-9)
    assert mirrored.upper == pytest.approx(-interval.lower, abs=1e-9)


def test_tango_narrows_with_more_pairs_and_widens_with_confidence() -> None:
    widths = [i.upper - i.lower for i in (tango_interval(k, 2 * k, 50 * k) for k in (1, 2, 4, 8))]
    assert all(wide > narrow for wide, narrow in pairwise(widths))
    wide, narrow = tango_interval(3, 8, 150, alpha=0.01), tango_interval(3, 8, 150, alpha=0.10)
    assert wide.lower < narrow.lower < narrow.upper < wide.upper


@pytest.mark.parametrize(("better", "worse"), [(0.05, 0.05), (0.03, 0.12)])
def test_tango_covers_the_truth_as_often_as_it_says(better: float, worse: float) -> None:
    rng, trials = np.random.default_rng(11), 1500
    tables = rng.multinomial(150, [better, worse, 1 - better - worse], size=trials)
    intervals = {(a, b): tango_interval(a, b, 150) for a, b in set(map(tuple, tables[:, :2]))}
    hits = [intervals[a, b].lower <= better - worse <= intervals[a, b].upper for a, b, _ in tables]
    assert 0.935 <= np.mean(hits) <= 0.97


@pytest.mark.parametrize(
    ("discordance", "margin", "power"),
    [(0.06, 0.05, 0.75), (0.10, 0.05, 0.59), (0.15, 0.05, 0.46),
     (0.06, 0.10, 0.997), (0.10, 0.10, 0.975), (0.15, 0.10, 0.92)],
)  # fmt: skip
def test_power_of_the_gate_is_what_the_evaluation_page_says(
    discordance: float, margin: float, power: float
) -> None:
    half = discordance / 2
    tables = np.random.default_rng(5).multinomial(150, [half, half, 1 - discordance], size=3000)
    z = float(norm.ppf(0.95))
    passed = [tango_statistic(int(a), int(b), 150, -margin) > z for a, b, _ in tables]
    assert np.mean(passed) == pytest.approx(power, abs=0.025)


def test_clopper_pearson_matches_newcombe_1998() -> None:
    """Newcombe 1998 (Statistics in Medicine 17:857), method 5: 81/263, 15/148, 0/20, 1/29."""
    published = {
        (81, 263): (0.2527, 0.3676),
        (15, 148): (0.0578, 0.1617),
        (0, 20): (0.0, 0.1684),
        (1, 29): (0.0009, 0.1776),
    }
    for (successes, n), (lower, upper) in published.items():
        interval = clopper_pearson_interval(successes, n)
        assert (round(interval.lower, 4), round(interval.upper, 4)) == (lower, upper)
        mirrored = clopper_pearson_interval(n - successes, n)
        assert mirrored.upper == pytest.approx(1 - interval.lower)


@pytest.mark.parametrize(("n", "limit"), [(59, 0.05), (149, 0.02)])
def test_so_many_cases_without_a_loss_prove_the_limit(n: int, limit: float) -> None:
    """EVALUATION section 4: 0 of 59 is below 5 %, 0 of 149 below 2 %; one case fewer is not."""
    assert clopper_pearson_interval(0, n, alpha=0.10).upper < limit
    assert clopper_pearson_interval(0, n - 1, alpha=0.10).upper > limit
    assert clopper_pearson_interval(n, n, alpha=0.10).upper == 1.0


def test_sentences_of_one_answer_do_not_count_as_independent() -> None:
    grouped = clustered_wilson_interval([9, 9], [10, 10])
    assert grouped.value == 0.9
    assert grouped.n == 2
    assert grouped.lower == pytest.approx(wilson_interval(1.8, 2).lower)
    singles = clustered_wilson_interval([1] * 18 + [0] * 2, [1] * 20)
    assert (singles.lower, singles.upper) == pytest.approx(
        (wilson_interval(18, 20).lower, wilson_interval(18, 20).upper)
    )
    lopsided = clustered_wilson_interval([90, 1, 1], [100, 1, 1])
    assert lopsided.upper - lopsided.lower > 0.5


def test_bootstrap_is_seeded_and_agrees_with_theory() -> None:
    values = np.random.default_rng(3).normal(10, 2, size=200).tolist()
    clusters = [str(i) for i in range(200)]
    first, again = clustered_bootstrap(values, clusters), clustered_bootstrap(values, clusters)
    assert first == again
    error = np.std(values) / math.sqrt(200)
    assert first.value == pytest.approx(np.mean(values))
    assert first.upper - first.lower == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert clustered_bootstrap(values, clusters, seed=1) != first


def test_clusters_that_agree_widen_the_interval() -> None:
    values = [float(i % 2) for i in range(20) for _ in range(10)]
    alone = clustered_bootstrap(values, [str(i) for i in range(200)])
    together = clustered_bootstrap(values, [str(i // 10) for i in range(200)])
    assert together.upper - together.lower > 2.5 * (alone.upper - alone.lower)


def test_paired_bootstrap_cancels_what_is_hard_for_both() -> None:
    rng = np.random.default_rng(4)
    hard, ones, clusters = rng.normal(0, 5, 100), [1.0] * 100, [str(i) for i in range(100)]
    first, second = (hard + 1).tolist(), hard.tolist()
    difference = clustered_bootstrap_difference((first, ones), (second, ones), clusters)
    assert difference == Interval(
        value=pytest.approx(1), lower=pytest.approx(1), upper=pytest.approx(1), n=100
    )


def test_percentiles_and_their_difference() -> None:
    values = [float(i) for i in range(1, 102)]
    assert bootstrap_percentile(values, 50).value == 51
    assert bootstrap_percentile(values, 95).value == 96
    faster = bootstrap_percentile(values, 50, minus=[v + 30 for v in values])
    assert (faster.value, faster.upper) == (-30, -30)


def test_holm_orders_and_caps_the_p_values() -> None:
    assert adjust_by_holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert adjust_by_holm([0.9, 0.8]) == pytest.approx((1.0, 1.0))


def test_holm_matches_what_r_prints() -> None:
    """R's p.adjust(c(0.0001, 0.005, 0.03, 0.5, 0.7), "holm"), by hand: 5p, 4p, 3p, 2p, p."""
    found = adjust_by_holm([0.0001, 0.005, 0.03, 0.5, 0.7])
    assert found == pytest.approx((0.0005, 0.02, 0.09, 1.0, 1.0))


def test_holm_matches_the_example_that_pingouin_publishes() -> None:
    """The documentation of `pingouin.holm` 0.5, which computes it without statsmodels."""
    found = adjust_by_holm([0.50, 0.003, 0.32, 0.054, 0.0003])
    assert found == pytest.approx((0.64, 0.012, 0.64, 0.162, 0.0015))


DYESTUFF = {
    "A": (1545, 1440, 1440, 1520, 1580), "B": (1540, 1555, 1490, 1560, 1495),
    "C": (1595, 1550, 1605, 1510, 1560), "D": (1445, 1440, 1595, 1465, 1545),
    "E": (1595, 1630, 1515, 1635, 1625), "F": (1520, 1455, 1450, 1480, 1445),
}  # fmt: skip
"""Yields of six batches, five preparations each: Davies and Goldsmith 1972, section 6.4."""


def test_the_clustered_bootstrap_finds_the_published_error_of_a_mean_of_batches() -> None:
    """The documentation of MixedModels.jl, model 1 + (1 | batch) by maximum likelihood.

    1527.5 with a standard error of 17.6946. In a balanced layout that error is, exactly, the spread
    of the mean when whole batches are drawn with replacement; single yields would give 11.3.
    """
    values = [float(value) for batch in DYESTUFF.values() for value in batch]
    clusters = [name for name, batch in DYESTUFF.items() for _ in batch]
    one_error = clustered_bootstrap(values, clusters, alpha=2 * float(norm.sf(1)))
    assert one_error.value == 1527.5
    assert (one_error.upper - one_error.lower) / 2 == pytest.approx(17.6946, rel=0.03)
    two_sided = clustered_bootstrap(values, clusters)
    assert (two_sided.upper - two_sided.lower) / 2 == pytest.approx(1.96 * 17.6946, rel=0.03)


def test_the_clustered_bootstrap_agrees_with_scipy_on_clusters_of_unequal_size() -> None:
    """Scipy draws pairs of a cluster's sum and size, and takes the ratio of their totals."""
    from scipy.stats import bootstrap

    rng = np.random.default_rng(12)
    sizes = rng.integers(1, 12, size=40)
    values = [
        rng.normal(mean, 1, size) for mean, size in zip(rng.normal(5, 2, 40), sizes, strict=True)
    ]
    clusters = [str(i) for i, size in enumerate(sizes) for _ in range(size)]
    ours = clustered_bootstrap(np.concatenate(values).tolist(), clusters)
    sums = np.array([part.sum() for part in values])
    theirs = bootstrap(
        (sums, sizes),
        lambda total, count, axis: total.sum(axis=axis) / count.sum(axis=axis),
        paired=True, n_resamples=10_000, method="percentile", rng=12,
    )  # fmt: skip
    limits = (theirs.confidence_interval.low, theirs.confidence_interval.high)
    assert (ours.lower, ours.upper) == pytest.approx(limits, rel=0.02)


def test_the_clustered_bootstrap_agrees_with_scipy_where_every_unit_is_alone() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(8).exponential(3, size=120)
    ours = clustered_bootstrap(values.tolist(), [str(i) for i in range(120)])
    theirs = bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=8)
    limits = (theirs.confidence_interval.low, theirs.confidence_interval.high)
    assert (ours.lower, ours.upper) == pytest.approx(limits, rel=0.02)


def test_no_values_and_broken_values_raise() -> None:
    for call in (
        lambda: clustered_bootstrap([], []),
        lambda: clustered_bootstrap([1.0, math.nan], ["a", "b"]),
        lambda: clustered_bootstrap([1.0], ["a", "b"]),
        lambda: clustered_bootstrap([1.0], ["a"], denominators=[0.0]),
        lambda: clustered_wilson_interval([1], [0]),
        lambda: bootstrap_percentile([], 50),
        lambda: adjust_by_holm([]),
        lambda: clopper_pearson_interval(1, 0),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()
