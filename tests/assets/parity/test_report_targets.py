"""The report's section on soft targets: by data set, and only where there are any."""

import polars as pl
import pytest

from assets import tables
from assets.parity.report_targets import describe_targets, read_targets_section
from assets.parity.report_worth import read_optional_sections
from serving.home import Home
from tests.assets.labels.soft_answers import TAIL, tabulate


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    """Three answers scored in full, three by half."""
    return pl.concat([tabulate("scorer", 1.0, count=3), tabulate("scorer", 0.5, first=3, count=3)])


@pytest.fixture(scope="module")
def sets(table: pl.DataFrame) -> pl.DataFrame:
    """The first three are of one set, the others of another."""
    names = ["written by hand"] * 3 + ["reworded"] * 3
    return pl.DataFrame({"example_id": table["example_id"].sort(), "data_set": names})


def test_the_table_and_the_plots_are_by_data_set(table: pl.DataFrame, sets: pl.DataFrame) -> None:
    section = describe_targets(table, sets)
    rows = {row[0]: row for row in section.tables[0].rows}
    assert list(rows) == ["written by hand", "reworded"]
    assert rows["written by hand"][1] == "3 of 3"
    assert rows["written by hand"][3] == "100.0 %"
    assert rows["reworded"][5] == f"{TAIL:.3f}"
    coverage, tails = section.plots
    assert [line.label for line in coverage.lines] == ["written by hand", "reworded"]
    written, reworded = (dict(line.points) for line in coverage.lines)
    assert [written[1.0], reworded[1.0], reworded[0.25]] == [1.0, 0.0, 1.0]
    for line in tails.lines:
        below, above = (share for x, share in line.points if x in (0.2, 0.275))
        assert (below, above) == (0.0, 1.0), "every soft token's tail is a quarter"


def test_without_soft_targets_nothing_is_plotted(sets: pl.DataFrame) -> None:
    section = describe_targets(tabulate("none", 0, reason="x", count=6), sets)
    assert section.plots == ()
    assert section.notes == ("No answer token has a soft target.",)


def test_the_tables_of_a_home_give_the_section(tmp_path, table: pl.DataFrame) -> None:
    home = Home(tmp_path)
    assert read_targets_section(home) is None
    examples = pl.DataFrame(
        [{"example_id": name, "question_id": name, "seed_id": name}
         for name in table["example_id"]]
    )  # fmt: skip
    seeds = pl.DataFrame({"question_id": ["s1"], "source": ["seed_file"]})
    for name, frame in (
        ("labels/teacher_logprobs", table),
        ("labels/labelled_examples", examples),
        ("seeds/seed_questions", seeds),
    ):
        schema = tables.BY_KEY[tuple(name.split("/"))]
        path = home.table(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.match_to_schema(schema, missing_columns="insert").write_parquet(path)
    section = read_targets_section(home)
    assert section is not None
    assert section.frames["soft_targets_by_set"]["data_set"].to_list() == ["written by hand"]
    assert [found.anchor for found in read_optional_sections(home)] == ["targets"]
    table.drop("soft_ok").write_parquet(home.table("labels/teacher_logprobs"))
    assert read_targets_section(home) is None, "a table of another version is left out"
