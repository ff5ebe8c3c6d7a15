"""The report: from kept answers to verdict and HTML, all arms, 10,000 resamples.

Run: `python -m bench.parity [--json] [--cases 150] [--arms 8] [--resamples 10000]`. The answers are
made up, in the proportions of a golden set: facts, citations, refusals and mistakes of every kind,
arms that fail on the same hard cases, a timed sample. Everything after the answers is the
product's own: answers are graded, the table built with its intervals, the gate decided, the router
swept and its figures drawn 10,000 times, money and kinds of question worked out, every section
described, the files written. No model is asked: neither the judge nor the embedder, whose scores
and vectors are made up too. Nobody else's report is beside it: the arms of this one are the
comparison.
"""

import argparse
import json
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from assets import tables
from assets.parity.answering import LATENCY_SAMPLE
from assets.parity.arms import ARMS, OPERATING_POINTS
from assets.parity.comparison import build_parity_table
from assets.parity.deriving import derive_arm
from assets.parity.exposure import slice_by_exposure
from assets.parity.graders import grade_answers
from assets.parity.metrics import RUBRIC_AXES
from assets.parity.report import ReportContents
from assets.parity.routes import Thresholds
from assets.releases.gate import decide
from assets.releases.gates import GatePolicy, IntegrityEvidence
from assets.releases.reporting import write_report
from assets.statistics import BOOTSTRAP_RESAMPLES
from bench.parity_worth import make_worth, measure_worth
from bench.retrieval import describe_machine
from serving.pipeline.router import RouterPolicy

SKILLS = {"teacher": 0.9, "teacher_again": 0.9, "base": 0.35, "few_shot": 0.6, "student": 0.8}
"""Chance of a right answer to a case of ordinary difficulty, by arm that is not derived."""

MILLISECONDS = {"teacher": 1900, "teacher_again": 1900, "base": 700, "few_shot": 1100,
                "student": 450}  # fmt: skip
PAGES = 30


def make_cases(count: int) -> pl.DataFrame:
    """Return golden cases in three buckets, five to a page."""
    rows = []
    for number in range(count):
        place = number / count
        bucket = "answerable" if place < 0.6 else "boundary" if place < 0.8 else "out_of_scope"
        refuses = bucket == "out_of_scope" or (bucket == "boundary" and number % 5 > 0)
        rows.append(
            {
                "case_id": f"g{number:04}",
                "bucket": bucket,
                "question": f"What is the limit of setting {number}, and where is it written?",
                "must_include": [] if refuses else [f"{number}00"],
                "gold_pages": [] if refuses else [f"reference/page-{number % PAGES}"],
                "gold_headings": [] if refuses else ["Limits"],
                "should_refuse": refuses,
            }
        )
    return pl.DataFrame(rows, schema={n: tables.GOLDEN_CASES[n] for n in rows[0]})


def make_chunks(count: int) -> pl.DataFrame:
    """Return the chunk each case is answered from, and as many that look like it."""
    rows = [
        {
            "chunk_id": f"docs:reference/page-{number % PAGES}/{number}",
            "heading_path": [f"Page {number % PAGES}", "Limits" if number < count else "Notes"],
            "text": f"The limit of setting {number % count} is {number}00 units. It is written in "
            "the configuration file and read when the server starts.",
        }
        for number in range(2 * count)
    ]
    return pl.DataFrame(rows)


def make_answers(cases: pl.DataFrame, draw: np.random.Generator) -> list[dict[str, Any]]:
    """Return the rows of every arm that models answer: repeat 0 of all, repeat 1 of a sample."""
    difficulty = draw.normal(0, 0.15, cases.height)
    sampled = set(range(0, cases.height, max(1, cases.height // LATENCY_SAMPLE)))
    rows = []
    for arm, skill in SKILLS.items():
        for number, case in enumerate(cases.iter_rows(named=True)):
            answer = _answer(arm, number, case, is_right=draw.random() < skill - difficulty[number])
            wait = float(MILLISECONDS[arm] * draw.lognormal(0, 0.4))
            rows.append(answer | {"repeat": 0, "latency_ms": None, "retrieval_ms": None})
            if number in sampled and sum(r["arm"] == arm and r["repeat"] for r in rows) < 20:
                rows.append(answer | {"repeat": 1, "latency_ms": wait + 8, "retrieval_ms": 8.0})
    routed = Thresholds(policy=RouterPolicy(), confidence_threshold=0.6)
    rows += derive_arm("routed", rows, routed)
    for point in OPERATING_POINTS:
        threshold = 2 * (point.teacher_ratio or 0.0)
        rows += derive_arm(
            point.name, rows, Thresholds(policy=RouterPolicy(), confidence_threshold=threshold)
        )
    return rows


def _answer(arm: str, number: int, case: dict[str, Any], *, is_right: bool) -> dict[str, Any]:
    chunk = f"docs:reference/page-{number % PAGES}/{number}"
    refused = case["should_refuse"] == is_right
    fact = f"{number}00" if is_right else f"{number}99"
    text = f"The limit of setting {number} is {fact} units. [{chunk}]"
    is_teacher = arm.startswith("teacher")
    shown = {"chunk_id": chunk, "content_hash": chunk, "score": 0.6 + (number % 30) / 100}
    return {
        "arm": arm, "case_id": case["case_id"], "question": case["question"], "refused": refused,
        "answer": f"I could not find this in the documentation: {case['question']}"
        if refused else text,
        "raw": text, "citations": [] if refused else [chunk], "retrieved": [shown],
        "served_by": "teacher" if is_teacher else "student", "route_reason": "default",
        "verdict": "valid" if is_right or number % 3 else "unsupported_statement",
        "confidence": None if is_teacher else (number * 37 % 100) / 100, "used_fallback": False,
        "model": arm, "prompt_tokens_estimate": 600, "prompt_tokens": 600,
        "completion_tokens": 40, "cost_usd": 0.0024 if is_teacher else 0.00004,
    }  # fmt: skip


def make_rubric(answers: pl.DataFrame, draw: np.random.Generator) -> pl.DataFrame:
    """Return a judge's scores of every first answer."""
    first = answers.filter(repeat=0).select("arm", "case_id")
    return pl.concat(
        [
            first.with_columns(
                axis=pl.lit(axis),
                score=pl.Series(draw.integers(3, 6, first.height), dtype=pl.Int32),
            )
            for axis in RUBRIC_AXES
        ]
    )


def measure(case_count: int, arm_count: int, resamples: int) -> dict[str, Any]:
    """Make the answers, then time everything that comes after them."""
    draw = np.random.default_rng(5)
    cases, chunks = make_cases(case_count), make_chunks(case_count)
    made = pl.DataFrame(make_answers(cases, draw), schema=tables.ARM_ANSWERS)
    required = {"teacher", "student", "routed"}
    others = [arm.name for arm in ARMS if arm.name not in required]
    kept = required | set(others[: max(0, arm_count - len(required))])
    answers = made.filter(pl.col("arm").is_in(sorted(kept)))
    rubric, worth = make_rubric(answers, draw), make_worth(cases, draw)
    seconds: dict[str, float] = {}
    started = last = time.perf_counter()
    worked = time.process_time()

    def note(step: str) -> None:
        nonlocal last
        seconds[step], last = time.perf_counter() - last, time.perf_counter()

    graded = grade_answers(answers.filter(repeat=0), cases, chunks)
    exposure = slice_by_exposure(cases, chunks, set(chunks["chunk_id"][: case_count // 2]))
    note("grade")
    report = build_parity_table(
        arm_answers=answers, graded_answers=graded, golden_cases=cases, rubric_scores=rubric,
        exposure=exposure, resamples=resamples,
    )  # fmt: skip
    note("compare")
    sound = IntegrityEvidence(
        golden_lock_matches=True, golden_case_count=case_count, training_question_count=900,
        leaked_question_count=0, calibrated_case_count=60, calibration_is_of_student=True,
        threshold="none is in force",
    )  # fmt: skip
    verdict = decide(report, integrity=sound, policy=GatePolicy())
    note("decide")
    points, sections = measure_worth(answers, worth, note)
    with tempfile.TemporaryDirectory() as folder:
        files = write_report(
            Path(folder),
            ReportContents(
                product="bench", recipe="made-up", generated_at="2026-01-01T00:00:00+00:00",
                parity_report=report, arm_answers=answers, graded_answers=graded,
                golden_cases=cases, chunks=chunks, leakage_cosine_limit=0.92, margin_ratio=0.10,
                verdict=verdict, guarded_questions=worth.guarded, operating_points=points,
                trained_question_ids=worth.trained_question_ids, sections=sections,
            ),
        )  # fmt: skip
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        html = files.html.stat().st_size
    note("write")
    return {
        "cases": case_count,
        "arms": answers["arm"].n_unique(),
        "resamples": resamples,
        "rows": report.height,
        "verdict": verdict.verdict,
        "sections": [section.title for section in sections],
        "html_kilobytes": round(html / 1000),
        "kilobytes": round(size / 1000),
        "seconds": {step: round(value, 2) for step, value in seconds.items()},
        "cpu_seconds": round(time.process_time() - worked, 2),
        "total_seconds": round(time.perf_counter() - started, 2),
    }


def main() -> None:
    """Print what a report takes, and on what."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cases", type=int, default=150)
    parser.add_argument("--arms", type=int, default=8)
    parser.add_argument("--resamples", type=int, default=BOOTSTRAP_RESAMPLES)
    options = parser.parse_args()
    found = measure(options.cases, options.arms, options.resamples)
    found["machine"] = describe_machine()
    found["versions"] = {"python": platform.python_version()} | {
        name: version(name) for name in ("numpy", "scipy", "statsmodels", "scikit-learn", "polars")
    }
    if options.json:
        print(json.dumps(found))
        return
    print(f"{found['arms']} arms, {found['cases']} cases, {found['resamples']:,} resamples: "
          f"{found['total_seconds']} s, {found['cpu_seconds']} s of CPU")  # fmt: skip
    print(f"  {found['machine']}")
    print("  " + ", ".join(f"{name} {number}" for name, number in found["versions"].items()))
    for step, value in found["seconds"].items():
        print(f"  {step:<8} {value:>7} s")
    print(f"  {found['rows']} rows, {found['html_kilobytes']} kB of HTML, "
          f"{found['kilobytes']} kB in all, {found['verdict']}")  # fmt: skip
    print(f"  sections beside parity: {', '.join(found['sections'])}")


if __name__ == "__main__":
    main()
