"""Cleaning up keeps what money bought, unless it is told otherwise."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KEPT = ("labels/cache/ab/answer.json", "keys/release_ed25519.pem")
MADE = ("lake/corpus/pages.parquet", "models/base/config.json", "labels/other.txt")


@pytest.fixture
def project(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in (*KEPT, *MADE):
        path = tmp_path / ".understudy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return tmp_path


def make(folder: Path, *arguments: str, answer: str = "") -> int:
    done = subprocess.run(
        ["make", *arguments], cwd=folder, input=answer, text=True, capture_output=True, check=False
    )
    return done.returncode


def left(folder: Path) -> set[str]:
    home = folder / ".understudy"
    return {p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file()}


def test_clean_keeps_bought_answers_and_keys(project):
    assert make(project, "clean") == 0
    assert left(project) == set(KEPT)
    assert make(project, "clean") == 0


def test_purge_asks_and_then_removes_everything(project):
    assert make(project, "purge", answer="n\n") != 0
    assert left(project) == {*KEPT, *MADE}
    assert make(project, "purge", answer="y\n") == 0
    assert left(project) == set()


def test_purge_does_not_ask_when_told_so(project):
    assert make(project, "purge", "PURGE=yes") == 0
    assert not (project / ".understudy").exists()
