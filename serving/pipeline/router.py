"""The router: rules decide, in order, whether a question goes to the teacher.

Then chance may have its say (`canary`, exploration), then what stands in the way of the model that
was chosen. A last rule looks at a valid answer of a student: one that it is not sure enough of goes
to the next model after all. Belongs here: the decisions on one request. Does not belong here:
thresholds (config, release), drawing lots (`canary`), calling models, fallbacks (`answer`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from serving.models.protocols import Hit, ServedBy

RouteReason = Literal[
    "default", "long_context", "low_retrieval", "prefer_quality", "phase", "low_confidence",
    "high_stakes", "explore", "canary", "budget", "breaker",
]  # fmt: skip
Phase = Literal["hitchhiker", "imposter", "switch", "dreamer"]
"""`hitchhiker`: the teacher answers all. `imposter`: so it does, and the student answers in shadow.
`switch`: the router decides. `dreamer`: so it does, and the factory may write questions of its own
where the student is weak."""

Obstacle = Literal["budget", "breaker"]
"""Why a model is not asked: its share is spent, or it failed too often just now."""

ROUTED_PHASES: frozenset[Phase] = frozenset({"switch", "dreamer"})
DETOURS: frozenset[RouteReason] = frozenset({"budget", "breaker"})
"""Reasons under which nobody is left to fall back to."""
_TEACHER_ONLY: frozenset[RouteReason] = frozenset({"phase", "high_stakes"})


@dataclass(frozen=True, kw_only=True)
class RouterPolicy:
    """Thresholds of the rules. Ratios are 0-1; 0 switches exploration off.

    `long_context_tokens`: prompt and chunks above it go to the teacher (student's tokenizer).
    `min_retrieval_score`: a best cosine below it goes to the teacher.
    `maximum_risk_ratio`: the share of the student's answers that may be wrong: answers under the
    confidence certified for it go to the teacher. Where none is certified, or None, no answer does.
    `high_stakes_pages`: slug prefixes, by whole parts; a best hit below one goes to the teacher.
    `high_stakes_terms`: words or phrases; a question that holds one goes to the teacher.
    `explore_ratio`: of production questions no rule decides, the share the teacher answers, so that
    what is known of it is not confined to the hard ones.
    `canary_ratio`: of conversations no rule decides, the share the student answers; the others are
    the control, which the teacher answers. None: no canary, the student answers all.
    """

    long_context_tokens: int = 6000
    min_retrieval_score: float = 0.55
    maximum_risk_ratio: float | None = 0.05
    high_stakes_pages: tuple[str, ...] = ()
    high_stakes_terms: tuple[str, ...] = ()
    explore_ratio: float = 0.0
    canary_ratio: float | None = None

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        for name in ("explore_ratio", "canary_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is a share: expected 0-1, found {value}")


@dataclass(frozen=True, kw_only=True)
class Route:
    """Where a question goes and why. `propensity` is the chance that it went there."""

    to: ServedBy
    reason: RouteReason
    propensity: float = 1.0
    canary_arm: ServedBy | None = None
    """The side of the canary its conversation is on; None: no canary, or a rule decided."""


def choose_route(
    *,
    prompt_tokens: int,
    max_score: float,
    prefer_quality: bool,
    phase: Phase,
    policy: RouterPolicy,
    is_high_stakes: bool = False,
) -> Route:
    """Apply the rules in order; the first that holds sends the question to the teacher.

    High stakes come before the rules whose teacher the student may stand in for.
    """
    if phase not in ROUTED_PHASES:
        return Route(to="teacher", reason="phase")
    if is_high_stakes:
        return Route(to="teacher", reason="high_stakes")
    if prompt_tokens > policy.long_context_tokens:
        return Route(to="teacher", reason="long_context")
    if max_score < policy.min_retrieval_score:
        return Route(to="teacher", reason="low_retrieval")
    if prefer_quality:
        return Route(to="teacher", reason="prefer_quality")
    return Route(to="student", reason="default")


def has_high_stakes(question: str, hits: Sequence[Hit], policy: RouterPolicy) -> bool:
    """Say whether a question touches a topic whose mistakes cost more than any saving."""
    words = question.casefold()
    if any(
        re.search(rf"(?<!\w){re.escape(term.casefold())}(?!\w)", words)
        for term in policy.high_stakes_terms
    ):
        return True
    return any(is_below(hit, page) for hit in hits[:1] for page in policy.high_stakes_pages)


def is_below(hit: Hit, page: str) -> bool:
    """Say whether a chunk stands on a page, or below it: a slug prefix by whole parts."""
    slug = hit.chunk_id.removeprefix("docs:").rpartition("/")[0]
    return f"{slug}/".startswith(f"{page.strip('/')}/")


def draw_route(
    route: Route, policy: RouterPolicy, *, explore_draw: float | None, canary_draw: float | None
) -> Route:
    """Let chance decide on a question that no rule decided; each draw is in [0, 1).

    Args:
        route: what the rules say.
        policy: the shares.
        explore_draw: of this question; None: it is not explored.
        canary_draw: of its conversation; None: no canary.
    """
    if route.reason != "default":
        return route
    if policy.canary_ratio is not None and canary_draw is not None:
        is_student = canary_draw < policy.canary_ratio
        share = policy.canary_ratio if is_student else 1 - policy.canary_ratio
        arm: ServedBy = "student" if is_student else "teacher"
        route = Route(to=arm, reason="canary", propensity=share, canary_arm=arm)
    if route.to == "teacher" or explore_draw is None or policy.explore_ratio == 0:
        return route
    if explore_draw < policy.explore_ratio:
        chance = route.propensity * policy.explore_ratio
        return replace(route, to="teacher", reason="explore", propensity=chance)
    return replace(route, propensity=route.propensity * (1 - policy.explore_ratio))


def detour(route: Route, obstacle: Obstacle | None, *, has_student: bool) -> Route:
    """Return the way around an obstacle; what only the teacher may answer has none."""
    if obstacle is None:
        return route
    if route.to == "student":
        return replace(route, to="teacher", reason=obstacle)
    if route.reason in _TEACHER_ONLY or not has_student:
        return route
    return replace(route, to="student", reason=obstacle)


def doubt_answer(route: Route, confidence: float | None, threshold: float | None) -> Route:
    """Return the route of a valid student answer: with `low_confidence`, the next model is asked.

    Without a certified threshold nothing changes. With one, an answer whose confidence is unknown
    is doubted: nothing was certified about it.
    """
    if threshold is None or (confidence is not None and confidence >= threshold):
        return route
    return replace(route, reason="low_confidence")
