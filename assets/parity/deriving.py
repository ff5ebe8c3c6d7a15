"""Deriving a routed arm from the teacher's and the student's own answers to the same cases.

The request path asks each model the same whether it was chosen by a rule or by an arm, so another
threshold needs no model: the router's own functions decide anew. Belongs here: what a decision
means for a case's answer, and what it costs. Does not belong here: deciding (`routes`), where
thresholds come from (`operating_points`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from assets.parity.arms import BASELINE, CANDIDATE, SMALLER, STUDENT
from assets.parity.routes import VALID, Thresholds, choose_row_route, settle_route
from serving.pipeline.router import Route, RouterPolicy

Row = Mapping[str, Any]

_SUMMED = ("prompt_tokens", "completion_tokens", "cost_usd")


def derive_arm(arm: str, rows: Sequence[Row], thresholds: Thresholds) -> list[dict[str, Any]]:
    """Return the arm_answers rows of a router with these thresholds.

    Args:
        arm: what the rows are named.
        rows: of the arms `teacher` and `student`, every repeat, and of `smaller` where that student
            is asked first; others are passed over.
        thresholds: of this router. Where nothing is certified for a smaller student, it is asked
            nothing.

    A case that lacks one of them is left out.
    """
    limits = {STUDENT: thresholds.confidence_threshold}
    if thresholds.smaller_threshold is not None:
        limits = {SMALLER: thresholds.smaller_threshold, **limits}
    of: dict[str, dict[tuple[str, int], Row]] = {name: {} for name in (BASELINE, *limits)}
    for row in rows:
        if row["arm"] in of:
            of[row["arm"]][row["case_id"], row["repeat"]] = row
    whole = [key for key in of[BASELINE] if all(key in of[name] for name in limits)]
    return [
        _derive_answer(
            of[BASELINE][key],
            [(of[name][key], limit) for name, limit in limits.items()],
            thresholds.policy,
        )
        | {"arm": arm}
        for key in whole
    ]


def _derive_answer(
    teacher: Row, students: Sequence[tuple[Row, float | None]], policy: RouterPolicy
) -> dict[str, Any]:
    """Return the row of one case as `AnswerPipeline` would have answered it in mode `routed`.

    `students` are rows in the order they are asked, each with the confidence it must reach.
    """
    known = next((row for row in (*(row for row, _ in students), teacher) if _has_text(row)), None)
    if known is None:
        return dict(teacher)  # all failed: whoever was asked, there is no answer
    route = choose_row_route(known, policy)
    if route.to == "teacher":
        return _show(teacher, [teacher], route)
    asked: list[Row] = []
    settled = route
    for row, threshold in students:
        asked.append(row)
        settled, ending = settle_route(
            route,
            is_valid=_is_usable(row),
            confidence=row.get("confidence"),
            threshold=threshold,
        )
        if ending == "student":
            return _show(row, asked, settled)
    asked.append(teacher)
    # Doubted, but valid, is shown where those asked after it have nothing better.
    return _show(next(filter(_is_usable, reversed(asked)), teacher), asked, settled)


def _show(shown: Row, asked: Sequence[Row], route: Route) -> dict[str, Any]:
    """Return the row of an answer, with what all who were asked cost and took."""
    if not _has_text(shown):
        return dict(shown)
    paid = [row for row in asked if _has_text(row)]
    latency_ms, first_token_ms = shown["latency_ms"], shown.get("first_token_ms")
    if latency_ms is not None:
        models_ms = [row["latency_ms"] - row["retrieval_ms"] for row in paid]
        latency_ms = shown["retrieval_ms"] + sum(models_ms)
        if first_token_ms is not None:  # those before it were heard out
            first_token_ms += sum(models_ms[: paid.index(shown)])
    students = [row for row in asked if row["arm"] != BASELINE]
    first = asked[0]
    return {
        **shown,
        **{name: sum(row[name] or 0 for row in paid) for name in _SUMMED},
        "route_reason": route.reason,
        "verdict": first["verdict"] if _has_text(first) else "None",
        "confidence": (students or [shown])[-1].get("confidence"),
        "used_fallback": len(students) not in {0, len(asked)},
        "latency_ms": latency_ms,
        "first_token_ms": first_token_ms,
    }


def _has_text(row: Row) -> bool:
    return row.get("error") is None


def _is_usable(row: Row) -> bool:
    return _has_text(row) and row["verdict"] == VALID


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
