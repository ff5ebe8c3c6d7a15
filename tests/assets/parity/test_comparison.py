"""The parity table: every number where it belongs, and no number where there is no evidence."""

import polars as pl
import pytest

from assets import tables
from assets.parity.comparison import build_parity_table, find_row
from assets.parity.formatting import format_limits, format_value, render_parity_table_text
from assets.parity.graders import grade_answers
from assets.parity.measuring import price_answers
from assets.parity.metrics import METRICS, SLICES
from assets.statistics import mcnemar_exact, tango_interval, wilson_interval
from serving.errors import InvalidInputError
from serving.models.protocols import ServedBy


def test_every_arm_slice_and_metric_has_one_row(parity_report: pl.DataFrame) -> None:
    assert parity_report.schema == tables.PARITY_REPORT
    names = [metric.name for metric in METRICS]
    assert len(names) == 10
    for arm in ("teacher", "student", "routed", "student-teacher", "routed-teacher"):
        for slice_name in SLICES:
            for name in names:
                assert find_row(parity_report, arm, name, slice_name)["slice"] == slice_name


def test_exact_match_counts_cases_and_wears_a_wilson_interval(parity_report: pl.DataFrame) -> None:
    row = find_row(parity_report, "student", "exact_match")
    wilson = wilson_interval(45, 50)
    assert (row["numerator"], row["n"], row["value"]) == (45, 50, 0.9)
    assert (row["lower"], row["upper"]) == (wilson.lower, wilson.upper)
    assert find_row(parity_report, "student", "exact_match", "answerable")["value"] == 0.9


def test_refusals_are_measured_over_should_refuse(parity_report: pl.DataFrame) -> None:
    recall = find_row(parity_report, "student", "refusal_recall")
    assert (recall["numerator"], recall["n"]) == (14, 15)
    precision = find_row(parity_report, "student", "refusal_precision")
    assert (precision["numerator"], precision["n"]) == (14, 14)


def test_a_slice_without_evidence_has_no_value_rather_than_zero(
    parity_report: pl.DataFrame,
) -> None:
    row = find_row(parity_report, "teacher", "refusal_recall", "answerable")
    assert (row["value"], row["lower"], row["n"]) == (None, None, 0)
    assert format_limits(row, "ratio") == "no case"


def test_paired_difference_carries_tango_mcnemar_and_bootstrap(parity_report: pl.DataFrame) -> None:
    row = find_row(parity_report, "student-teacher", "exact_match")
    tango = tango_interval(0, 5, 50)
    assert (row["n10"], row["n01"], row["value"]) == (0, 5, -0.1)
    assert (row["lower"], row["upper"]) == (tango.lower, tango.upper)
    assert row["mcnemar_p"] == mcnemar_exact(0, 5)
    assert row["bootstrap_lower"] < -0.1 < row["bootstrap_upper"]


@pytest.mark.parametrize(
    ("unpriced", "free", "costs"),
    [
        ((), ("student",), [0.002, 0.0, 0.0, 0.01, None]),  # a price of 0 is one
        ((), (), [0.002, None, 0.0, 0.01, None]),  # answered before the price was stated
        (("student",), (), [0.002, None, 0.0, None, None]),
        (("teacher",), ("student",), [None, 0.0, 0.0, None, None]),
        (("teacher", "student"), (), [None, None, 0.0, None, None]),
    ],
)
def test_a_price_of_zero_is_free_and_one_that_is_not_stated_says_nothing(
    unpriced: tuple[ServedBy, ...], free: tuple[ServedBy, ...], costs: list[float | None]
) -> None:
    """By the teacher, the student, a rule of the student, the teacher after the student, nobody."""
    answers = pl.DataFrame(
        {
            "repeat": [0] * 5,
            "served_by": ["teacher", "student", "student", "teacher", None],
            "used_fallback": [False, False, False, True, None],
            "prompt_tokens": [500, 500, 0, 900, None],
            "completion_tokens": [20, 20, 0, 40, None],
            "cost_usd": [0.002, 0.0, 0.0, 0.01, None],
        }
    )
    assert price_answers(answers, unpriced, free)["cost_usd"].to_list() == costs


def test_an_unpriced_student_leaves_costs_open_and_one_stated_as_free_does_not(
    arm_answers: pl.DataFrame,
    graded_answers: pl.DataFrame,
    golden_cases: pl.DataFrame,
    rubric_scores: pl.DataFrame,
    exposure: pl.DataFrame,
) -> None:
    is_students = pl.col("served_by") == "student"
    free = arm_answers.with_columns(cost_usd=pl.when(~is_students).then("cost_usd").otherwise(0.0))
    stated, unstated = (
        find_row(
            build_parity_table(
                arm_answers=free,
                graded_answers=graded_answers,
                golden_cases=golden_cases,
                rubric_scores=rubric_scores,
                exposure=exposure,
                unpriced=unpriced,
                free=free_models,
                resamples=100,
            ),
            "routed/teacher",
            "usd_per_1k",
        )
        for unpriced, free_models in (((), ("student",)), (("student",), ()))
    )
    assert (stated["value"], stated["n"], stated["inconclusive_count"]) == (0.2, 50, 0)
    assert (unstated["n"], unstated["inconclusive_count"]) == (10, 40)  # the teacher's fifth alone


def test_cost_and_latency_are_compared_with_the_teacher(parity_report: pl.DataFrame) -> None:
    assert find_row(parity_report, "teacher", "usd_per_1k")["value"] == pytest.approx(12)
    assert find_row(parity_report, "routed", "usd_per_1k")["value"] == pytest.approx(3.2)
    ratio = find_row(parity_report, "routed/teacher", "usd_per_1k")
    assert ratio["value"] == pytest.approx(3.2 / 12)
    assert ratio["lower"] <= ratio["value"] <= ratio["upper"]
    assert find_row(parity_report, "student-teacher", "p50_latency_ms")["value"] == -600
    assert find_row(parity_report, "teacher", "p50_latency_ms")["value"] == 924.5


def test_the_table_is_the_same_when_built_again(
    parity_report: pl.DataFrame,
    arm_answers: pl.DataFrame,
    graded_answers: pl.DataFrame,
    golden_cases: pl.DataFrame,
    rubric_scores: pl.DataFrame,
    exposure: pl.DataFrame,
) -> None:
    again = build_parity_table(
        arm_answers=arm_answers.reverse(),
        graded_answers=graded_answers.reverse(),
        golden_cases=golden_cases,
        rubric_scores=rubric_scores,
        exposure=exposure,
        resamples=500,
    )
    columns = ["arm", "slice", "metric", "value", "n", "inconclusive_count"]
    left, right = (frame.select(columns).sort(columns[:3]) for frame in (parity_report, again))
    assert left.drop("value").equals(right.drop("value"))
    assert left["value"].fill_null(-9).to_list() == pytest.approx(right["value"].fill_null(-9))


def test_failures_are_counted_as_inconclusive_not_as_wrong(
    arm_answers: pl.DataFrame,
    golden_cases: pl.DataFrame,
    chunks: pl.DataFrame,
    rubric_scores: pl.DataFrame,
    exposure: pl.DataFrame,
) -> None:
    is_failed = (pl.col("arm") == "routed") & pl.col("case_id").is_in(["g000", "g049"])
    failed = arm_answers.with_columns(error=pl.when(is_failed).then(pl.lit("deadline")))
    unscored = rubric_scores.with_columns(
        score=pl.when((pl.col("axis") != "clear") | (pl.col("case_id") != "g001")).then("score")
    )
    report = build_parity_table(
        arm_answers=failed,
        graded_answers=grade_answers(failed, golden_cases, chunks),
        golden_cases=golden_cases,
        rubric_scores=unscored,
        exposure=exposure,
        resamples=200,
    )
    row = find_row(report, "routed", "exact_match")
    assert (row["n"], row["inconclusive_count"]) == (48, 2)
    recall = find_row(report, "routed", "refusal_recall")
    assert (recall["n"], recall["inconclusive_count"]) == (14, 1)
    paired = find_row(report, "routed-teacher", "exact_match")
    assert (paired["n"], paired["inconclusive_count"]) == (48, 2)
    assert find_row(report, "routed", "p50_latency_ms")["n"] == 48
    rubric = find_row(report, "teacher", "rubric")
    assert (rubric["n"], rubric["inconclusive_count"]) == (49, 1)
    assert find_row(report, "teacher", "rubric_grounded")["n"] == 50


def test_a_table_without_the_teacher_is_an_error(
    arm_answers: pl.DataFrame,
    graded_answers: pl.DataFrame,
    golden_cases: pl.DataFrame,
    rubric_scores: pl.DataFrame,
    exposure: pl.DataFrame,
) -> None:
    with pytest.raises(InvalidInputError, match="'teacher' to compare with"):
        build_parity_table(
            arm_answers=arm_answers.filter(arm="student"),
            graded_answers=graded_answers,
            golden_cases=golden_cases,
            rubric_scores=rubric_scores,
            exposure=exposure,
        )


@pytest.mark.parametrize(
    ("value", "unit", "is_difference", "text"),
    [
        (0.9333, "ratio", False, "93.3 %"),
        (-0.031, "ratio", True, "\u22123.1 pp"),
        (0.031, "ratio", True, "+3.1 pp"),
        (-0.0001, "ratio", True, "0.0 pp"),
        (4.206, "score", False, "4.21"),
        (1234.5, "ms", False, "1,234 ms"),
        (3.25, "ms", False, "3.2 ms"),
        (2.4, "usd", False, "$2.40"),
        (0.0034, "usd", False, "$0.0034"),
        (-0.5, "usd", True, "\u2212$0.50"),
        (None, "usd", False, "\u2013"),
    ],
)
def test_numbers_are_rounded_for_a_reader(
    value: float | None, unit: str, is_difference: bool, text: str
) -> None:
    assert format_value(value, unit, is_difference=is_difference) == text  # type: ignore[arg-type]


def test_text_table_has_arms_then_differences(parity_report: pl.DataFrame) -> None:
    table = render_parity_table_text(parity_report)
    assert table.columns == (
        "metric", "teacher", "student", "routed", "student-teacher", "routed-teacher",
    )  # fmt: skip
    assert len(table.rows) == 10
    first = table.rows[0]
    assert first[:2] == ("Exact match", "100.0 %  [92.9 to 100.0 %]")
    assert first[4].startswith("\u221210.0 pp  [\u2212")
