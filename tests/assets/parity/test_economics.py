"""Economics: the worked figures, the ranges, and the cases in which the answer is no."""

from dataclasses import replace

import polars as pl
import pytest

from assets import tables
from assets.parity.costs import MeasuredCosts, measure_costs
from assets.parity.economics import (
    PRICED_APART,
    EconomicsTerms,
    OneOffCosts,
    explain_costs,
    find_range,
    find_untimed_call,
    project,
    sweep_sensitivity,
    tabulate_economics,
)
from assets.parity.prices import StatedPrice, find_missing_price, find_unpriced, state_zeros
from assets.parity.strategy import choose_strategy
from serving.errors import InvalidInputError

TERMS = EconomicsTerms(asks_per_month=100_000, retrains_per_month=0)
WORKED = MeasuredCosts(
    arm="routed",
    teacher_usd=12.30 / 1000,
    teacher_part_usd=2.00 / 1000,
    student_calls_ratio=0.8,
    fallback_ratio=0.0,
    teacher_share_ratio=0.2,
    student_usd=0.50 / 1000,
    student_seconds=0.5,
    saving_range_usd=(9.0 / 1000, 10.8 / 1000),
    n=150,
)
INFRASTRUCTURE = OneOffCosts(bought_usd=0, training_usd=0, setup_usd=1_140)


def test_the_worked_figures_of_the_case_study():
    """$12.30 -> $2.40 per 1k at 100k asks: $990 a month, paid back in about five weeks."""
    outlook = project(WORKED, INFRASTRUCTURE, TERMS)
    routed = outlook.teacher_part_usd_per_month + outlook.student_usd_per_month
    assert outlook.teacher_usd_per_month == pytest.approx(1_230)
    assert routed == pytest.approx(240)
    assert outlook.saving_usd_per_month == pytest.approx(990)
    assert outlook.payback_weeks == pytest.approx(5.0, abs=0.05)


def test_roi_and_break_even_follow_their_formulas():
    outlook = project(WORKED, INFRASTRUCTURE, TERMS)
    per_ask = (12.30 - 2.40) / 1000
    assert outlook.break_even_calls == pytest.approx(1_140 / per_ask)
    assert outlook.roi_ratio == pytest.approx((per_ask * 1_200_000 - 1_140) / 1_140)
    assert not outlook.is_worth_investing  # 115,152 calls are more than a week's 23,000
    cheap = project(WORKED, replace(INFRASTRUCTURE, setup_usd=200), TERMS)
    assert cheap.is_worth_investing


def test_what_never_pays_back_has_no_payback_and_no_break_even():
    outlook = project(WORKED, INFRASTRUCTURE, replace(TERMS, infrastructure_usd_per_month=2_000))
    assert outlook.saving_usd_per_month == pytest.approx(-1_010)
    assert outlook.payback_weeks is outlook.break_even_calls is None
    assert not outlook.is_worth_investing
    assert outlook.roi_ratio < -1


def test_nothing_paid_beforehand_has_no_return_on_it():
    outlook = project(WORKED, OneOffCosts(bought_usd=0, training_usd=0, setup_usd=0), TERMS)
    assert outlook.roi_ratio is None
    assert outlook.break_even_calls == 0


def test_idle_hours_of_a_machine_are_paid():
    by_hour = replace(TERMS, gpu_usd_per_hour=2.0, gpu_utilisation_ratio=0.25)
    outlook = project(WORKED, INFRASTRUCTURE, by_hour)
    busy_hours = 80_000 * 0.5 / 3600
    assert outlook.student_usd_per_month == pytest.approx(busy_hours / 0.25 * 2.0)
    always_on = project(WORKED, INFRASTRUCTURE, replace(by_hour, minimum_machines=1))
    assert always_on.student_usd_per_month == pytest.approx(730.5 * 2.0)
    assert always_on.saving_usd_per_month < 0


def test_a_fallback_is_paid_twice():
    outlook = project(replace(WORKED, fallback_ratio=0.2), INFRASTRUCTURE, TERMS)
    assert outlook.double_paid_usd_per_month == pytest.approx(outlook.student_usd_per_month / 4)


def test_retrains_are_upkeep():
    paid = OneOffCosts(bought_usd=100, training_usd=20, setup_usd=50)
    terms = replace(TERMS, retrains_per_month=2, relabelled_ratio=0.5)
    assert project(WORKED, paid, terms).upkeep_usd_per_month == pytest.approx(2 * (20 + 50))


def test_the_range_holds_what_is_expected_and_its_corners():
    terms = replace(TERMS, gpu_usd_per_hour=2.0)
    found = find_range(WORKED, INFRASTRUCTURE, terms)
    savings = [
        found[name].saving_usd_per_month for name in ("pessimistic", "expected", "optimistic")
    ]
    assert savings == sorted(savings)
    assert len(set(savings)) == 3
    assert found["optimistic"].asks_per_month == 200_000


def test_where_a_question_costs_more_the_worst_month_is_the_busy_one():
    losing = replace(WORKED, teacher_part_usd=0.02, saving_range_usd=(-0.012, -0.010))
    worst = find_range(losing, INFRASTRUCTURE, TERMS)["pessimistic"]
    assert worst.asks_per_month == 200_000


@pytest.mark.parametrize(
    ("changed", "examples", "quality", "strategy"),
    [
        ({"monthly_budget_usd": 1_500.0}, 500, "proven", "no_change"),
        ({"infrastructure_usd_per_month": 5_000.0}, 500, "proven", "no_change"),
        ({}, 99, "proven", "collecting"),
        ({}, 100, "failed", "fallback_teacher"),
        ({}, 100, "unproven", "fallback_teacher"),
        ({}, 100, "proven", "distilled"),
    ],
)
def test_the_strategy_can_say_no(changed, examples, quality, strategy):
    terms = replace(TERMS, **changed)
    outlook = project(WORKED, INFRASTRUCTURE, terms)
    found, reason = choose_strategy(
        teacher_usd_per_month=outlook.teacher_usd_per_month,
        saving_usd_per_month=outlook.saving_usd_per_month,
        terms=terms,
        example_count=examples,
        quality=quality,
    )
    assert found == strategy
    assert reason


def test_sensitivity_falls_with_idleness_and_rises_with_volume():
    terms = replace(TERMS, gpu_usd_per_hour=2.0)
    grid = sweep_sensitivity(
        WORKED, INFRASTRUCTURE, terms, volumes=(10_000, 100_000), utilisations=(0.1, 0.5)
    )
    assert grid[0][0] < grid[1][0] < grid[1][1]
    assert grid[0][1] < grid[1][1]


def write_arms(rows: list[dict[str, object]]) -> pl.DataFrame:
    usual = {"repeat": 0, "used_fallback": False, "prompt_tokens": 500, "completion_tokens": 20}
    return pl.DataFrame([usual | row for row in rows], schema=tables.ARM_ANSWERS)


NO_TOKENS = {"prompt_tokens": 0, "completion_tokens": 0}


def write_rule(case: str) -> list[dict[str, object]]:
    """A question that the student refuses by a rule, in its own arm and in the routed one."""
    refused = {"case_id": case, "cost_usd": 0.0, "served_by": "student", **NO_TOKENS}
    timed = {"repeat": 1, "latency_ms": 10.0, "retrieval_ms": 10.0}
    return [
        {"arm": "teacher", "case_id": case, "cost_usd": 0.010, "served_by": "teacher"},
        {"arm": "student", **refused},
        {"arm": "routed", **refused},
        {"arm": "student", **refused, **timed},
    ]


def write_case(
    case: str, *, served_by: str, used_fallback: bool = False
) -> list[dict[str, object]]:
    teacher, student = 0.010, 0.001
    called = used_fallback or served_by == "student"
    cost = called * student + (served_by == "teacher") * teacher
    return [
        {"arm": "teacher", "case_id": case, "cost_usd": teacher, "served_by": "teacher"},
        {"arm": "student", "case_id": case, "cost_usd": student, "served_by": "student"},
        {"arm": "routed", "case_id": case, "cost_usd": cost, "served_by": served_by,
         "used_fallback": used_fallback},
    ]  # fmt: skip


def test_costs_are_read_from_the_arms_and_double_pay_is_seen():
    rows = [
        *write_case("a", served_by="student"),
        *write_case("b", served_by="teacher"),
        *write_case("c", served_by="teacher", used_fallback=True),
        *write_case("d", served_by="student"),
        {"arm": "student", "case_id": "a", "repeat": 1, "latency_ms": 900.0, "retrieval_ms": 100.0},
    ]
    costs = measure_costs(write_arms(rows), "routed")
    assert costs.n == 4
    assert costs.student_calls_ratio == 0.75
    assert costs.fallback_ratio == 0.25
    assert costs.teacher_part_usd == pytest.approx(2 * 0.010 / 4)
    assert costs.student_seconds == pytest.approx(0.8)
    assert costs.saving_usd == pytest.approx(0.010 - (0.020 + 0.003) / 4)
    assert costs.saving_range_usd[0] < costs.saving_usd < costs.saving_range_usd[1]
    frame = tabulate_economics([(costs, find_range(costs, INFRASTRUCTURE, TERMS))])
    assert frame["scenario"].to_list() == ["pessimistic", "expected", "optimistic"]
    expected = frame.row(1, named=True)
    assert expected["routed_usd_per_1k"] == pytest.approx(1000 * 0.023 / 4)


def test_a_refusal_by_a_rule_is_no_call_and_takes_no_share_of_a_calls_price_or_time():
    """Three of four questions are refused by a rule: a call costs and takes what it did before."""
    call = write_case("a", served_by="student")
    timed = {"arm": "student", "case_id": "a", "repeat": 1, "latency_ms": 900.0,
             "retrieval_ms": 100.0}  # fmt: skip
    rules = [row for case in "bcd" for row in write_rule(case)]
    for arm in ("routed", "student"):
        costs = measure_costs(write_arms([*call, timed, *rules]), arm)
        assert (costs.student_usd, costs.student_seconds) == (0.001, pytest.approx(0.8))
        assert costs.student_calls_ratio == 0.25
        assert costs.saving_usd == pytest.approx(0.010 - 0.001 / 4)
    by_hour = replace(TERMS, gpu_usd_per_hour=3.6, gpu_utilisation_ratio=1.0)
    outlook = project(costs, INFRASTRUCTURE, by_hour)
    assert outlook.student_usd_per_month == pytest.approx(25_000 * 0.8 / 1000)


def test_a_student_that_never_called_its_model_has_no_price_of_a_call():
    costs = measure_costs(write_arms([*write_rule("a"), *write_rule("b")]), "routed")
    assert (costs.student_usd, costs.student_seconds, costs.student_calls_ratio) == (None, None, 0)
    assert costs.saving_usd == pytest.approx(0.010)
    for terms in (TERMS, replace(TERMS, gpu_usd_per_hour=2.0)):
        assert find_untimed_call([costs], terms) is None  # no call is made, so none is missed
        assert project(costs, INFRASTRUCTURE, terms).student_usd_per_month == 0
        assert find_range(costs, INFRASTRUCTURE, terms)


def test_calls_that_nobody_timed_have_no_cost_by_the_hour_and_it_is_said():
    """The timed sample may hold refusals by a rule alone: they say nothing of a call."""
    rows = [*write_case("a", served_by="student"), *write_rule("b")]
    costs = measure_costs(write_arms(rows), "routed")
    assert costs.student_seconds is None
    by_hour = replace(TERMS, gpu_usd_per_hour=2.0)
    assert "no timed answer" in str(find_untimed_call([costs], by_hour))
    assert find_untimed_call([costs], TERMS) is None


def test_where_the_machine_is_paid_by_the_hour_a_reader_is_told_of_two_costs():
    assert explain_costs(TERMS) == ()
    (told,) = explain_costs(replace(TERMS, gpu_usd_per_hour=0.1))
    assert told == PRICED_APART
    assert "Parity" in told
    assert "economics.gpu_usd_per_hour" in told


def test_a_case_that_failed_in_one_arm_counts_in_none():
    rows = [*write_case("a", served_by="student"), *write_case("b", served_by="teacher")]
    rows[3]["error"] = "timed out"
    timed = {"arm": "student", "case_id": "a", "repeat": 1, "latency_ms": 9.0, "retrieval_ms": 1.0}
    assert measure_costs(write_arms([*rows, timed]), "routed").n == 1


def test_an_hour_of_a_machine_needs_a_timed_answer():
    untimed = measure_costs(write_arms(write_case("a", served_by="student")), "routed")
    assert untimed.student_seconds is None
    assert project(untimed, INFRASTRUCTURE, TERMS).student_usd_per_month == pytest.approx(100)
    with pytest.raises(InvalidInputError, match="timed one by one"):
        project(untimed, INFRASTRUCTURE, replace(TERMS, gpu_usd_per_hour=2.0))


def test_a_call_costs_what_the_calls_that_were_made_cost():
    """The calls that the router makes may be the cheap ones."""
    rows = [*write_case("a", served_by="student"), *write_case("b", served_by="teacher")]
    rows[4]["cost_usd"] = 0.009
    costs = measure_costs(write_arms(rows), "routed")
    assert costs.student_usd == pytest.approx(0.001)
    assert costs.saving_usd == pytest.approx((0.010 - 0.001) / 2)


def test_no_case_in_common_is_an_error_and_no_zero():
    rows = [{"arm": "teacher", "case_id": "a", "cost_usd": 0.01}]
    with pytest.raises(InvalidInputError, match=r"economics of the arm 'routed'.*found none"):
        measure_costs(write_arms(rows), "routed")


PRICE = StatedPrice(input_usd_per_mtok=3.0, output_usd_per_mtok=15.0)
FREE = StatedPrice(input_usd_per_mtok=0.0, output_usd_per_mtok=0.0)


@pytest.mark.parametrize(
    ("prices", "by_hour", "missing"),
    [
        ({"teacher": PRICE, "students.s": PRICE}, False, None),
        ({"teacher": PRICE, "students.s": FREE}, False, None),
        ({"teacher": PRICE}, True, None),
        ({"teacher": PRICE}, False, "`students.s.price`"),
        ({"students.s": PRICE}, True, "`teacher.price`"),
        ({"teacher": StatedPrice(input_usd_per_mtok=3.0), "students.s": PRICE}, False, "`teacher"),
        ({}, False, "`teacher.price` and `students.s.price`"),
    ],
)
def test_a_price_left_out_is_missing_and_one_of_zero_is_not(prices, by_hour, missing):
    found = find_missing_price(prices, "s", is_paid_by_hour=by_hour)
    assert (found is None) == (missing is None)
    assert missing is None or missing in found


@pytest.mark.parametrize(
    ("prices", "unpriced"),
    [
        ({"teacher": PRICE, "students.s": FREE}, set()),
        ({"teacher": FREE, "students.t": PRICE}, {"student"}),
        ({"teacher": StatedPrice(output_usd_per_mtok=1.0), "students.s": PRICE}, {"teacher"}),
        ({}, {"teacher", "student"}),
    ],
)
def test_a_model_is_unpriced_where_half_of_its_price_is_not_stated(prices, unpriced):
    assert find_unpriced(prices, "s") == unpriced


def test_only_zeros_that_were_stated_are_named():
    assert state_zeros({"teacher": PRICE, "students.s": StatedPrice()}, "s") == ()
    (told,) = state_zeros({"teacher": PRICE, "students.s": FREE, "students.t": FREE}, "s")
    assert told.startswith("The student's price is stated as 0 in `students.s.price`")


def test_without_a_price_there_is_no_strategy():
    strategy, reason = choose_strategy(
        teacher_usd_per_month=None, saving_usd_per_month=None, terms=TERMS, example_count=500,
        quality="proven",
    )  # fmt: skip
    assert strategy == "inconclusive"
    assert "a price or a timing is missing" in reason
