"""What the assets on worth make of prices: stated, stated as 0, and not stated at all."""

from dataclasses import replace

import polars as pl
import pytest

from assets import tables
from assets.parity.economics import EconomicsTerms
from assets.parity.prices import StatedPrice
from assets.parity.worth_assets import economics, router_curve, suitability
from assets.parity.worth_checks import every_saving_is_a_range
from serving.pipeline.router import RouterPolicy
from tests.assets.parity.test_economics import FREE, PRICE, write_arms, write_case, write_rule
from tests.assets.parity.test_router_curve import POLICY, write_answers
from tests.counting_embedder import CountingEmbedder

ADAPTER = pl.DataFrame(
    [dict.fromkeys(tables.STUDENT_ADAPTER) | {"student": "s", "training_seconds": 0.0}],
    schema=tables.STUDENT_ADAPTER,
)
CALIBRATION = pl.DataFrame([dict.fromkeys(tables.CALIBRATION)], schema=tables.CALIBRATION)
STATED = EconomicsTerms(prices={"teacher": PRICE, "students.s": PRICE})


class Purchases:
    def total_usd(self) -> float:
        return 1.0


def make_economics(rows: list[dict[str, object]], terms: EconomicsTerms) -> pl.DataFrame:
    made = economics(
        arm_answers=write_arms(rows), student_adapter=ADAPTER, economics_terms=terms,
        purchases=Purchases(),
    )  # fmt: skip
    return made.value


@pytest.mark.parametrize(
    ("price", "student_usd"), [(PRICE, 0.001), (FREE, 0.0), (StatedPrice(), None)]
)
def test_the_curve_costs_what_was_stated_and_nothing_that_was_not(price, student_usd):
    cost = pl.when(pl.col("arm") == "student").then(student_usd or 0.0).otherwise("cost_usd")
    made = router_curve(
        held_out_answers=write_answers([0.2, 0.8], [False, True]),
        calibration=CALIBRATION,
        arm_answers=write_arms(write_case("a", served_by="student")).with_columns(cost_usd=cost),
        student_adapter=ADAPTER,
        router_policy=POLICY,
        economics_terms=EconomicsTerms(prices={"teacher": PRICE, "students.s": price}),
    )
    costs = made.value["usd_per_1k"].to_list()
    if student_usd is None:
        assert costs == [None] * 3
    else:
        assert costs == pytest.approx([1000 * student_usd, 5 + 500 * student_usd, 10.0])


def test_a_student_whose_timed_answers_were_all_by_rule_has_no_cost_by_the_hour():
    """The run goes on: the table says what is missing, and a check warns of it."""
    rows = [*write_case("a", served_by="student"), *write_rule("b")]
    by_hour = make_economics(rows, replace(STATED, gpu_usd_per_hour=2.0))
    (reason,) = by_hour["inconclusive_reason"].unique()
    assert "no timed answer of the arm `student`" in reason
    assert by_hour["saving_usd_per_month"].null_count() == by_hour.height == 3
    checked = every_saving_is_a_range(by_hour)
    assert not checked.passed
    assert "no timed answer" in str(checked.description)
    by_token = make_economics(rows, STATED)
    assert by_token["inconclusive_reason"].null_count() == 3
    expected = by_token.row(by_predicate=pl.col("scenario") == "expected", named=True)
    assert expected["routed_usd_per_1k"] == pytest.approx(0.5)  # a call for every second question


def test_answers_of_before_a_price_was_stated_are_not_free():
    rows = write_case("a", served_by="student")
    old = [row | {"cost_usd": 0.0} for row in rows]
    (reason,) = make_economics(old, STATED)["inconclusive_reason"].unique()
    assert "answers of the teacher and the student were stored at a cost of 0" in reason
    assert "build parity/arm_answers again" in reason
    by_hour = replace(STATED, gpu_usd_per_hour=2.0)
    only_student = [row | {"cost_usd": 0.0 if row["served_by"] == "student" else 0.01}
                    for row in rows]  # fmt: skip
    (reason,) = make_economics(only_student, STATED)["inconclusive_reason"].unique()
    assert "answers of the student were stored" in reason
    assert "stored at" not in str(make_economics(only_student, by_hour)["inconclusive_reason"][0])
    free = EconomicsTerms(prices={"teacher": PRICE, "students.s": FREE})
    assert make_economics(only_student, free)["inconclusive_reason"].null_count() == 3
    curve = router_curve(
        held_out_answers=write_answers([0.2, 0.8], [False, True]),
        calibration=CALIBRATION,
        arm_answers=write_arms(old),
        student_adapter=ADAPTER,
        router_policy=POLICY,
        economics_terms=STATED,
    )
    assert curve.value["usd_per_1k"].to_list() == [None] * 3


@pytest.mark.parametrize(
    ("prices", "cost"),
    [({"teacher": PRICE}, 0.01), ({"teacher": PRICE}, 0.0), ({"teacher": FREE}, 0.0), ({}, 0.0)],
)
def test_suitability_shares_costs_only_where_the_teacher_has_a_price(prices, cost):
    """Answers of before a price was stated are logged as 0: a share of 0 would look too rare."""
    answers = pl.DataFrame(
        [
            dict.fromkeys(tables.TEACHER_ANSWERS)
            | {"question_id": q, "seed_id": q, "question": f"How is {q} set?", "cost_usd": cost}
            for q in ("a", "b")
        ],
        schema=tables.TEACHER_ANSWERS,
    )
    made = suitability(
        trace_records=tables.TRACE_RECORDS.to_frame(),
        teacher_answers=answers,
        labelled_examples=answers.select("question_id"),
        router_policy=RouterPolicy(),
        economics_terms=EconomicsTerms(prices=prices),
        embedder=CountingEmbedder(),
    )
    is_priced = cost > 0
    assert made.value["cost_ratio"].null_count() == (0 if is_priced else 2)
    assert set(made.value["advice"]) == {"measure_first"}
    shares = made.metadata["cost_ratio_by_advice"]
    assert shares == {"measure_first": pytest.approx(1.0) if is_priced else None}
