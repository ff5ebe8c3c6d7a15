"""Running a suite and reporting it: what is kept of a broken promise, and what must never be."""

import dagster as dg
import polars as pl
import pytest

from assets.check_results import report_outcome
from assets.expectations import MAXIMUM_FAILING_ROWS, MAXIMUM_VALUE_CHARS, evaluate_suite
from serving.errors import InvalidInputError

PASTED_KEY = "sk-live-0123456789abcdefghij"


@pytest.fixture(scope="module")
def gxe():
    from great_expectations import expectations

    return expectations


def frame(**columns) -> pl.DataFrame:
    return pl.DataFrame(
        {"id": [f"r{n}" for n in range(len(next(iter(columns.values()))))], **columns}
    )


def word_of_four(gxe, **options):
    return gxe.ExpectColumnValueLengthsToBeBetween(
        column="word", max_value=4, description="every word has at most four letters", **options
    )


def test_a_promise_that_holds_leaves_nothing(gxe):
    outcome = evaluate_suite(frame(word=["four", "two"]), [word_of_four(gxe)], id_column="id")
    assert (outcome.row_count, outcome.broken, outcome.is_critical) == (2, (), False)
    result = report_outcome(outcome)
    assert result.passed
    assert result.metadata["expectation_count"].value == 1
    assert "failing_rows" not in result.metadata


def test_a_broken_promise_names_rows_values_observed_and_limit(gxe):
    outcome = evaluate_suite(
        frame(word=["four", "seven", None, "eight"]), [word_of_four(gxe)], id_column="id"
    )
    (broken,) = outcome.broken
    assert [(row.id, row.value) for row in broken.rows] == [("r1", "seven"), ("r3", "eight")]
    assert broken.observed == "2 of 4 rows"
    assert broken.limit == "max value 4"
    assert broken.is_critical


def test_a_promise_about_the_whole_table_is_told_by_its_number(gxe):
    outcome = evaluate_suite(
        frame(share=[0.0, 1.0, 0.0]),
        [
            gxe.ExpectColumnMeanToBeBetween(
                column="share", min_value=0.5, severity="warning", description="half are ones"
            ),
            gxe.ExpectTableRowCountToBeBetween(min_value=3, description="three rows"),
        ],
        id_column="id",
    )
    (broken,) = outcome.broken
    assert (broken.statement, broken.observed, broken.limit, broken.rows) == (
        "half are ones", "0.3333", "min value 0.5", (),
    )  # fmt: skip
    assert not outcome.is_critical
    assert report_outcome(outcome).severity == dg.AssetCheckSeverity.WARN


def test_one_critical_promise_among_warnings_makes_an_error(gxe):
    suite = [
        word_of_four(gxe, severity="warning"),
        gxe.ExpectColumnValuesToNotBeNull(column="word", description="every word is there"),
    ]
    outcome = evaluate_suite(frame(word=["seven", None]), suite, id_column="id")
    assert [(p.statement, p.is_critical) for p in outcome.broken] == [
        ("every word has at most four letters", False),
        ("every word is there", True),
    ]
    assert report_outcome(outcome).severity == dg.AssetCheckSeverity.ERROR


def test_failing_rows_are_capped_cut_and_free_of_secrets(gxe):
    long = "x" * 5000
    words = [f"key {PASTED_KEY} {long}", *[long] * 40]
    outcome = evaluate_suite(frame(word=words), [word_of_four(gxe)], id_column="id")
    (broken,) = outcome.broken
    assert broken.observed == "41 of 41 rows"
    assert len(broken.rows) == MAXIMUM_FAILING_ROWS
    assert {len(row.value) for row in broken.rows} == {MAXIMUM_VALUE_CHARS}
    stored = str(report_outcome(outcome))
    assert PASTED_KEY not in stored
    assert "[secret]" in stored


def test_private_rows_are_told_by_their_ids_alone(gxe):
    outcome = evaluate_suite(
        frame(word=["something typed"]), [word_of_four(gxe)], id_column="id", shows_values=False
    )
    stored = str(report_outcome(outcome))
    assert "r0" in stored
    assert "typed" not in stored


def test_the_table_a_person_reads_survives_any_value(gxe):
    outcome = evaluate_suite(frame(word=["a|b\n`c` <b>"]), [word_of_four(gxe)], id_column="id")
    lines = report_outcome(outcome).metadata["broken_promises"].value.splitlines()
    assert len(lines) == 3
    assert lines[2].count("|") - lines[2].count("\\|") == 6
    assert "`r0`: `a\\|b 'c' <b>`" in lines[2]


def test_a_column_that_is_missing_is_an_error_and_no_finding(gxe):
    suite = [gxe.ExpectColumnValuesToNotBeNull(column="nothing", description="it is there")]
    with pytest.raises(InvalidInputError, match="nothing") as refused:
        evaluate_suite(frame(word=["a"]), suite, id_column="id")
    assert "'it is there'" in refused.value.attempted
    with pytest.raises(InvalidInputError, match="not shown"):
        evaluate_suite(frame(word=["a"]), suite, id_column="id", shows_values=False)


def test_promises_must_be_told_apart(gxe):
    with pytest.raises(ValueError, match="description of its own"):
        evaluate_suite(frame(word=["a"]), [word_of_four(gxe), word_of_four(gxe)], id_column="id")


def test_the_id_may_be_what_is_wrong(gxe):
    suite = [
        gxe.ExpectColumnValuesToBeUnique(column="id", description="ids are distinct"),
        gxe.ExpectColumnValuesToNotBeNull(column="id", description="ids are there"),
    ]
    outcome = evaluate_suite(pl.DataFrame({"id": ["a", "b", "a", None]}), suite, id_column="id")
    assert [[row.id for row in promise.rows] for promise in outcome.broken] == [
        ["a", "a"],
        ["None"],
    ]


def test_a_run_says_nothing_and_leaves_nothing_in_the_home(gxe, capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    evaluate_suite(frame(word=["seven"]), [word_of_four(gxe)], id_column="id")
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
