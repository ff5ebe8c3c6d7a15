"""Registered predictions: once per student, and an edit after the run shows."""

from dataclasses import replace

import polars as pl
import pytest

from assets.parity.arms import ARM_NAMES
from assets.parity.predictions import compare_predictions, keep_retired
from assets.parity.registering import (
    find_predictions,
    hash_prediction,
    read_registrations,
    register_predictions,
)
from assets.parity.report_worth import describe_experiments
from serving.errors import InvalidInputError
from serving.home import Home
from tests.assets.parity.test_experiments import make_experiment, write_rows

MEASURED = {
    "contaminated": write_rows([1] * 40 + [0] * 60),
    "compact": write_rows([1] * 10 + [0] * 90),
}


@pytest.fixture
def ledger(tmp_path):
    return find_predictions(Home(tmp_path))


def register(ledger, *experiments, adapter="a", run="r1", was_asked=False) -> list[str]:
    return register_predictions(
        ledger, experiments, adapter_sha256=adapter, run_id=run, was_asked=was_asked
    )


def report(ledger, experiment, *, adapter="a") -> list[dict]:
    known = read_registrations(ledger)
    mine = {e: r for (e, a), r in known.items() if a == adapter}
    return compare_predictions([experiment], MEASURED, mine).to_dicts()


def test_a_student_is_registered_once_and_another_one_anew(ledger):
    first = make_experiment(0.1)
    assert register(ledger, first) == ["leak"]
    assert register(ledger, replace(first, predicted={"exact_match": 0.3}), run="r2") == []
    assert register(ledger, first, adapter="b", run="r3") == ["leak"]
    found = read_registrations(ledger)
    assert {key: one.run_id for key, one in found.items()} == {
        ("leak", "a"): "r1",
        ("leak", "b"): "r3",
    }


def test_a_student_that_two_recipes_make_was_predicted_by_both(ledger):
    twin = replace(make_experiment(0.0), name="twin", recipe="twin")
    assert register(ledger, make_experiment(0.3), twin) == ["leak", "twin"]
    assert read_registrations(ledger)["twin", "a"].predicted == {"exact_match": 0.0}


def test_a_student_asked_without_a_prediction_gets_none_afterwards(ledger):
    assert register(ledger) == []
    assert register(ledger, make_experiment(0.3), run="r2") == []
    (row,) = report(ledger, make_experiment(0.3))
    assert (row["registration"], row["outcome"]) == ("none", "unpredicted")


def test_a_student_whose_answers_lie_in_the_home_gets_no_prediction(ledger):
    assert register(ledger, make_experiment(0.3), was_asked=True) == []
    assert register(ledger, make_experiment(0.3), run="r2") == []
    (row,) = report(ledger, make_experiment(0.3))
    assert (row["registration"], row["outcome"]) == ("none", "unpredicted")
    assert row["measured_delta"] == pytest.approx(0.3)


def test_an_unchanged_prediction_is_dated_and_hashed(ledger):
    experiment = make_experiment(0.3)
    register(ledger, experiment)
    (row,) = report(ledger, experiment)
    assert row["registration"] == "unchanged"
    assert row["prediction_hash"] == hash_prediction(experiment)
    assert row["registered_at"].startswith("20")
    assert row["outcome"] == "confirmed"


def test_a_prediction_edited_after_the_run_is_judged_as_it_was(ledger):
    register(ledger, make_experiment(-0.2))
    (row,) = report(ledger, make_experiment(0.3))
    assert (row["predicted_delta"], row["declared_delta"]) == (-0.2, 0.3)
    assert row["registration"] == "changed"
    assert row["outcome"] == "contradicted"
    section = describe_experiments(compare_predictions(
        [make_experiment(0.3)], MEASURED, {"leak": read_registrations(ledger)["leak", "a"]}
    ))  # fmt: skip
    assert section is not None
    assert section.tables[0].rows[0][3].endswith("changed since to +0.300")


@pytest.mark.parametrize(
    "edit", [{"arm": "routed"}, {"against_arm": "teacher"}, {"against_recipe": "contaminated"}]
)
def test_a_prediction_of_another_comparison_predicts_nothing_of_this_one(ledger, edit):
    said = make_experiment(0.3)
    register(ledger, said)
    measured = {
        recipe: pl.concat(rows.with_columns(arm=pl.lit(arm)) for arm in ARM_NAMES)
        for recipe, rows in MEASURED.items()
    }
    found = compare_predictions(
        [replace(said, **edit)], measured, {"leak": read_registrations(ledger)["leak", "a"]}
    )
    row = found.row(0, named=True)
    assert row["predicted_delta"] == row["declared_delta"] == 0.3
    assert (row["registration"], row["outcome"]) == ("changed", "unpredicted")
    section = describe_experiments(found)
    assert section is not None
    assert section.tables[0].rows[0][3].endswith("of another comparison")


def test_another_number_of_one_metric_leaves_the_other_as_it_was_registered(ledger):
    said = replace(make_experiment(0.3), predicted={"exact_match": 0.3, "cite_coverage": 0.1})
    register(ledger, said)
    edited = replace(said, predicted={"exact_match": 0.3, "cite_coverage": 0.2})
    found = {row["metric"]: row for row in report(ledger, edited)}
    assert (found["exact_match"]["registration"], found["exact_match"]["outcome"]) == (
        "unchanged", "confirmed",
    )  # fmt: skip
    assert found["cite_coverage"]["registration"] == "changed"


def test_what_was_added_or_withdrawn_after_the_run_is_named(ledger):
    register(ledger, make_experiment(0.3))
    edited = replace(make_experiment(0.3), predicted={"cite_coverage": 0.1})
    found = {row["metric"]: row for row in report(ledger, edited)}
    assert found["exact_match"]["registration"] == "withdrawn"
    assert found["exact_match"]["outcome"] == "confirmed"
    assert found["cite_coverage"]["registration"] == "added"
    assert found["cite_coverage"]["outcome"] == "unmeasured"


def test_an_experiment_that_is_declared_no_more_stays_in_the_report(ledger):
    register(ledger, make_experiment(0.3))
    mine = {"leak": read_registrations(ledger)["leak", "a"]}
    last = compare_predictions([make_experiment(0.3)], MEASURED, mine)
    now = keep_retired(compare_predictions([], {}), last)
    (row,) = now.to_dicts()
    assert (row["registration"], row["declared_delta"]) == ("retired", None)
    assert (row["outcome"], row["measured_delta"]) == ("confirmed", pytest.approx(0.3))
    assert keep_retired(compare_predictions([], {}), now).equals(now)  # and once more
    section = describe_experiments(now)
    assert section is not None
    assert section.tables[0].rows[0][3].endswith("retired since")
    declared_again = keep_retired(last, now)
    assert declared_again.equals(last)


def test_a_retired_experiment_that_was_never_measured_is_dropped():
    last = compare_predictions([make_experiment(0.3)], {})
    assert keep_retired(compare_predictions([], {}), last).is_empty()


def test_a_student_asked_before_anything_was_registered_says_so(ledger):
    register(ledger, make_experiment(0.3), adapter="another")
    (row,) = report(ledger, make_experiment(0.3))
    assert (row["registration"], row["registered_at"]) == ("none", None)


def test_a_ledger_that_cannot_be_read_is_an_error(ledger):
    register(ledger, make_experiment(0.3))
    ledger.write_text(ledger.read_text() + "{}\n")
    with pytest.raises(InvalidInputError, match="TypeError on line 2"):
        read_registrations(ledger)
