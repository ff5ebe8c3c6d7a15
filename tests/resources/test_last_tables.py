"""Last tables: read where they can be trusted, and empty otherwise."""

import logging

import polars as pl
import pytest

from resources.last_tables import LastTables, NoTables
from serving.home import Home

SCHEMA = pl.Schema({"id": pl.String, "size": pl.Int32})
KEY = ("stage", "table")
FRAME = pl.DataFrame({"id": ["x", "y"], "size": [1, 2]}, schema=SCHEMA)


@pytest.fixture
def home(tmp_path) -> Home:
    home = Home(tmp_path)
    home.table("stage/table").parent.mkdir(parents=True)
    FRAME.write_parquet(home.table("stage/table"))
    return home


def read(home: Home) -> pl.DataFrame:
    return LastTables(home, {KEY: SCHEMA}).read(list(KEY))


def test_a_table_is_read_as_it_was_written(home):
    assert read(home).equals(FRAME)
    assert NoTables({KEY: SCHEMA}).read(KEY).equals(FRAME.clear())


def test_a_missing_table_is_empty_and_nothing_to_speak_of(home, caplog):
    home.table("stage/table").unlink()
    assert read(home).equals(FRAME.clear())
    assert caplog.records == []


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_a_damaged_table_is_empty_and_is_told(home, caplog, cut):
    path = home.table("stage/table")
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole) - 1)])
    with caplog.at_level(logging.WARNING):
        assert read(home).equals(FRAME.clear())
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize(
    "other", [FRAME.drop("size"), FRAME.cast({"size": pl.Int64}), FRAME.with_columns(more=1)]
)
def test_a_table_of_another_version_is_empty_and_is_told(home, caplog, other):
    other.write_parquet(home.table("stage/table"))
    with caplog.at_level(logging.WARNING):
        assert read(home).equals(FRAME.clear())
    assert "columns" in caplog.text
