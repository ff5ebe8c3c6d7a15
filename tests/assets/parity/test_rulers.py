"""Every way a judge can change or die unseen is made to happen here, and is caught.

A judge is played by a rule over anchors with known labels: right on a share of them, changed in a
later wave, moved on one axis, or copied by the rater who should check it.
"""

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from assets import tables
from assets.parity.liveness import judge_measurement, krippendorff_alpha
from assets.parity.rulers import (
    compare_with_last_ruler,
    find_masked_movement,
    judge_ruler,
    measure_movements,
    weigh_flips,
)

AXES = ("grounded", "clear")
DAY = date(2026, 11, 2)
COUNT = 420


def rate(score, *, wave=DAY, numbers=range(COUNT), kind="judge", rater="judge-1", epoch="2026-11"):
    """Return a wave: `score(number, axis, is_good)` is what the rater says of an anchor's axis."""
    rows = [
        {
            "wave": wave,
            "anchor_id": f"a{number:03}",
            "core_id": f"c{number // 6:03}",
            "construction": "made",
            "axis": axis,
            "is_good": is_good(number),
            "score": score(number, axis, is_good(number)),
            "rater_kind": kind,
            "rater_id": rater,
            "judge_epoch": epoch,
            "rubric_version": "r1",
            "set_hash": "h1",
        }
        for number in numbers
        for axis in AXES
    ]
    return pl.DataFrame(rows, schema=tables.JUDGE_ANCHOR_RUN)


def is_good(number: int) -> bool:
    return number % 2 == 0


def sound(number, _axis, good):
    """Right on 19 of 20 anchors, with scores that vary."""
    is_right = number % 20 != 7
    return (5 - number // 2 % 2) if good == is_right else (1 + number // 2 % 3)


def flip(every: int):
    """The sound judge, wrong where it was right on every so many-th anchor."""
    return lambda number, axis, good: sound(number, axis, good != (number % every == 0))


FIRST = rate(sound)
LATER = DAY + timedelta(days=1)


def test_a_good_judge_that_does_not_change_is_the_same_ruler():
    finding = judge_ruler(pl.concat([FIRST, rate(sound, wave=LATER, numbers=range(50))]))
    assert (finding.holds, finding.reasons) == (True, ())
    assert finding.numbers["kappa"] == pytest.approx(0.9, abs=0.02)
    assert finding.numbers["flip_evidence"] < 1


def test_a_judge_that_was_silently_updated_is_found_within_days_of_rotation():
    """One anchor in ten is judged the other way from the second day on, 50 a day."""
    waves, alarmed = [FIRST], None
    for day in range(1, 9):
        numbers = range((day - 1) * 50, day * 50)
        waves.append(rate(flip(10), wave=DAY + timedelta(days=day), numbers=numbers))
        finding = judge_ruler(pl.concat(waves))
        if alarmed is None and any("flipped" in reason for reason in finding.reasons):
            alarmed = day
    assert alarmed is not None
    assert alarmed <= 4


def test_a_flip_that_a_deterministic_judge_repeats_counts_once():
    again = [rate(flip(10), wave=DAY + timedelta(days=n), numbers=range(20)) for n in range(1, 30)]
    assert judge_ruler(pl.concat([FIRST, *again])).numbers["flips_compared"] == 40


def test_evidence_rarely_alarms_at_the_noise_that_is_allowed():
    """Ville: over whole streams of looks, at most 5 % ever reach 20."""
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(300):
        flips = np.cumsum(rng.random(600) < 0.02)
        alarms += any(weigh_flips(int(flips[n - 1]), n) >= 20 for n in range(50, 601, 50))
    assert alarms <= 15


def test_evidence_of_nothing_is_one_and_grows_with_flips():
    assert weigh_flips(0, 0) == pytest.approx(1.0)
    assert weigh_flips(0, 400) < 1 < weigh_flips(30, 400) < weigh_flips(60, 400)
    assert weigh_flips(0, 10_000_000) == 0.0


def test_a_judge_that_was_never_good_is_no_ruler():
    finding = judge_ruler(rate(flip(4)))
    assert not finding.holds
    assert "kappa's lower bound" in finding.reasons[0]


def test_a_judge_that_finds_everything_good_has_no_kappa():
    finding = judge_ruler(rate(lambda *_: 5))
    assert not finding.holds
    assert finding.numbers["kappa"] == 0.0


def test_another_judge_under_the_name_of_the_same_epoch_is_caught():
    finding = judge_ruler(pl.concat([FIRST, rate(sound, wave=LATER, rater="judge-2")]))
    assert "epoch 2026-11 has scores of 2 judges or rubrics" in finding.reasons


def test_a_new_epoch_is_held_against_the_labels_and_not_against_the_old_scores():
    """The new judge scores lower wherever it can and is right on the same anchors."""
    lower = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4}
    harsher = rate(lambda n, axis, good: lower[sound(n, axis, good)], wave=LATER, epoch="2026-12")
    finding = judge_ruler(pl.concat([FIRST, harsher]))
    assert finding.holds
    assert finding.numbers["changed_p"] == 1.0


def test_a_new_epoch_that_is_right_on_other_anchors_needs_a_new_baseline():
    worse = rate(flip(9), wave=LATER, epoch="2026-12")
    finding = judge_ruler(pl.concat([FIRST, worse]))
    assert any("a new baseline" in reason for reason in finding.reasons)


def test_in_the_window_of_two_judges_their_agreement_is_reported():
    other = rate(flip(10), wave=LATER, rater="judge-2", epoch="2026-12")
    numbers = judge_ruler(pl.concat([FIRST, other])).numbers
    assert numbers["dual_rating_count"] == COUNT * len(AXES)
    assert numbers["dual_agreement_ratio"] == pytest.approx(0.9)
    assert numbers["dual_agreement_lower"] < 0.9
    assert numbers["dual_kappa"] == pytest.approx(0.8, abs=0.01)
    assert "dual_agreement_ratio" not in judge_ruler(FIRST).numbers


def test_a_judge_that_finds_everything_good_agrees_with_no_kappa():
    other = rate(lambda *_: 5, wave=LATER, rater="judge-2", epoch="2026-12")
    numbers = judge_ruler(pl.concat([FIRST, other])).numbers
    # The sound judge calls half of them good, and one bad one in ten by mistake.
    assert numbers["dual_agreement_ratio"] == pytest.approx(0.55)
    assert "dual_kappa" not in numbers


def test_two_rulers_are_compared_only_on_300_anchors_or_more():
    worse = rate(flip(9), wave=LATER, epoch="2026-12", numbers=range(299))
    marked = pl.concat([FIRST, worse]).with_columns(called_good=pl.col("score") >= 4)
    assert compare_with_last_ruler(marked)[1] is None


@pytest.mark.parametrize("rows", [FIRST.clear(), rate(sound, numbers=range(100))])
def test_too_few_ratings_are_no_pass(rows):
    finding = judge_ruler(rows)
    assert (finding.holds, finding.is_conclusive) == (False, False)


def test_a_bad_kappa_of_too_few_anchors_is_no_verdict():
    finding = judge_ruler(rate(flip(4), numbers=range(60)))
    assert (finding.holds, finding.is_conclusive) == (False, False)
    assert finding.reasons == ("60 of 400 anchors rated",)


def moved(grounded: int, clear: int):
    """The sound judge, moved on each axis by so many points where the scale has room."""
    by_axis = {"grounded": grounded, "clear": clear}

    def score(number, axis, good):
        step = by_axis[axis] if number % 3 == 0 else 0
        return min(5, max(1, sound(number, axis, good) + step))

    return score


@pytest.mark.parametrize(
    ("grounded", "clear", "holds"),
    [(0, 0, True), (1, 0, True), (-1, 0, False), (1, -1, False), (-1, -1, False)],
)
def test_movement_that_a_composite_hides_is_found(grounded, clear, holds):
    finding = find_masked_movement(pl.concat([FIRST, rate(moved(grounded, clear), wave=LATER)]))
    assert finding.holds is holds


def test_opposite_moves_within_the_margin_fail_though_their_mean_stands_still():
    def score(number, axis, good):
        step = {"grounded": 1, "clear": -1}[axis] if number % 12 == 0 and good else 0
        return sound(number, axis, good) + (step if axis == "clear" else -step if not good else 0)

    def up(number, axis, good):
        if axis == "clear":
            return score(number, axis, good)
        return min(5, sound(number, axis, good) + (number % 12 == 1))

    rows = pl.concat([FIRST, rate(up, wave=LATER)])
    moves = {m.axis: m for m in measure_movements(rows)}
    assert abs(moves["grounded"].change.value + moves["clear"].change.value) < 0.02
    finding = find_masked_movement(rows)
    assert not finding.holds
    assert any("opposite moves" in reason for reason in finding.reasons)


def test_people_and_judge_moving_apart_are_seen_axis_by_axis():
    """People drift up on one axis while the judge drifts down on another: the composite is calm."""
    human = {"kind": "human", "rater": "ana", "epoch": ""}
    rows = pl.concat(
        [FIRST, rate(moved(0, -1), wave=LATER), rate(sound, **human),
         rate(moved(1, 0), wave=LATER, **human)]
    )  # fmt: skip
    finding = find_masked_movement(rows)
    (opposite,) = [reason for reason in finding.reasons if "opposite" in reason]
    assert opposite == "opposite moves: human.grounded up and judge.clear down"


def test_scores_of_two_epochs_are_not_compared_with_each_other():
    other = rate(moved(-1, -1), wave=LATER, epoch="2026-12")
    finding = find_masked_movement(pl.concat([FIRST, other]))
    assert (finding.holds, finding.is_conclusive) == (False, False)


def test_a_fall_under_a_retired_judge_is_history():
    """Epoch A fell and blocked; the judge of epoch B stands still on the same anchors."""
    fallen = rate(moved(-1, -1), wave=LATER)
    before = pl.concat([FIRST, fallen])
    assert not find_masked_movement(before).holds
    calm = [rate(sound, wave=LATER + timedelta(days=n), epoch="2026-12") for n in (1, 2)]
    finding = find_masked_movement(pl.concat([before, *calm]))
    assert (finding.holds, finding.reasons) == (True, ())
    assert finding.numbers == {"judge.grounded_change": 0.0, "judge.clear_change": 0.0}


def test_a_judge_that_is_put_back_is_judged_again():
    stand_in = rate(sound, wave=LATER, epoch="2026-12")
    back = rate(moved(-1, 0), wave=LATER + timedelta(days=1))
    assert not find_masked_movement(pl.concat([FIRST, stand_in, back])).holds


def test_retired_rulers_do_not_make_the_correction_stricter():
    """Holm divides by the axes of today: twelve retired epochs would hide what moves now."""
    retired = [
        rate(sound, wave=DAY + timedelta(days=-100 + n), epoch=f"old-{n // 2}") for n in range(24)
    ]
    rows = pl.concat([FIRST, rate(moved(-1, 0), wave=LATER)])
    assert measure_movements(pl.concat([*retired, rows])) == measure_movements(rows)


def test_two_people_are_two_raters_and_one_who_left_is_none():
    def person(name, score, *, wave):
        return rate(score, wave=wave, kind="human", rater=name, epoch="")

    ana = [person("ana", sound, wave=DAY), person("ana", moved(-1, 0), wave=LATER)]
    bob = [person("bob", sound, wave=DAY), person("bob", sound, wave=LATER)]
    both = find_masked_movement(pl.concat([FIRST, *ana, *bob]))
    assert [reason[:24] for reason in both.reasons] == ["human ana.grounded fell:"]
    assert len(both.numbers) == 4
    later = [LATER + timedelta(days=n) for n in (1, 2)]
    calm = [rate(sound, wave=wave, epoch="2026-12") for wave in later]
    still = person("bob", sound, wave=later[1])
    assert find_masked_movement(pl.concat([FIRST, *ana, *bob, *calm, still])).holds


# -- is the measurement alive


def second(score, *, wave=DAY):
    return rate(score, wave=wave, kind="blind", rater="judge-1")


def other_rater(number, axis, good):
    """Another sound rater, who now and then gives a neighbouring score."""
    said = sound(number, axis, good)
    return said - 1 if number % 3 == 0 and said in {2, 3, 5} else said


def test_raters_who_agree_and_tell_good_from_bad_are_alive():
    finding = judge_measurement(pl.concat([FIRST, second(other_rater)]))
    assert (finding.holds, finding.reasons) == (True, ())
    assert 0.667 < finding.numbers["alpha"] < 1


def test_raters_who_disagree_are_an_alarm():
    def stranger(number, _axis, _good):
        return 1 + (number * 7) % 5

    finding = judge_measurement(pl.concat([FIRST, second(stranger)]))
    assert "Krippendorff's alpha" in finding.reasons[0]


def test_raters_who_converge_without_seeing_more_are_an_alarm():
    """Labels homogenise: agreement climbs to 1, accuracy on the planted gold falls."""
    rows = pl.concat([FIRST, second(other_rater), rate(flip(15), wave=LATER),
                      second(flip(15), wave=LATER)])  # fmt: skip
    finding = judge_measurement(rows)
    assert finding.numbers["alpha_rise"] >= 0.05
    assert any("agreement rose" in reason for reason in finding.reasons)


def test_raters_who_converge_because_they_see_more_are_no_alarm():
    def best(number, _axis, good):
        return 5 - number // 2 % 2 if good else 1 + number // 2 % 3

    rows = pl.concat([FIRST, second(other_rater), rate(best, wave=LATER), second(best, wave=LATER)])
    assert judge_measurement(rows).holds


def test_known_bad_answers_that_pass_are_an_alarm():
    """Two raters copy each other perfectly, and neither sees the planted bad answers any more."""

    def blind(number, _axis, _good):
        return 5 if number % 3 else 2

    finding = judge_measurement(pl.concat([rate(blind), second(blind)]))
    assert finding.numbers["alpha"] == 1.0
    assert any("AUC" in reason for reason in finding.reasons)


def test_scores_squeezed_into_two_values_are_an_alarm():
    def squeezed(number, axis, good):
        return 5 if sound(number, axis, good) >= 4 else 1

    rows = pl.concat(
        [FIRST, second(sound), rate(squeezed, wave=LATER), second(squeezed, wave=LATER)]
    )
    finding = judge_measurement(rows)
    assert finding.numbers["entropy_drop_ratio"] >= 0.2
    assert any("entropy" in reason for reason in finding.reasons)


def test_a_narrower_judge_of_a_new_epoch_is_not_compared_with_the_one_before():
    """Right on the same anchors with two scores alone: entropy falls and agreement rises."""

    def narrow(number, axis, good):
        return 5 if sound(number, axis, good) >= 4 else 1

    after = {"wave": LATER, "epoch": "2026-12"}
    old = [FIRST, second(other_rater)]
    new = [rate(narrow, **after), rate(narrow, kind="blind", **after)]
    finding = judge_measurement(pl.concat([*old, *new]))
    assert (finding.holds, finding.reasons) == (True, ())
    assert not {"entropy_drop_ratio", "alpha_rise"} & set(finding.numbers)


def test_a_blind_judge_is_not_covered_for_by_the_one_before():
    def blind(number, _axis, _good):
        return 5 if number % 3 else 2

    after = {"wave": LATER, "epoch": "2026-12"}
    new = [rate(blind, **after), rate(blind, kind="blind", **after)]
    alone = judge_measurement(pl.concat(new))
    finding = judge_measurement(pl.concat([FIRST, second(sound), *new]))
    assert finding.numbers["sentinel_auc"] == alone.numbers["sentinel_auc"]
    assert any("AUC" in reason for reason in finding.reasons)


def test_people_who_converge_are_seen_beside_a_judge_that_does_not():
    """Each pair is compared with itself: a whole panel's mean would move little."""

    def person(name, score, *, wave):
        return rate(score, wave=wave, kind="human", rater=name, epoch="")

    people = [
        person("ana", sound, wave=DAY), person("bob", other_rater, wave=DAY),
        person("ana", flip(15), wave=LATER), person("bob", flip(15), wave=LATER),
    ]  # fmt: skip
    finding = judge_measurement(pl.concat([FIRST, rate(sound, wave=LATER), *people]))
    (reason,) = [reason for reason in finding.reasons if "agreement rose" in reason]
    assert "between human ana and human bob" in reason


def test_a_single_rater_measures_no_agreement():
    finding = judge_measurement(FIRST)
    assert (finding.holds, finding.is_conclusive) == (False, False)


def test_alpha_is_that_of_the_published_example():
    """Krippendorff 2011, section E: 4 observers, 12 units, missing data; ordinal alpha 0.815."""
    gap = np.nan
    ratings = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, gap, gap, gap],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, gap, 3],
            [gap, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, gap],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, gap],
        ]
    )
    assert krippendorff_alpha(ratings) == pytest.approx(0.815, abs=5e-4)


def test_alpha_needs_units_that_two_raters_saw():
    with pytest.raises(ValueError, match="two ratings or more"):
        krippendorff_alpha(np.array([[1.0, np.nan], [np.nan, 2.0]]))
