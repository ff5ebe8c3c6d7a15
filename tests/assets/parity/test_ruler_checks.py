"""The checks of the judge, as a run executes them: what fails is made to happen and blocks."""

from datetime import timedelta

import dagster as dg
import polars as pl
import pytest

from assets import keys
from assets.parity.suite_checks import (
    judge_is_the_same_ruler,
    measurement_alive,
    no_masked_movement,
)
from tests.assets.parity.test_rulers import (
    DAY,
    FIRST,
    LATER,
    flip,
    moved,
    other_rater,
    rate,
    second,
    sound,
)

CHECKS = (judge_is_the_same_ruler, no_masked_movement, measurement_alive)


def blind_to_bad(number, _axis, _good):
    return 5 if number % 3 else 2


QUIET = pl.concat([FIRST, second(other_rater), rate(sound, wave=LATER, numbers=range(50))])
ROTATED = [
    rate(flip(10), wave=DAY + timedelta(days=day), numbers=range((day - 1) * 50, day * 50))
    for day in range(1, 9)
]
FAILURES = {
    "judge_is_the_same_ruler": (pl.concat([FIRST, *ROTATED]), "ratings flipped", "flip_evidence"),
    "no_masked_movement": (
        pl.concat([FIRST, rate(moved(1, -1), wave=LATER)]),
        "judge.clear fell",
        "judge.clear_change",
    ),
    "measurement_alive": (
        pl.concat([rate(blind_to_bad), second(blind_to_bad)]),
        "told apart with AUC",
        "sentinel_auc",
    ),
}


def name_of(check) -> str:
    return check.check_key.name


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_a_judge_that_does_not_change_passes(check):
    result = check(QUIET)
    assert result.passed
    assert result.description is None


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_what_each_is_there_for_is_an_error_that_blocks(check):
    ratings, reason, number = FAILURES[name_of(check)]
    result = check(ratings)
    assert not result.passed
    assert result.severity is dg.AssetCheckSeverity.ERROR
    assert reason in result.description
    assert isinstance(result.metadata[number].value, float)
    (spec,) = check.check_specs
    assert (spec.asset_key, spec.blocking) == (keys.JUDGE_ANCHOR_RUN, True)


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_too_little_is_a_warning_and_no_pass(check):
    result = check(rate(sound, numbers=range(20)))
    assert not result.passed
    assert result.severity is dg.AssetCheckSeverity.WARN
    assert result.metadata["is_conclusive"].value is False


@pytest.mark.parametrize("check", CHECKS[1:], ids=name_of)
def test_a_failure_of_a_retired_epoch_blocks_nothing(check):
    ratings, _, _ = FAILURES[name_of(check)]
    next_epoch = [
        rate(score, wave=LATER + timedelta(days=day), epoch="2026-12", kind=kind)
        for day in (1, 2)
        for kind, score in (("judge", sound), ("blind", other_rater))
    ]
    assert check(pl.concat([ratings, *next_epoch])).passed
