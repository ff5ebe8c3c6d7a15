"""The lake: declared schemas are enforced, a failed write leaves the old table."""

import os

import dagster as dg
import polars as pl
import pytest

from resources.lake import LakeIOManager
from serving.errors import InvalidInputError
from serving.home import Home

SCHEMA = pl.Schema({"id": pl.String, "size": pl.Int32})
RECIPES = dg.StaticPartitionsDefinition(["a", "b"])


def materialize(tmp_path, frame: pl.DataFrame, partition: str | None = None):
    @dg.asset(key=["stage", "table"], partitions_def=RECIPES if partition else None)
    def table() -> pl.DataFrame:
        return frame

    @dg.asset(
        key=["stage", "height"],
        ins={"table": dg.AssetIn(key=["stage", "table"])},
        partitions_def=RECIPES if partition else None,
        io_manager_key="memory",
    )
    def height(table: pl.DataFrame) -> int:
        return table.height

    manager = LakeIOManager(tmp_path / "lake", {("stage", "table"): SCHEMA})
    return dg.materialize(
        [table, height],
        resources={"io_manager": manager, "memory": dg.mem_io_manager},
        partition_key=partition,
    )


def test_a_table_lies_where_the_home_says_and_is_read_back(tmp_path):
    frame = pl.DataFrame({"id": ["x"], "size": [1]}, schema=SCHEMA)
    result = materialize(tmp_path, frame)
    assert result.output_for_node("stage__height") == 1
    assert pl.read_parquet(Home(tmp_path).table("stage/table")).equals(frame)


def test_partitions_are_files_of_their_own(tmp_path):
    for name in ("a", "b"):
        materialize(tmp_path, pl.DataFrame({"id": [name], "size": [1]}, schema=SCHEMA), name)
    home = Home(tmp_path)
    assert pl.read_parquet(home.table("stage/table", "a"))["id"].item() == "a"
    assert pl.read_parquet(home.table("stage/table", "b"))["id"].item() == "b"


def test_another_schema_is_refused_and_the_old_table_stays(tmp_path):
    good = pl.DataFrame({"id": ["x"], "size": [1]}, schema=SCHEMA)
    materialize(tmp_path, good)
    with pytest.raises(InvalidInputError, match=r"size: Int64 .declared Int32."):
        materialize(tmp_path, pl.DataFrame({"id": ["x"], "size": [1]}))
    path = Home(tmp_path).table("stage/table")
    assert pl.read_parquet(path).equals(good)
    assert sorted(p.name for p in path.parent.iterdir()) == ["table.parquet"]


def test_no_rows_of_a_table_reach_the_event_log(tmp_path):
    result = materialize(tmp_path, pl.DataFrame({"id": ["s3cret"], "size": [1]}, schema=SCHEMA))
    assert "s3cret" not in "".join(str(event) for event in result.all_events)


def test_a_table_of_a_private_stage_is_its_owners_alone(tmp_path):
    frame = pl.DataFrame({"id": ["x"], "size": [1]}, schema=SCHEMA)
    schemas = {("stage", "table"): SCHEMA}
    for private, mode in ((frozenset({"stage"}), 0o600), (frozenset(), 0o644)):
        folder = tmp_path / str(bool(private))
        manager = LakeIOManager(folder / "lake", schemas, private_stages=private)
        context = dg.build_output_context(asset_key=["stage", "table"])
        before = os.umask(0o022)
        try:
            manager.handle_output(context, frame)
        finally:
            os.umask(before)
        assert Home(folder).table("stage/table").stat().st_mode & 0o777 == mode
