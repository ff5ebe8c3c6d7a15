"""The router: three rules decide, in order, whether a question goes to the teacher.

A fourth looks at a valid answer of the student: one that it is not sure enough of goes to the
teacher after all. Belongs here: the decisions on one request. Does not belong here: thresholds
(config, release), calling models, fallbacks (`answer`).
"""

from dataclasses import dataclass, replace
from typing import Literal

from serving.models.protocols import ServedBy

RouteReason = Literal[
    "default", "long_context", "low_retrieval", "prefer_quality", "phase", "low_confidence"
]
Phase = Literal["hitchhiker", "switch"]


@dataclass(frozen=True, kw_only=True)
class RouterPolicy:
    """Thresholds of the rules.

    `long_context_tokens`: prompt and chunks above it go to the teacher (student's tokenizer).
    `min_retrieval_score`: a best cosine below it goes to the teacher.
    `maximum_risk_ratio`: the share of the student's answers that may be wrong: answers under the
    confidence certified for it go to the teacher. Where none is certified, or None, no answer does.
    """

    long_context_tokens: int = 6000
    min_retrieval_score: float = 0.55
    maximum_risk_ratio: float | None = 0.05


@dataclass(frozen=True, kw_only=True)
class Route:
    """Where a question goes and why."""

    to: ServedBy
    reason: RouteReason


def choose_route(
    *,
    prompt_tokens: int,
    max_score: float,
    prefer_quality: bool,
    phase: Phase,
    policy: RouterPolicy,
) -> Route:
    """Apply the rules in order; the first that holds sends the question to the teacher."""
    if phase == "hitchhiker":
        return Route(to="teacher", reason="phase")
    if prompt_tokens > policy.long_context_tokens:
        return Route(to="teacher", reason="long_context")
    if max_score < policy.min_retrieval_score:
        return Route(to="teacher", reason="low_retrieval")
    if prefer_quality:
        return Route(to="teacher", reason="prefer_quality")
    return Route(to="student", reason="default")


def doubt_answer(route: Route, confidence: float | None, threshold: float | None) -> Route:
    """Return the route of a valid student answer: with `low_confidence`, the teacher is asked too.

    Without a certified threshold nothing changes. With one, an answer whose confidence is unknown
    is doubted: nothing was certified about it.
    """
    if threshold is None or (confidence is not None and confidence >= threshold):
        return route
    return replace(route, reason="low_confidence")
