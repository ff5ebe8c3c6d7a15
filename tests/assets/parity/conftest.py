"""A small made-up evaluation: 30 answerable, 10 boundary and 10 out-of-scope cases, three arms."""

from typing import Any

import polars as pl
import pytest

from assets.parity.comparison import build_parity_table
from assets.parity.exposure import slice_by_exposure
from assets.parity.graders import grade_answers
from assets.parity.metrics import RUBRIC_AXES

PAGES = ("quickstart", "configuration", "serving")
NASTY = "<script>alert('x')</script>"


def _golden_case(number: int) -> dict[str, Any]:
    bucket = "answerable" if number < 30 else "boundary" if number < 40 else "out_of_scope"
    is_answerable = number < 35
    return {
        "case_id": f"g{number:03}",
        "bucket": bucket,
        "question": f"What does option {number} do? {NASTY if number == 3 else ''}",
        "must_include": [f"option {number} is {number}00"] if is_answerable else [],
        "gold_pages": [PAGES[number % 3]] if is_answerable else [],
        "gold_headings": ["Options"] if is_answerable else [],
        "should_refuse": not is_answerable,
    }


@pytest.fixture(scope="session")
def golden_cases() -> pl.DataFrame:
    return pl.DataFrame(
        [_golden_case(number) for number in range(50)],
        schema_overrides={
            name: pl.List(pl.String) for name in ("must_include", "gold_pages", "gold_headings")
        },
    )


@pytest.fixture(scope="session")
def chunks() -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "chunk_id": f"docs:{PAGES[number % 3]}/{number}",
                "heading_path": [PAGES[number % 3].title(), "Options"],
                "text": f"Option {number} is {number}00. {NASTY}",
                "url": f"https://docs.example/{PAGES[number % 3]}#options",
            }
            for number in range(35)
        ]
    )


def _answer(arm: str, case: dict[str, Any], number: int) -> dict[str, Any]:
    """The teacher is always right, the student fails every tenth case, routed every twentieth."""
    fails = {"teacher": False, "student": number % 10 == 3, "routed": number % 20 == 3}[arm]
    chunk = f"docs:{PAGES[number % 3]}/{number}"
    text = f"Option {number} is {number}{'99' if fails else '00'}. [{chunk}]"
    if fails:
        text += f" {NASTY}"
    refused = case["should_refuse"] != fails if case["should_refuse"] else False
    by = "teacher" if arm == "teacher" or (arm == "routed" and number % 5 == 4) else "student"
    return {
        "arm": arm,
        "case_id": case["case_id"],
        "repeat": 0,
        "question": case["question"],
        "answer": "I could not find this in the documentation: it" if refused else text,
        "refused": refused,
        "citations": [] if refused else [chunk],
        "retrieved": [{"chunk_id": name} for name in (chunk, "docs:serving/2")],
        "served_by": by,
        "route_reason": "low_retrieval" if by == "teacher" and arm == "routed" else "default",
        "verdict": "valid",
        "used_fallback": False,
        "model": f"{by}-1",
        "prompt_tokens": 500,
        "completion_tokens": 20,
        "cost_usd": 0.012 if by == "teacher" else 0.001,
        "latency_ms": (900.0 if by == "teacher" else 300.0) + number,
        "error": None,
    }


@pytest.fixture(scope="session")
def arm_answers(golden_cases: pl.DataFrame) -> pl.DataFrame:
    rows = [
        _answer(arm, case, number)
        for arm in ("teacher", "student", "routed")
        for number, case in enumerate(golden_cases.iter_rows(named=True))
    ]
    return pl.DataFrame(
        rows, infer_schema_length=None, schema_overrides={"repeat": pl.Int32, "error": pl.String}
    )


@pytest.fixture(scope="session")
def rubric_scores(arm_answers: pl.DataFrame) -> pl.DataFrame:
    rows = [
        {
            "arm": row["arm"],
            "case_id": row["case_id"],
            "axis": axis,
            "score": 3 if "99." in row["answer"] else 5,
        }
        for row in arm_answers.iter_rows(named=True)
        for axis in RUBRIC_AXES
    ]
    return pl.DataFrame(rows)


@pytest.fixture(scope="session")
def graded_answers(
    arm_answers: pl.DataFrame, golden_cases: pl.DataFrame, chunks: pl.DataFrame
) -> pl.DataFrame:
    return grade_answers(arm_answers, golden_cases, chunks)


@pytest.fixture(scope="session")
def exposure(golden_cases: pl.DataFrame, chunks: pl.DataFrame) -> pl.DataFrame:
    """The student trained on the chunks of the page `quickstart` alone."""
    seen = {i for i in chunks["chunk_id"] if i.startswith("docs:quickstart/")}
    return slice_by_exposure(golden_cases, chunks, seen)


@pytest.fixture(scope="session")
def parity_report(
    arm_answers: pl.DataFrame,
    graded_answers: pl.DataFrame,
    golden_cases: pl.DataFrame,
    rubric_scores: pl.DataFrame,
    exposure: pl.DataFrame,
) -> pl.DataFrame:
    return build_parity_table(
        arm_answers=arm_answers,
        graded_answers=graded_answers,
        golden_cases=golden_cases,
        rubric_scores=rubric_scores,
        exposure=exposure,
        resamples=500,
    )
