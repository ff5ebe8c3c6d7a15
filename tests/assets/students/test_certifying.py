"""The guarantee: bounds against published values and statsmodels, and what a sequence promises."""

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from assets.students.certifying import (
    CERTIFYING_ALPHA,
    bound_risk,
    certify_thresholds,
    count_needed,
    list_candidates,
)


def certify(confidences, agrees, limit, fitting=None, seeds=None):
    confidences = np.asarray(confidences, dtype=float)
    (found,) = certify_thresholds(
        fitting_confidences=confidences if fitting is None else np.asarray(fitting, dtype=float),
        confidences=confidences,
        agrees=np.asarray(agrees, dtype=bool),
        seeds=[f"s{n}" for n in range(confidences.size)] if seeds is None else seeds,
        limits=(limit,),
    )
    return found


def test_59_accepted_without_error_certify_5_percent_at_95_and_58_do_not():
    assert bound_risk(0, 59) <= 0.05 < bound_risk(0, 58)
    assert count_needed(0.05) == 59
    everything = certify([0.9] * 59, [True] * 59, 0.05)
    assert (everything.threshold, everything.accepted_count, everything.wrong_count) == (0.0, 59, 0)
    assert everything.risk_upper_ratio == pytest.approx(1 - 0.05 ** (1 / 59))
    assert certify([0.9] * 58, [True] * 58, 0.05).threshold is None
    assert certify([0.9] * 59, [True] * 58 + [False], 0.05).threshold is None


@pytest.mark.parametrize(("limit", "needed"), [(0.01, 299), (0.02, 149), (0.10, 29), (0.20, 14)])
def test_how_many_are_needed_is_the_smallest_number_whose_bound_holds(limit, needed):
    assert count_needed(limit) == needed
    assert bound_risk(0, needed) <= limit < bound_risk(0, needed - 1)


@pytest.mark.parametrize(("wrong", "accepted"), [(0, 1), (1, 59), (3, 20), (19, 20), (20, 20)])
def test_the_bound_is_the_one_sided_clopper_pearson_of_statsmodels(wrong, accepted):
    _, upper = proportion_confint(wrong, accepted, alpha=2 * CERTIFYING_ALPHA, method="beta")
    assert bound_risk(wrong, accepted) == pytest.approx(upper)


def test_no_answer_bounds_nothing_and_impossible_counts_are_refused():
    assert bound_risk(0, 0) == 1.0
    with pytest.raises(ValueError, match="4 of 3"):
        bound_risk(4, 3)


def test_the_lowest_threshold_before_the_first_failure_is_certified():
    confidences = np.linspace(0.01, 1.0, 100)
    agrees = confidences > 0.3  # the least sure 30 are wrong
    found = certify(confidences, agrees, 0.05)
    assert found.wrong_count == 0
    assert 0.3 < found.threshold <= 0.36
    assert found.coverage_ratio == pytest.approx(found.accepted_count / 100)
    assert found.risk_upper_ratio == bound_risk(0, found.accepted_count)


def test_a_failure_ends_the_sequence_even_where_more_answers_would_pass_again():
    """The surest 60 hold 3 wrong ones; taking in 140 right ones would bring 3 of 200 under 5 %."""
    confidences = np.linspace(1.0, 0.0, 200, endpoint=False)
    agrees = np.ones(200, dtype=bool)
    agrees[[5, 15, 25]] = False
    assert bound_risk(3, 200) <= 0.05 < bound_risk(3, 60)
    assert certify(confidences, agrees, 0.05).threshold is None


def test_what_is_tried_is_fixed_before_the_certifying_answers_are_seen():
    fitting = np.linspace(0, 1, 21)
    tried = list_candidates(fitting)
    assert tried == sorted(tried, reverse=True)
    assert (len(tried), tried[-1]) == (20, 0.0)
    assert set(tried) <= {0.0, *fitting.tolist()}
    assert list_candidates(np.array([])) == [0.0]
    found = certify([0.42] * 40 + [0.41] * 40, [True] * 80, 0.05, fitting=fitting)
    assert found.threshold == 0.0


def test_a_certified_threshold_breaks_its_promise_no_more_often_than_promised():
    """2,000 worlds where the true risk at every threshold is above the limit: each is a mistake."""
    generator = np.random.default_rng(7)
    mistakes = 0
    for _ in range(2_000):
        confidences = generator.random(80)
        agrees = generator.random(80) > 0.101 + 0.1 * (1 - confidences)
        mistakes += certify(confidences, agrees, 0.10).threshold is not None
    assert mistakes / 2_000 <= CERTIFYING_ALPHA + 0.015  # three standard errors


def test_rewordings_of_one_seed_are_one_case():
    """58 faultless seeds of three questions each are 58 answers, and 59 are needed."""
    seeds = [f"s{n}" for n in range(58) for _ in range(3)]
    assert certify([0.9] * 174, [True] * 174, 0.05, seeds=seeds).threshold is None
    found = certify([0.9] * 175, [True] * 175, 0.05, seeds=[*seeds, "another"])
    assert (found.threshold, found.accepted_count, found.coverage_ratio) == (0.0, 59, 1.0)


def test_the_promise_holds_where_the_questions_of_a_seed_fare_alike():
    """A true risk of 6 %, 60 seeds of three questions that are right or wrong together.

    Counted as 180 answers, one wrong seed in 60 would still certify 5 %: 12 worlds in 100.
    """
    generator = np.random.default_rng(11)
    seeds = [f"s{n // 3}" for n in range(180)]
    mistakes = 0
    for _ in range(1_000):
        agrees = np.repeat(generator.random(60) > 0.06, 3)
        mistakes += certify([0.9] * 180, agrees, 0.05, seeds=seeds).threshold is not None
    assert mistakes / 1_000 <= CERTIFYING_ALPHA
