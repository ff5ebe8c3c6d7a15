"""The development questions of retrieval: every judged page exists, every question is judged."""

import csv
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETS = ROOT / "data" / "retrieval"
TENSORZERO = ROOT.parent / "shared" / "corpora" / "tensorzero-docs"
CORPORA = {
    "understudy-docs": ROOT / "docs",
    "tensorzero-docs": TENSORZERO,
    "tensorzero-docs-formal": TENSORZERO,
}
MINIMUM_QUESTIONS = 60


def read_questions(name: str) -> dict[str, str]:
    lines = (SETS / name / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["_id"]: row["text"] for row in map(json.loads, lines)}


def read_judgements(name: str) -> list[tuple[str, str, int]]:
    with (SETS / name / "qrels" / "test.tsv").open(encoding="utf-8") as stream:
        rows = csv.DictReader(stream, delimiter="\t")
        return [(row["query-id"], row["corpus-id"], int(row["score"])) for row in rows]


@pytest.mark.parametrize("name", CORPORA)
def test_every_question_has_a_page_that_answers_it(name):
    questions, judgements = read_questions(name), read_judgements(name)
    assert len(questions) >= MINIMUM_QUESTIONS
    assert len(set(questions.values())) == len(questions)
    assert {question for question, _, grade in judgements if grade == 2} == set(questions)
    assert {grade for *_, grade in judgements} <= {1, 2}
    assert len({(question, page) for question, page, _ in judgements}) == len(judgements)


@pytest.mark.parametrize("name", CORPORA)
def test_every_judged_page_exists(name):
    corpus = CORPORA[name]
    if not corpus.is_dir():
        pytest.skip(f"{corpus} is not here")
    pages = {path.relative_to(corpus).with_suffix("").as_posix() for path in corpus.rglob("*.mdx")}
    assert {page for _, page, _ in read_judgements(name)} <= pages


def test_the_own_questions_are_seeds_and_no_golden_case():
    def read(path: str, key: str) -> dict[str, str]:
        lines = (ROOT / "data" / path).read_text(encoding="utf-8").splitlines()
        return {row[key]: row.get("text") or row["question"] for row in map(json.loads, lines)}

    questions = read_questions("understudy-docs")
    seeds = read("seed_prompts.jsonl", "question_id")
    assert questions.items() <= seeds.items()
    golden = set(read("eval/golden_v3.jsonl", "case_id").values())
    assert golden.isdisjoint(text for name in CORPORA for text in read_questions(name).values())
