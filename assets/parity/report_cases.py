"""The report's single cases: the worst losses side by side, and the nearest training questions.

Belongs here: choosing and arranging them. Does not belong here: grading (`graders`), HTML
(`report`).
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from assets.parity.arms import BASELINE
from assets.parity.formatting import format_value

MAXIMUM_WORST_CASES = 8
MAXIMUM_NEIGHBOURS = 12
SHOWN_CHUNK_CHARS = 420
DECIDING = ("exact_match", "groundedness", "cite_correctness")


def find_worst_cases(
    arm_answers: pl.DataFrame,
    graded_answers: pl.DataFrame,
    golden_cases: pl.DataFrame,
    chunk_table: pl.DataFrame,
) -> list[dict[str, Any]]:
    """Return the cases the student loses to the teacher, worst first, with answers and chunks."""
    grades: dict[str, dict[str, dict[str, tuple[float | None, str]]]] = {}
    for row in graded_answers.iter_rows(named=True):
        if row["metric"].startswith("rubric"):
            continue
        by_arm = grades.setdefault(row["case_id"], {}).setdefault(row["arm"], {})
        by_arm.setdefault(row["metric"], (row["value"], row["detail"]))
    gaps = {case_id: _measure_gap(of_case) for case_id, of_case in grades.items()}
    worst = sorted((c for c, gap in gaps.items() if any(g > 0 for g in gap)),
                   key=lambda c: (tuple(-g for g in gaps[c]), c))  # fmt: skip
    answers = {
        (row["arm"], row["case_id"]): row
        for row in arm_answers.sort("repeat", descending=True).iter_rows(named=True)
    }
    cases = {row["case_id"]: row for row in golden_cases.iter_rows(named=True)}
    chunks = {row["chunk_id"]: row for row in chunk_table.iter_rows(named=True)}
    return [
        {
            **{name: cases[case_id][name] for name in ("case_id", "bucket", "question")},
            "should_refuse": cases[case_id]["should_refuse"],
            "must_include": list(cases[case_id]["must_include"] or ()),
            "sides": [
                _view_side(arm, answers.get((arm, case_id)), grades[case_id].get(arm, {}), chunks)
                for arm in (BASELINE, "student")
            ],
        }
        for case_id in worst[:MAXIMUM_WORST_CASES]
    ]


def _measure_gap(
    of_case: Mapping[str, Mapping[str, tuple[float | None, str]]],
) -> tuple[float, ...]:
    """Return teacher minus student on the metrics that decide, 0 where either said nothing."""
    gaps = []
    for metric in DECIDING:
        pair = [of_case.get(arm, {}).get(metric, (None, ""))[0] for arm in (BASELINE, "student")]
        gaps.append(0.0 if pair[0] is None or pair[1] is None else pair[0] - pair[1])
    return tuple(gaps)


def _view_side(
    arm: str,
    answer: dict[str, Any] | None,
    grades: Mapping[str, tuple[float | None, str]],
    chunks: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    cited = [] if answer is None else [*dict.fromkeys(answer["citations"] or ())]
    return {
        "arm": arm,
        "answer": (answer or {}).get("answer") or "",
        "error": (answer or {}).get("error"),
        "refused": bool((answer or {}).get("refused")),
        "grades": [
            {"name": name, "value": format_value(grades[name][0], "ratio")}
            for name in DECIDING
            if name in grades
        ],
        "details": list(dict.fromkeys(g[1] for g in grades.values() if g[1] and g[0] is not None)),
        "chunks": [_view_chunk(chunk_id, chunks.get(chunk_id)) for chunk_id in cited],
    }


def _view_chunk(chunk_id: str, chunk: dict[str, Any] | None) -> dict[str, str]:
    text = "" if chunk is None else chunk["text"]
    shortened = text if len(text) <= SHOWN_CHUNK_CHARS else text[:SHOWN_CHUNK_CHARS] + "…"
    path = " > ".join(chunk["heading_path"] or ()) if chunk else "not in this corpus"
    return {"chunk_id": chunk_id, "heading": path, "text": shortened}


def find_neighbours(
    guarded: pl.DataFrame | None, golden_cases: pl.DataFrame
) -> list[dict[str, Any]]:
    """Return the golden cases that training questions come nearest to, each with its nearest."""
    wanted = {"text", "nearest_case_id", "nearest_cosine", "verdict"}
    if guarded is None or not wanted <= set(guarded.columns):
        return []
    nearest = (
        guarded.filter(pl.col("verdict") == "kept", pl.col("nearest_cosine").is_not_null())
        .sort("nearest_cosine", "text", descending=[True, False])
        .unique("nearest_case_id", keep="first", maintain_order=True)
        .head(MAXIMUM_NEIGHBOURS)
    )
    questions = dict(golden_cases.select("case_id", "question").iter_rows())
    return [
        {
            "case_id": row["nearest_case_id"],
            "question": questions.get(row["nearest_case_id"], ""),
            "trained_on": row["text"],
            "cosine": row["nearest_cosine"],
        }
        for row in nearest.iter_rows(named=True)
    ]
