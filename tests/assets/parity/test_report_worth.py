"""The report on worth: what never pays back says so, and what was not measured is left out."""

from dataclasses import replace

import polars as pl
import pytest

from assets import tables
from assets.parity.curve_points import place_points
from assets.parity.economics import OneOffCosts, find_range, tabulate_economics, tabulate_unpriced
from assets.parity.economics_chart import map_savings, read_one_off, tabulate_sensitivity
from assets.parity.flips import measure_flips
from assets.parity.formatting import DASH
from assets.parity.predictions import compare_predictions
from assets.parity.report_worth import (
    describe_economics,
    describe_experiments,
    describe_router,
    describe_suitability,
    read_optional_sections,
)
from assets.parity.router_curve import summarise_curve, tabulate_curve
from serving.home import Home
from tests.assets.parity.test_economics import INFRASTRUCTURE, TERMS, WORKED
from tests.assets.parity.test_experiments import make_experiment, write_rows
from tests.assets.parity.test_router_curve import POLICY, write_answers, write_wordings


def find_cells(section, label: str) -> tuple[str, ...]:
    return next(row for table in section.tables for row in table.rows if row[0] == label)


def test_economics_shows_the_range_and_the_strategy():
    table = tabulate_economics([(WORKED, find_range(WORKED, INFRASTRUCTURE, TERMS))])
    section = describe_economics(table, strategy="no_change", reason="the teacher is cheap")
    assert section.lead == "Strategy: no change. The teacher is cheap."
    assert find_cells(section, "Saved, USD a month")[2] == "990.00"
    assert find_cells(section, "Payback, weeks")[2] == "5.0"
    assert find_cells(section, "Broken even within a week's questions")[2] == "no"


def test_a_price_stated_as_zero_is_named():
    table = tabulate_economics([(WORKED, find_range(WORKED, INFRASTRUCTURE, TERMS))])
    zeros = ("The student's price is stated as 0.",)
    section = describe_economics(table, strategy="distilled", reason="why", remarks=zeros)
    assert section.notes[0] == zeros[0]


def test_without_a_price_there_are_no_sums_and_the_reason():
    table = tabulate_unpriced([WORKED], "the config does not state `teacher.price`")
    assert set(table["inconclusive_reason"]) == {"the config does not state `teacher.price`"}
    assert table["saving_usd_per_month"].null_count() == table.height == 3
    section = describe_economics(table, strategy="inconclusive", reason="a price is missing")
    assert not section.tables
    assert section.notes == ("INCONCLUSIVE: the config does not state `teacher.price`.",)


def test_what_never_pays_back_says_never():
    losing = replace(TERMS, infrastructure_usd_per_month=5_000.0)
    table = tabulate_economics([(WORKED, find_range(WORKED, INFRASTRUCTURE, losing))])
    section = describe_economics(table, strategy="no_change", reason="it costs more")
    assert find_cells(section, "Payback, weeks")[1:] == ("never",) * 3


def test_the_router_section_has_its_curve_and_figures():
    answers = write_answers([0.2, 0.4, 0.6, 0.8], [False, False, True, True])
    curve = tabulate_curve(answers, None, policy=POLICY, teacher_usd=0.01, student_usd=0.001)
    rows = [
        *summarise_curve(answers, None, policy=POLICY),
        measure_flips(write_wordings({"a": [0.4, 0.6]}), POLICY, count_tokens=len),
    ]
    figures = pl.DataFrame(rows, schema=tables.ROUTER_FIGURES)
    chosen = pl.DataFrame(
        [
            {"arm": "routed_60_40", "min_retrieval_score": 0.5, "confidence_threshold": None},
            {"arm": "routed_90_10", "min_retrieval_score": 0.1, "confidence_threshold": None},
        ],
        schema=tables.OPERATING_POINTS,
    )
    points = place_points(chosen, answers, None, POLICY)
    assert points.rows() == [("routed_60_40", 0.5, 1.0, 4), ("routed_90_10", 0.0, 0.5, 4)]
    section = describe_router(curve, figures, points)
    assert [line.label for line in section.plots[0].lines] == ["router", "lots", "oracle"]
    on_curve = set(zip(curve["teacher_ratio"], curve["quality"], strict=True))
    marks = section.plots[0].marks
    assert [(mark.label, mark.x, mark.y) for mark in marks] == [
        ("routed 60/40", 0.5, 1.0), ("routed 90/10", 0.0, 0.5),
    ]  # fmt: skip
    assert {(mark.x, mark.y) for mark in marks} <= on_curve
    assert section.frames == {
        "router_curve": curve, "router_figures": figures, "curve_points": points,
    }  # fmt: skip
    assert len(section.tables[0].rows) == 5
    assert "4 questions of the validation split" in section.notes[0]


def test_a_point_without_validation_answers_has_no_place_on_the_curve():
    nothing = write_answers([], [])
    chosen = pl.DataFrame([{"arm": "routed_60_40"}], schema=tables.OPERATING_POINTS)
    assert place_points(chosen, nothing, None, POLICY).is_empty()


def test_the_sensitivity_map_holds_the_month_that_is_expected():
    """Read back from the table alone, the one-off costs give the very saving it states."""
    terms = replace(
        TERMS, gpu_usd_per_hour=0.5, gpu_utilisation_ratio=0.3, training_usd_per_hour=2.0,
        retrains_per_month=1.0, setup_usd=1_000.0,
    )  # fmt: skip
    paid = OneOffCosts(bought_usd=40.0, training_usd=1.0, setup_usd=1_000.0)
    table = tabulate_economics([(WORKED, find_range(WORKED, paid, terms))])
    assert read_one_off(table, training_seconds=1_800, terms=terms) == paid
    sensitivity = tabulate_sensitivity(WORKED, paid, terms)
    section = describe_economics(table, strategy="distilled", reason="why", sensitivity=sensitivity)
    expected = table.filter(scenario="expected")["saving_usd_per_month"].item()
    money = section.maps[0]
    assert money.amounts[money.rows.index("30 %")][money.columns.index("100k")] == pytest.approx(
        expected
    )
    assert section.frames["sensitivity"].height == len(money.rows) * len(money.columns)
    assert section.facts == {"strategy": "distilled", "reason": "why"}


def test_paid_by_the_token_utilisation_has_one_row():
    money = map_savings(tabulate_sensitivity(WORKED, INFRASTRUCTURE, TERMS))
    assert money.rows == ["any"]
    assert money.amounts[0][money.columns.index("100k")] == pytest.approx(990)


def test_suitability_shows_volume_and_high_stakes_and_what_is_unknown():
    row = {
        "kind": "serving", "source": "seeds", "question_count": 9, "volume_ratio": 0.25,
        "cost_ratio": None, "repetitive_ratio": None, "checkable_ratio": None,
        "high_stakes_ratio": 0.125, "labelled_count": 0, "advice": "measure_first", "reason": "r",
    }  # fmt: skip
    section = describe_suitability(pl.DataFrame([row], schema=tables.SUITABILITY))
    shown = dict(zip(section.tables[0].columns, section.tables[0].rows[0], strict=True))
    assert (shown["questions"], shown["high stakes"]) == ("25.0 %", "12.5 %")
    assert {shown[name] for name in ("cost", "repeats", "checkable")} == {DASH}


def test_suitability_says_which_types_of_task_it_cannot_tell():
    row = {
        "kind": "serving", "source": "traffic", "question_count": 9, "volume_ratio": 1.0,
        "cost_ratio": 1.0, "repetitive_ratio": 0.5, "checkable_ratio": 0.9,
        "high_stakes_ratio": 0.0, "labelled_count": 5, "advice": "distil", "reason": "repetitive",
    }  # fmt: skip
    section = describe_suitability(pl.DataFrame([row], schema=tables.SUITABILITY))
    assert section.notes[0].startswith("Read from traffic.")
    assert "format conversion" in section.notes[1]


def test_only_measured_experiments_are_shown(tmp_path):
    assert describe_experiments(compare_predictions([make_experiment(0.3)], {})) is None
    measured = {"contaminated": write_rows([1, 0] * 10), "compact": write_rows([0] * 20)}
    report = compare_predictions([make_experiment(0.3)], measured)
    section = describe_experiments(report)
    assert section is not None
    assert section.tables[0].rows[0][3:5] == ("not registered before the run", "+0.500")
    home = Home(tmp_path)
    assert read_optional_sections(home) == ()
    path = home.table("parity/experiment_report")
    path.parent.mkdir(parents=True)
    report.write_parquet(path)
    assert [found.anchor for found in read_optional_sections(home)] == ["experiments"]
