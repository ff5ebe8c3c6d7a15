"""What the doctor finds, and that what it meets never stops it."""

import json
from pathlib import Path

import polars as pl
import pytest

from orchestration import doctor
from orchestration.config import read_config
from orchestration.running import run_chain
from serving.errors import InvalidInputError
from serving.home import Home
from serving.models.protocols import NoProgress
from tests.product import write_product


@pytest.fixture
def config(tmp_path):
    return read_config(write_product(tmp_path))


def find(config) -> dict[str, doctor.Finding]:
    return {finding.subject: finding for finding in doctor.examine_inputs(config)}


def test_inputs_are_read_as_a_run_reads_them(config):
    found = find(config)
    assert {f.level for f in found.values()} == {"ok"}
    assert found["corpus"].found == "6 pages"
    assert found["recipes"].found == "tiny"


def test_a_page_that_cannot_be_parsed_is_found(config):
    (config.product.corpus.path / "index.mdx").write_bytes(b"caf\xe9 in latin-1")
    found = find(config)["corpus"]
    assert found.level == "problem"
    assert "index.mdx" in found.found or "UTF-8" in found.found


def test_a_recipe_for_a_student_that_does_not_exist_is_found(config):
    path = config.recipes / "tiny.yaml"
    path.write_text(path.read_text().replace("student: tiny", "student: nobody"))
    assert find(config)["recipes"].level == "problem"


def test_a_file_that_may_not_be_read_is_a_finding_not_a_crash(config, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "pages/index.mdx")

    monkeypatch.setattr("resources.corpus.CorpusFolder.read_pages", refuse)
    assert "Permission denied" in find(config)["corpus"].found


def test_a_home_that_cannot_be_written_is_a_problem(tmp_path, monkeypatch):
    assert doctor.examine_home(tmp_path / "not" / "yet").level == "ok"

    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    assert doctor.examine_home(Path(tmp_path)).level == "problem"


def test_a_damaged_index_is_a_problem_and_none_at_all_is_not(config):
    home = Home(config.home)
    assert not list(doctor.examine_index(home))
    run_chain(config, progress=NoProgress(), recipe="tiny", select=["corpus"])
    assert [finding.level for finding in doctor.examine_index(home)] == ["ok"]
    table = next(path for path in home.index.rglob("*.lance/data/*") if path.is_file())
    table.write_bytes(table.read_bytes()[:-1])
    (found,) = doctor.examine_index(home)
    assert found.level == "problem"
    assert "--select corpus" in found.next_step
    run_chain(config, progress=NoProgress(), recipe="tiny", select=["corpus"])
    assert [finding.level for finding in doctor.examine_index(home)] == ["ok"]
    receipt = next(home.index.rglob("snapshot.json"))
    told = json.loads(receipt.read_text(encoding="utf-8")) | {"retrieval_version": "of others"}
    receipt.write_text(json.dumps(told), encoding="utf-8")
    assert [finding.level for finding in doctor.examine_index(home)] == ["problem"]
    run_chain(config, progress=NoProgress(), recipe="tiny", select=["corpus"])
    assert [finding.level for finding in doctor.examine_index(home)] == ["ok"]
    pl.DataFrame({"uri": [None]}).write_parquet(home.table("corpus/vector_index"))
    assert [finding.level for finding in doctor.examine_index(home)] == ["problem"]


def test_an_index_that_may_not_be_read_is_a_finding_not_a_crash(config, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "windows.lance")

    home = Home(config.home)
    home.table("corpus/vector_index").parent.mkdir(parents=True)
    home.table("corpus/vector_index").touch()
    monkeypatch.setattr("orchestration.running.is_stored", refuse)
    (found,) = doctor.examine_index(home)
    assert (found.level, "windows.lance" in found.found) == ("problem", True)


def test_a_base_model_that_is_not_there_is_found_and_no_run_begins(config):
    students = {
        name: student.model_copy(update={"base_model": "../models/gone", "revision": "local"})
        for name, student in config.students.items()
    }
    broken = config.model_copy(update={"students": students})
    found = find(broken)["recipes"]
    assert found.level == "problem"
    assert "no such folder" in found.found
    with pytest.raises(InvalidInputError, match="no such folder"):
        run_chain(broken, progress=NoProgress(), recipe="tiny")
    assert not (config.home / "lake").exists()
