"""The scores of `bench/retrieval.py`, against numbers worked out by hand."""

import math

import numpy as np
import pytest

pytest.importorskip("ir_measures", reason="pip install -e .[bench]")

from bench.question_sets import read_beir
from bench.retrieval import score_questions, state_mean


def test_scores_equal_those_worked_out_by_hand():
    judgements = {"q1": {"a": 2, "b": 1}, "q2": {"c": 1}, "q3": {"d": 1}}
    rankings = {"q2": ["x", "c"], "q1": ["b", "x", "a"], "q3": ["x", "y"]}
    scores = score_questions(judgements, rankings)
    ideal = 2 + 1 / math.log2(3)
    expected = {
        "nDCG@8": [1 / math.log2(3), (1 + 2 / math.log2(4)) / ideal, 0.0],
        "R@1": [0.0, 0.5, 0.0],
        "R@3": [1.0, 1.0, 0.0],
        "R@8": [1.0, 1.0, 0.0],
        "RR": [0.5, 1.0, 0.0],
    }
    assert scores.keys() == expected.keys()
    for name, values in expected.items():
        assert scores[name].tolist() == pytest.approx(values), name


def test_a_question_that_brings_nothing_scores_nothing():
    scores = score_questions({"q1": {"a": 1}, "q2": {"b": 1}}, {"q1": [], "q2": ["b"]})
    assert scores["nDCG@8"].tolist() == [0.0, 1.0]


def test_an_interval_holds_the_mean_and_narrows_with_more_questions():
    few, many = (np.tile([0.0, 1.0, 1.0, 0.5], n) for n in (5, 500))
    wide, narrow = state_mean(few), state_mean(many)
    assert wide["low"] < wide["mean"] == narrow["mean"] == 0.625 < wide["high"]
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]
    assert state_mean(np.ones(3)) == {"mean": 1.0, "low": 1.0, "high": 1.0}


def test_any_folder_in_the_layout_of_beir_is_read(tmp_path):
    (tmp_path / "qrels").mkdir()
    lines = '{"_id": "q1", "text": "Why?"}\n{"_id": "q2", "text": "unjudged"}\n'
    (tmp_path / "queries.jsonl").write_text(lines)
    (tmp_path / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\ta#b\t2\n")
    assert read_beir(tmp_path) == ({"q1": "Why?"}, {"q1": {"a#b": 2}})
