"""The report on worth: what never pays back says so, and what was not measured is left out."""

from dataclasses import replace

import polars as pl

from assets import tables
from assets.parity.economics import find_range, tabulate_economics, tabulate_unpriced
from assets.parity.flips import measure_flips
from assets.parity.predictions import compare_predictions
from assets.parity.report_worth import (
    describe_economics,
    describe_experiments,
    describe_router,
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
    section = describe_economics(table, strategy="distilled", reason="why", stated_zeros=zeros)
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
    section = describe_router(curve, pl.DataFrame(rows, schema=tables.ROUTER_FIGURES))
    assert [line.label for line in section.plots[0].lines] == ["router", "lots", "oracle"]
    assert len(section.tables[0].rows) == 5
    assert "4 questions of the validation split" in section.notes[0]


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
