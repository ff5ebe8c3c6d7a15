"""What agrees with a label, and the numbers made of it, against counts by hand and statsmodels."""

import polars as pl
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from assets import tables
from assets.students.agreement import (
    build_validation_report,
    compare_row,
    compare_with_labels,
    find_metric,
    score_f1,
)
from tests.assets.students.held_out_rows import (
    REFUSES,
    SHOULD_REFUSE,
    WRONG,
    make_answers,
    make_row,
)

UNCITED = {"verdict": "uncited_statement"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"is_exact", "has_same_citations", "agrees", "is_valid"}),
        ({"answer": "it is RED. [docs:a/1]"},
         {"is_exact", "has_same_citations", "agrees", "is_valid"}),
        ({"answer": "Red it is. [docs:a/1]"}, {"has_same_citations", "agrees", "is_valid"}),
        (WRONG, {"is_valid"}),
        ({"citations": ["docs:a/1", "docs:b/1"]}, {"is_exact", "is_valid"}),
        (UNCITED, {"is_exact", "has_same_citations"}),
        (REFUSES, {"is_valid"}),
        (REFUSES | SHOULD_REFUSE, {"is_exact", "agrees", "is_valid"}),
        (SHOULD_REFUSE, {"is_valid"}),
    ],
)  # fmt: skip
def test_what_an_answer_and_its_label_have_in_common(changes, expected):
    found = compare_row(make_row(1, **changes))
    assert {name for name, value in found.items() if value is True} == expected


def test_an_answer_that_failed_is_no_zero():
    failed = make_row(1) | {"error": "503", "verdict": None, "answer": None, "citations": None}
    assert compare_with_labels(make_answers([failed, make_row(2)])).height == 1


def test_f1_counts_shared_words_by_hand():
    assert score_f1("The port is 8321. [docs:a/1]", "the port is `8321`") == 1.0
    # shared: the, port (2); 3 said, 4 meant
    assert score_f1("the port sings", "the port is 8321") == pytest.approx(4 / 7)
    assert score_f1("red red red", "red") == pytest.approx(2 / 4)
    assert score_f1("bananas", "the port") == 0.0


def make_mixed() -> pl.DataFrame:
    """20 cases: 14 answerable (10 alike, 1 other chunk, 1 invalid, 2 refused), 6 to refuse (5)."""
    changes = [{}] * 10 + [WRONG, UNCITED, REFUSES, REFUSES]
    changes += [REFUSES | SHOULD_REFUSE | {"is_out_of_scope": True}] * 5
    changes += [SHOULD_REFUSE | {"is_out_of_scope": True}]
    rows = [make_row(number, **change) for number, change in enumerate(changes)]
    top = [
        make_row(number, **{"arm": "top1"} | labels | (WRONG if number % 2 else {}))
        for number, labels in enumerate(
            {k: v for k, v in change.items() if k.startswith(("label", "is_out"))}
            for change in changes
        )
    ]
    other = make_row(99, split="calibration", **WRONG)
    return make_answers([*rows, *top, other])


@pytest.mark.parametrize(
    ("metric", "numerator", "denominator"),
    [
        ("agreement", 15, 20),
        ("exact_match", 16, 20),  # the invalid answer has the label's words
        ("same_citations", 11, 14),
        ("same_citations_answered", 11, 12),
        ("valid", 19, 20),
        ("valid_answerable", 13, 14),
        ("refusal_precision", 5, 7),
        ("refusal_recall", 5, 6),
        ("out_of_scope_refused", 5, 6),
        ("cite_correctness", 11, 12),
    ],
)
def test_the_metrics_of_an_arm_are_shares_with_wilson_intervals(metric, numerator, denominator):
    row = find_metric(build_validation_report(make_mixed()), "student", metric)
    assert (row["numerator"], row["denominator"], row["n"]) == (numerator, denominator, denominator)
    lower, upper = proportion_confint(numerator, denominator, method="wilson")
    assert (row["lower"], row["upper"]) == pytest.approx((lower, upper))


def test_refusal_f1_and_answer_f1_by_hand():
    report = build_validation_report(make_mixed())
    f1 = find_metric(report, "student", "refusal_f1")
    assert f1["value"] == pytest.approx(2 * 5 / (7 + 6))
    assert f1["lower"] < f1["value"] < f1["upper"]
    # 11 equal, "it is blue" shares 2 of 3 words, 2 refused
    answer = find_metric(report, "student", "answer_f1")
    assert answer["value"] == pytest.approx((11 + 2 / 3) / 14)


def test_the_student_is_paired_with_the_top_chunk_case_by_case():
    report = build_validation_report(make_mixed())
    row = find_metric(report, "student-top1", "same_citations")
    # top1 is right on the even ones of 14; the student on 0-9 and 11
    assert (row["n10"], row["n01"], row["n"]) == (6, 2, 14)
    assert row["value"] == pytest.approx(4 / 14)
    assert row["mcnemar_p"] == pytest.approx(mcnemar([[0, 6], [2, 0]], exact=True).pvalue)
    assert row["lower"] < row["value"] < row["upper"]
    unpaired = report.filter(kind="difference")["metric"].to_list()
    assert "refusal_precision" not in unpaired


def test_a_baseline_that_was_not_asked_has_no_number():
    report = build_validation_report(make_mixed())
    assert report.schema == tables.VALIDATION_REPORT
    assert report.filter(arm="base").is_empty()
    assert find_metric(report, "student-base", "agreement")["n"] == 0
    assert find_metric(report, "base", "agreement")["value"] is None
