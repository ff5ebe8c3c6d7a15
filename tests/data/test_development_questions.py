"""The development questions: each is answered where it says so, and none is near a golden case."""

import json
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from assets.eval_set.facts import has_fact
from assets.eval_set.guard import EvalQuestions, judge_questions
from serving.models.embedded import resolve_model
from serving.models.embedder import SentenceEmbedder

ROOT = Path(__file__).resolve().parents[2]
CORPORA = {
    "understudy-docs": ROOT / "docs",
    "tensorzero-docs": ROOT.parent / "shared" / "corpora" / "tensorzero-docs",
}


def read_lines(path: str) -> list[dict]:
    return [
        json.loads(line) for line in (ROOT / "data" / path).read_text(encoding="utf-8").splitlines()
    ]


QUESTIONS = read_lines("development/questions.jsonl")


def test_both_corpora_have_questions_of_every_bucket():
    counts = Counter((row["corpus"], row["bucket"]) for row in QUESTIONS)
    assert counts == {
        (corpus, bucket): count
        for corpus, answerable in (("understudy-docs", 40), ("tensorzero-docs", 50))
        for bucket, count in (("answerable", answerable), ("boundary", 14), ("out_of_scope", 10))
    }
    assert len({row["question"] for row in QUESTIONS}) == len(QUESTIONS)
    assert len({row["question_id"] for row in QUESTIONS}) == len(QUESTIONS)


def test_only_answerable_questions_name_facts_and_pages():
    for row in QUESTIONS:
        is_answerable = row["bucket"] == "answerable"
        assert bool(row["must_include"]) == bool(row["gold_pages"]) == is_answerable, row


@pytest.mark.parametrize("corpus", CORPORA)
def test_every_fact_stands_on_every_page_that_is_said_to_answer(corpus):
    if not CORPORA[corpus].is_dir():
        pytest.skip(f"{CORPORA[corpus]} is not here")
    for row in QUESTIONS:
        if row["corpus"] != corpus:
            continue
        for page in row["gold_pages"]:
            text = (CORPORA[corpus] / f"{page}.mdx").read_text(encoding="utf-8")
            missing = [fact for fact in row["must_include"] if not has_fact(text, fact)]
            assert not missing, (row["question_id"], page, missing)


@pytest.mark.real_models
def test_no_question_is_near_a_golden_case_or_asks_for_its_fact_of_its_page(tmp_path):
    resolved = resolve_model("sentence-transformers/all-MiniLM-L6-v2", "embedded", tmp_path)
    embedder = SentenceEmbedder(resolved.path, sha256=resolved.sha256)
    golden = read_lines("eval/golden_v3.jsonl")
    asked = [case["question"] for case in golden]
    protected = EvalQuestions.prepare(
        [case["case_id"] for case in golden], asked, embedder.embed(asked)
    )
    texts = [row["question"] for row in QUESTIONS]
    judged = judge_questions(texts, embedder.embed(texts), protected)
    assert judged.filter(pl.col("verdict") != "kept").is_empty()
    assert judged["nearest_cosine"].max() < 0.70

    def facts(row: dict) -> set[tuple[str, str]]:
        return {(p, fact.casefold()) for p in row["gold_pages"] for fact in row["must_include"]}

    taken = {pair for case in golden for pair in facts(case)}
    own = [row for row in QUESTIONS if row["corpus"] == "understudy-docs"]
    assert not [row["question_id"] for row in own if facts(row) & taken]
