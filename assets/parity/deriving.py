"""Deriving a routed arm from the teacher's and the student's own answers to the same cases.

The request path asks each model the same whether it was chosen by a rule or by an arm, so another
threshold needs no model: the router's own functions decide anew. Belongs here: what a decision
means for a case's answer, and what it costs. Does not belong here: deciding (`routes`), where
thresholds come from (`operating_points`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from assets.parity.arms import BASELINE, CANDIDATE, STUDENT
from assets.parity.routes import VALID, Thresholds, choose_row_route, settle_route
from serving.pipeline.router import Route

Row = Mapping[str, Any]

_SUMMED = ("prompt_tokens", "completion_tokens", "cost_usd")


def derive_arm(arm: str, rows: Sequence[Row], thresholds: Thresholds) -> list[dict[str, Any]]:
    """Return the arm_answers rows of a router with these thresholds.

    Args:
        arm: what the rows are named.
        rows: of the arms `teacher` and `student`, every repeat; others are passed over.
        thresholds: of this router.

    A case that lacks one of the two is left out.
    """
    of: dict[str, dict[tuple[str, int], Row]] = {BASELINE: {}, STUDENT: {}}
    for row in rows:
        if row["arm"] in of:
            of[row["arm"]][row["case_id"], row["repeat"]] = row
    return [
        {**derive_answer(teacher, of[STUDENT][key], thresholds), "arm": arm}
        for key, teacher in of[BASELINE].items()
        if key in of[STUDENT]
    ]


def derive_answer(teacher: Row, student: Row, thresholds: Thresholds) -> dict[str, Any]:
    """Return the row of one case as `AnswerPipeline` would have answered it in mode `routed`."""
    known = student if student.get("error") is None else teacher
    if known.get("error") is not None:
        return dict(teacher)  # both failed: whoever was asked, there is no answer
    is_usable = student.get("error") is None and student["verdict"] == VALID
    route, ending = settle_route(
        choose_row_route(known, thresholds.policy),
        is_valid=is_usable,
        confidence=student.get("confidence"),
        threshold=thresholds.confidence_threshold,
    )
    if ending == "fallback":
        return _fall_back(teacher, student, route, is_usable=is_usable)
    shown = teacher if ending == "teacher" else student
    if shown.get("error") is not None:
        return dict(shown)
    return {**shown, "route_reason": route.reason, "used_fallback": False}


def _fall_back(teacher: Row, student: Row, route: Route, *, is_usable: bool) -> dict[str, Any]:
    """Return what is shown when the teacher was asked after the student, both paid for."""
    has_teacher = teacher.get("error") is None
    if is_usable and not (has_teacher and teacher["verdict"] == VALID):
        shown = student  # doubted, but valid, and the teacher has nothing better
    elif not has_teacher:
        return dict(teacher)
    else:
        shown = teacher
    paid = [row for row in (student, teacher) if row.get("error") is None]
    summed = {name: sum(row[name] or 0 for row in paid) for name in _SUMMED}
    latency_ms, first_token_ms = None, shown.get("first_token_ms")
    if shown["latency_ms"] is not None:
        models_ms = [row["latency_ms"] - row["retrieval_ms"] for row in paid]
        latency_ms = shown["retrieval_ms"] + sum(models_ms)
        if first_token_ms is not None and shown is teacher:
            first_token_ms += sum(models_ms[:-1])  # the student was heard out before
    return {
        **shown,
        **summed,
        "route_reason": route.reason,
        "verdict": student["verdict"] if student.get("error") is None else "None",
        "confidence": student.get("confidence"),
        "used_fallback": True,
        "latency_ms": latency_ms,
        "first_token_ms": first_token_ms,
    }


def describe_routing(arm_answers: pl.DataFrame) -> dict[str, float]:
    """Return, of each routed arm, the share of cases that the teacher was asked, and fallbacks."""
    routed = arm_answers.filter(
        pl.col("arm").str.starts_with("routed"), pl.col("error").is_null(), repeat=0
    )
    is_asked = (pl.col("served_by") == "teacher") | pl.col("used_fallback")
    shares = routed.group_by("arm", maintain_order=True).agg(
        teacher=is_asked.mean(), fallback=pl.col("used_fallback").mean()
    )
    return {
        f"{row['arm']}_{name}_ratio": row[name]
        for row in shares.iter_rows(named=True)
        for name in ("teacher", "fallback")
    }


_DECIDED = ("answer", "served_by", "route_reason", "used_fallback", "verdict", "model")


def find_unequal_routes(arm_answers: pl.DataFrame, thresholds: Thresholds) -> list[str]:
    """Return the cases that the routed arm answered otherwise than is derived for it."""
    first = arm_answers.filter(repeat=0)
    derived = derive_arm(CANDIDATE, first.to_dicts(), thresholds)
    executed = {row["case_id"]: row for row in first.filter(arm=CANDIDATE).iter_rows(named=True)}
    return [
        row["case_id"]
        for row in derived
        if row["case_id"] in executed and _decide(row) != _decide(executed[row["case_id"]])
    ]


def _decide(row: Row) -> tuple[Any, ...]:
    """Return what a route decides; of a case without an answer, that there is none."""
    has_answer = row.get("error") is None
    return tuple(row[name] for name in _DECIDED) if has_answer else ("no answer",)
