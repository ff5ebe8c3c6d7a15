"""`bench/student_engines.py` on a tiny student: every figure is there, and equality is counted."""

import json
import sys

import polars as pl
import pytest

from bench import student_engines
from bench.student_engines import compare_answers
from serving.home import Home
from tests.tiny_student import make_adapter, make_base, make_messages


def test_equality_counts_texts_and_finds_where_they_part():
    found = compare_answers(str.split, ["a b c", "a b", "x"], ["a b c", "a c", "x y z"])
    assert found.equal_ratio == pytest.approx(1 / 3)
    assert found.first_difference_token == 1.0
    same = compare_answers(str.split, ["a"], ["a"])
    assert (same.equal_ratio, same.first_difference_token) == (1.0, None)


def test_a_run_prints_a_row_for_each_engine(tmp_path, monkeypatch, capsys):
    base = make_base(tmp_path / "base")
    home = Home(tmp_path / "home")
    make_adapter(home.adapters / "tiny@0", base)
    row = {
        "base_model": str(base), "base_revision": "r", "adapter": "tiny@0",
        "activation": "question",
    }  # fmt: skip
    asked = [
        make_messages(f"How do I set key {n}?", f"[1] Page {n}: Put it. [1]") for n in range(3)
    ]
    rows = [{"arm": "student", "repeat": 0, "messages": messages} for messages in asked]
    for table, frame in (
        ("students/student_adapter", pl.DataFrame([row])),
        ("parity/arm_answers", pl.DataFrame(rows)),
    ):
        path = home.table(table, "compact")
        path.parent.mkdir(parents=True)
        frame.write_parquet(path)
    monkeypatch.setattr(student_engines, "LONG_PROMPT", 90)
    monkeypatch.setattr(student_engines, "SHORT_PROMPT", 40)
    arguments = ["--home", str(home.root), "--rounds", "1", "--max-answer-tokens", "8"]
    options = ["--context-tokens", "500", "--engines", "openvino"]
    monkeypatch.setattr(sys, "argv", ["student_engines.py", *arguments, *options])
    student_engines.main()
    machine, *found = map(json.loads, capsys.readouterr().out.splitlines())
    assert machine["prompts"] == 3
    assert [one["engine"] for one in found] == ["transformers", "openvino"]
    assert all(one["equal_ratio"] == 1 for one in found)
    assert found[1]["largest_logprob_difference"] < 1e-3
    assert all(one["first_token_ms"] is not None for one in found)
    assert all(one["prompt_40_tokens_per_second"] > 0 for one in found)
