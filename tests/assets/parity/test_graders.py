"""Every grader at its edges: markup, numbers, case, partial citations, refusals, empty answers."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from assets import tables
from assets.eval_set.facts import has_fact, normalise_text
from assets.parity.graders import (
    Answer,
    Case,
    Source,
    grade_answers,
    grade_cite_correctness,
    grade_cite_coverage,
    grade_exact_match,
    grade_groundedness,
    grade_refusal,
)
from serving.errors import InvalidInputError
from serving.models.protocols import Vectors

SOURCES = {
    "docs:config/1": Source(
        heading_path=("Configuration", "Router `thresholds`"),
        text="Prompts above 6,000 tokens go to the teacher.",
    ),
    "docs:config/2": Source(
        heading_path=("Configuration", "Prices"), text="Prices are in US dollars per million."
    ),
    "docs:serving/1": Source(heading_path=("Serving",), text="The server listens on port 8321."),
}


def make_case(**changes: Any) -> Case:
    fields: dict[str, Any] = {
        "case_id": "c1",
        "must_include": ("6000 tokens",),
        "gold_pages": ("config",),
        "gold_headings": ("router thresholds",),
        "should_refuse": False,
    }
    return Case(**(fields | changes))


def make_answer(text: str, *citations: str, refused: bool = False) -> Answer:
    return Answer(text=text, refused=refused, citations=citations)


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("Above **6,000** tokens it goes up.", "6000 tokens"),
        ("Above 6\u202f000 tokens", "6,000 tokens"),
        ("Set `router.long_context_tokens`.", "ROUTER.long_context_tokens"),
        ("Run <code>make demo</code> first", "make demo"),
        ("See [the *router* page](https://x.example/a)", "the router page"),
        ("it is\n\n   case-folded", "Case\u2011Folded"),
        ("Use UNDERSTUDY_HOME.", "`UNDERSTUDY_HOME`"),
        ("about 95 % of them", "95%"),
        ("two adapters", "adapter"),
        ("the teacher\u2019s key", "the teacher's key"),
        ("| k | 3 |", "k 3"),
        ("a &lt;name&gt; here", "<name>"),
        ("__init__ and _this_ too", "this too"),
        ("the value is 0.92.", "0.92"),
    ],
)
def test_a_fact_is_found_through_markup_case_and_number_style(text: str, fact: str) -> None:
    assert has_fact(text, fact)


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("16000 tokens", "6000 tokens"),
        ("the limit is 0.60", "60"),
        ("600 seconds", "60"),
        ("version 1.10", "1.1"),
        ("an important report", "port"),
        ("It says so. [docs:config/8321]", "8321"),
        ("costs 1,000,000", "1,000"),
        ("", "anything"),
    ],
)
def test_a_fact_is_not_found_inside_another(text: str, fact: str) -> None:
    assert not has_fact(text, fact)


def test_a_fact_without_text_is_an_error_not_a_match() -> None:
    with pytest.raises(InvalidInputError, match="a fact with text"):
        has_fact("anything", " ** ")


def test_normalising_twice_changes_nothing() -> None:
    once = normalise_text("# **Set** `a_b` to 6,000\u00a0tokens\u2026 [docs:x/1]")
    assert once == "set a_b to 6000 tokens..."
    assert normalise_text(once) == once


def test_exact_match_wants_every_fact() -> None:
    case = make_case(must_include=("6000 tokens", "the teacher"))
    assert grade_exact_match(make_answer("6,000 tokens go to the teacher."), case).value == 1
    partial = grade_exact_match(make_answer("6,000 tokens."), case)
    assert (partial.value, partial.detail) == (0, "missing: the teacher")
    assert grade_exact_match(make_answer(""), case).value == 0


@pytest.mark.parametrize(
    "refusal",
    [
        make_answer("", refused=True),
        make_answer("REFUSE"),
        make_answer("refuse."),
        make_answer("I could not find this in the documentation: 6000 tokens?", refused=True),
        make_answer("I could not find this in the documentation: 6000 tokens?"),
    ],
)
def test_a_refusal_never_matches_facts_but_is_right_where_asked_for(refusal: Answer) -> None:
    assert grade_refusal(refusal).value == 1
    assert grade_exact_match(refusal, make_case()).value == 0
    assert grade_exact_match(refusal, make_case(should_refuse=True)).value == 1
    assert grade_cite_coverage(refusal).status == "not_applicable"


def test_an_answer_that_mentions_refusing_is_no_refusal() -> None:
    answer = make_answer("A model that answers REFUSE declines. [docs:config/1]", "docs:config/1")
    assert grade_refusal(answer).value == 0
    assert grade_exact_match(answer, make_case(should_refuse=True)).value == 0


def test_a_case_without_facts_is_inconclusive() -> None:
    grade = grade_exact_match(make_answer("Something."), make_case(must_include=()))
    assert (grade.value, grade.status) == (None, "inconclusive")


def test_cite_coverage_counts_statements() -> None:
    answer = make_answer("One thing. [docs:config/1] Another thing. [docs:config/2] Last thing.")
    grade = grade_cite_coverage(answer)
    assert (grade.numerator, grade.denominator) == (2, 3)
    assert grade_cite_coverage(make_answer("")).status == "not_applicable"


def test_cite_correctness_wants_gold_page_and_gold_heading() -> None:
    answer = make_answer("x", "docs:config/1", "docs:config/2", "docs:serving/1", "docs:config/1")
    grade = grade_cite_correctness(answer, make_case(), SOURCES)
    assert (grade.numerator, grade.denominator) == (1, 3)
    assert grade.detail == "off gold: docs:config/2 docs:serving/1"
    assert grade_cite_correctness(answer, make_case(), SOURCES, page_only=True).numerator == 2
    assert grade_cite_correctness(answer, make_case(gold_headings=()), SOURCES).numerator == 2
    parent = make_case(gold_headings=("Configuration",))
    assert grade_cite_correctness(answer, parent, SOURCES).numerator == 2


def test_cite_correctness_of_unknown_and_absent_citations() -> None:
    unknown = grade_cite_correctness(make_answer("x", "docs:config/99"), make_case(), SOURCES)
    assert unknown.value == 0
    for answer, case in (
        (make_answer("x"), make_case()),
        (make_answer("x", "docs:config/1"), make_case(gold_pages=())),
        (make_answer("", "docs:config/1", refused=True), make_case()),
    ):
        assert grade_cite_correctness(answer, case, SOURCES).status == "not_applicable"


def test_a_page_whose_name_starts_alike_is_another_page() -> None:
    sources = {"docs:config-old/1": SOURCES["docs:config/1"]}
    answer = make_answer("x", "docs:config-old/1")
    assert grade_cite_correctness(answer, make_case(), sources).value == 0


class SameDirection:
    """An embedder to which all texts mean the same."""

    fingerprint, dimension, maximum_tokens = "same", 2, 100

    def embed(self, texts: Any) -> Vectors:
        return np.tile(np.array([1, 0], dtype=np.float32), (len(texts), 1))

    def count_tokens(self, texts: Any) -> list[int]:
        return [len(t) for t in texts]


def test_groundedness_reads_the_cited_chunk_and_no_other() -> None:
    right = "The server listens on port 8321. [docs:serving/1]"
    wrong = "The server listens on port 8321. [docs:config/2]"
    assert grade_groundedness(make_answer(right), SOURCES).value == 1
    assert grade_groundedness(make_answer(wrong), SOURCES).value == 0
    assert grade_groundedness(make_answer(f"{right} {wrong}"), SOURCES).value == 0.5
    assert grade_groundedness(make_answer(wrong), SOURCES, embedder=SameDirection()).value == 1
    gone = make_answer("The server listens. [docs:gone/1]")
    assert grade_groundedness(gone, SOURCES, embedder=SameDirection()).value == 0
    assert grade_groundedness(make_answer("Uncited."), SOURCES).status == "not_applicable"


GOLDEN = pl.DataFrame(
    [
        {"case_id": "c1", "must_include": ["6000 tokens"], "gold_pages": ["config"],
         "gold_headings": [], "should_refuse": False},
        {"case_id": "c2", "must_include": [], "gold_pages": [], "gold_headings": [],
         "should_refuse": True},
    ],
    schema_overrides={"gold_headings": pl.List(pl.String)},
)  # fmt: skip
CHUNKS = pl.DataFrame(
    [{"chunk_id": i, "heading_path": list(s.heading_path), "text": s.text}
     for i, s in SOURCES.items()]
)  # fmt: skip


def arm_row(case_id: str, **changes: Any) -> dict[str, Any]:
    row = {
        "arm": "student",
        "case_id": case_id,
        "repeat": 0,
        "answer": "Prompts above 6,000 tokens go to the teacher. [docs:config/1]",
        "refused": False,
        "citations": ["docs:config/1"],
        "error": None,
    }
    return row | changes


def grades_of(rows: list[dict[str, Any]], case_id: str) -> dict[str, tuple[float | None, str]]:
    frame = grade_answers(pl.DataFrame(rows, infer_schema_length=None), GOLDEN, CHUNKS)
    assert frame.schema == tables.GRADED_ANSWERS
    kept = frame.filter(pl.col("case_id") == case_id)
    return {row["metric"]: (row["value"], row["status"]) for row in kept.iter_rows(named=True)}


def test_grading_a_frame_gives_every_metric_a_row() -> None:
    grades = grades_of([arm_row("c1"), arm_row("c2")], "c1")
    assert set(grades) == {
        "exact_match", "refused", "cite_coverage", "cite_correctness", "cite_page_correctness",
        "groundedness",
    }  # fmt: skip
    assert grades.pop("refused") == (0, "graded")
    assert set(grades.values()) == {(1.0, "graded")}


def test_an_error_and_a_missing_answer_are_inconclusive_and_never_zero() -> None:
    failed = arm_row("c1", answer=None, refused=None, citations=None, error="deadline")
    for case_id, rows in (("c1", [failed, arm_row("c2")]), ("c2", [arm_row("c1")])):
        assert set(grades_of(rows, case_id).values()) == {(None, "inconclusive")}


def test_an_answer_to_an_unknown_case_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="unknown case 'c9'"):
        grades_of([arm_row("c9")], "c9")
