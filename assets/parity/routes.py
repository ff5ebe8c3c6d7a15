"""Routes decided anew: what the router makes of a question whose facts lie in a table.

Arms, held-out answers, paraphrases and logged traffic are all judged by these two functions, which
ask the request path's own. Belongs here: reading a row as the router reads a request. Does not
belong here: the rules (`serving/pipeline/router`), what follows from a route for an answer and its
cost (`deriving`, `replaying`), which thresholds to try (`operating_points`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from serving.models.protocols import Hit
from serving.pipeline.router import (
    Route,
    RouterPolicy,
    choose_route,
    doubt_answer,
    has_high_stakes,
)

VALID = "valid"
"""How a column of verdicts spells an answer that may be shown."""

Ending = Literal["teacher", "student", "fallback", "unknown"]
"""`teacher`: asked at once. `student`: its answer stands. `fallback`: the student was asked and the
teacher after it. `unknown`: the student is asked, and no table says what it would answer."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What a router decides by: the rules' policy, and the confidence under which it doubts.

    `smaller_threshold` is that of the student asked first, where it is certified; None: nobody is.
    """

    policy: RouterPolicy
    confidence_threshold: float | None
    smaller_threshold: float | None = None


def choose_row_route(
    row: Mapping[str, Any], policy: RouterPolicy, *, prefer_quality: bool = False
) -> Route:
    """Return where the rules send the question of a row, before anybody answers it.

    The row has `question`, `retrieved` and `prompt_tokens_estimate`; the best cosine is that of
    what was retrieved, or `max_score` where the row logs it.
    """
    hits = [Hit(**hit, text="", title="", url="") for hit in row["retrieved"] or ()]
    best = row.get("max_score")
    return choose_route(
        prompt_tokens=row["prompt_tokens_estimate"] or 0,
        max_score=max((hit.score for hit in hits), default=0.0) if best is None else best,
        prefer_quality=prefer_quality,
        phase="switch",
        policy=policy,
        is_high_stakes=has_high_stakes(row["question"] or "", hits, policy),
    )


def is_ruled_out(row: Mapping[str, Any], policy: RouterPolicy) -> bool:
    """Say whether a rule sends the question to the teacher however well its chunks match."""
    return choose_row_route(row, replace(policy, min_retrieval_score=-1.0)).to == "teacher"


def settle_route(
    route: Route, *, is_valid: bool | None, confidence: float | None, threshold: float | None
) -> tuple[Route, Ending]:
    """Return how a question ends that the rules have sent along `route`.

    Args:
        route: of the rules.
        is_valid: whether the student's answer may be shown; None: no table holds it.
        confidence: of that answer.
        threshold: below it a valid answer is doubted; None: none is.
    """
    if route.to == "teacher":
        return route, "teacher"
    if not is_valid:
        return route, "unknown" if is_valid is None else "fallback"
    doubted = doubt_answer(route, confidence, threshold)
    return doubted, "fallback" if doubted.reason == "low_confidence" else "student"
