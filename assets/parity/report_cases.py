"""The report's single cases: the worst losses side by side, and the nearest training questions.

Belongs here: choosing and arranging them. Does not belong here: grading (`graders`), HTML
(`report`).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import polars as pl

from assets.parity.arms import BASELINE

MAXIMUM_WORST_CASES = 8
MAXIMUM_NEIGHBOURS = 12
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
    """Return one arm's answer. One that cites nothing is shown with what was retrieved for it."""
    found = answer or {}
    cited = [*dict.fromkeys(found.get("citations") or ())]
    shown = cited or [hit["chunk_id"] for hit in found.get("retrieved") or ()]
    return {
        "arm": arm,
        "answer": found.get("answer") or "",
        "error": found.get("error"),
        "refused": bool(found.get("refused")),
        "grades": {name: grades[name][0] for name in DECIDING if name in grades},
        "details": list(dict.fromkeys(g[1] for g in grades.values() if g[1] and g[0] is not None)),
        "chunks_are": "cited" if cited else "retrieved",
        "chunks": [_view_chunk(chunk_id, chunks.get(chunk_id)) for chunk_id in shown],
    }


def _view_chunk(chunk_id: str, chunk: dict[str, Any] | None) -> dict[str, str]:
    path = " > ".join(chunk["heading_path"] or ()) if chunk else "not in this corpus"
    return {"chunk_id": chunk_id, "heading": path, "text": chunk["text"] if chunk else ""}


def tabulate_worst_cases(cases: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Return the worst cases as a table: one row per case and side."""
    rows = [
        {name: value for name, value in case.items() if name != "sides"}
        | {name: value for name, value in side.items() if name != "grades"}
        | {name: side["grades"].get(name) for name in DECIDING}
        for case in cases
        for side in case["sides"]
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def find_neighbours(
    guarded: pl.DataFrame | None,
    protected_cases: pl.DataFrame,
    trained_question_ids: Collection[str],
) -> list[dict[str, Any]]:
    """Return the protected cases that the student's training came nearest to, each with what did.

    Args:
        guarded: guarded_questions; more were let through than this student was taught.
        protected_cases: case_id, question and suite of the golden cases and those of the suites.
        trained_question_ids: questions of the examples that the student learned from.
    """
    wanted = {"question_id", "text", "nearest_case_id", "nearest_cosine", "verdict"}
    if guarded is None or not wanted <= set(guarded.columns):
        return []
    nearest = (
        guarded.filter(
            pl.col("verdict") == "kept",
            pl.col("nearest_cosine").is_not_null(),
            pl.col("question_id").is_in(list(trained_question_ids)),
        )
        .sort("nearest_cosine", "text", descending=[True, False])
        .unique("nearest_case_id", keep="first", maintain_order=True)
        .head(MAXIMUM_NEIGHBOURS)
    )
    return [
        {
            "case_id": row["nearest_case_id"],
            "suite": row["suite"],
            "question": row["question"],
            "trained_on": row["text"],
            "cosine": row["nearest_cosine"],
        }
        for row in nearest.join(
            protected_cases, left_on="nearest_case_id", right_on="case_id", how="left",
            maintain_order="left",
        ).iter_rows(named=True)
    ]  # fmt: skip
