"""Tables as commands read them: missing and damaged ones are told apart, with a next step."""

import polars as pl
import pytest

from orchestration.lake import read_table
from orchestration.router_cli import _select_release
from serving.errors import InvalidInputError


@pytest.mark.parametrize(
    ("content", "found"), [(None, "nothing there"), (b"junk", "damaged"), (b"", "damaged")]
)
def test_a_table_that_cannot_be_read_says_what_to_do(tmp_path, content, found):
    path = tmp_path / "t.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=rf"While reading it.*{found}"):
        read_table(path, attempted="reading it", next_step="make it")


def test_a_cut_table_is_damaged(tmp_path):
    path = tmp_path / "t.parquet"
    pl.DataFrame({"a": range(1000)}).write_parquet(path)
    assert read_table(path, attempted="reading it", next_step="make it").height == 1000
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InvalidInputError, match="damaged"):
        read_table(path, attempted="reading it", next_step="make it")


def test_a_replay_says_whose_records_there_are_instead():
    records = pl.DataFrame({"release_id": ["old"] * 3 + [None], "score": [1.0] * 4})
    assert _select_release(records, "old").height == 3
    with pytest.raises(InvalidInputError, match=r"current release new.*3 of old"):
        _select_release(records, "new")
    assert _select_release(records.clear(), "new").is_empty()
