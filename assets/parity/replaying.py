"""Replay: what another router policy would have done with questions that were really asked.

Logged decisions are made anew by the router's own functions. An answer of the student that no log
holds is not invented: where the candidate asks it for the first time, its outcome is counted as
unobserved. Belongs here: the replay and the patch it proposes. Does not belong here: deciding
(`routes`), changing any configuration.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import yaml

from assets.parity.routes import VALID, choose_row_route, settle_route
from assets.statistics import Interval, wilson_interval
from serving.errors import InvalidInputError
from serving.models.protocols import ServedBy
from serving.pipeline.router import RouterPolicy

NOT_BY_RULE = ("phase", "explore", "canary", "budget", "breaker")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a policy does with one question. `served_by` is None where no log tells.

    So is `cost_usd`, where moreover no log holds what a call of the student costs.
    """

    served_by: ServedBy | None
    reason: str
    cost_usd: float | None


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A candidate policy beside what was logged.

    Attributes:
        question_count: replayed.
        teacher_ratio_before: share of questions that the teacher answered, as logged.
        teacher_ratio_after: the same under the candidate; unobserved ones count as the student's.
        to_teacher_count: answered by the student, and now the teacher's.
        to_student_count: answered by the teacher, and now asked of the student.
        unobserved_count: of the latter, those whose student answer no log holds: it may be invalid
            or doubted, and then the teacher is paid after all.
        usd_per_1k_before: as logged.
        usd_per_1k_after: lower limit: no unobserved question falls back. None: the candidate asks
            the student, and no log holds a call of it.
        usd_per_1k_after_worst: every unobserved question falls back; None likewise.
        reasons_before: questions by logged reason.
        reasons_after: questions by the candidate's reason.
        left_out: answered questions that no rule decided, by what did.
    """

    question_count: int
    teacher_ratio_before: Interval
    teacher_ratio_after: Interval
    to_teacher_count: int
    to_student_count: int
    unobserved_count: int
    usd_per_1k_before: float
    usd_per_1k_after: float | None
    usd_per_1k_after_worst: float | None
    reasons_before: Mapping[str, int]
    reasons_after: Mapping[str, int]
    left_out: Mapping[str, int]


def replay_policy(
    records: pl.DataFrame, policy: RouterPolicy, *, confidence_threshold: float | None
) -> Replay:
    """Decide logged questions anew.

    Args:
        records: trace_records; shadow answers and questions without an answer are passed over.
        policy: the candidate.
        confidence_threshold: below it a valid answer of the student is doubted; None: none is.

    Raises:
        InvalidInputError: no record can be replayed.
    """
    rows, left_out = select_replayable(records)
    if not rows:
        decided_by = ", ".join(f"{count} by {reason}" for reason, count in left_out.items())
        raise InvalidInputError(
            "replaying a router policy",
            expected="answered questions in traces/trace_records that a rule of the router decided",
            found=f"{records.height} records, none of them decided by a rule"
            f"{f' ({decided_by})' if decided_by else ''}",
            next_step="serve some traffic in the phase switch, then `understudy run --select "
            "traces`",
        )
    student_usd = _find_mean_student_usd(rows)
    decided = [(row, decide(row, policy, confidence_threshold, student_usd)) for row in rows]
    before = sum(row["served_by"] == "teacher" for row in rows)
    after = sum(decision.served_by == "teacher" for _, decision in decided)
    unobserved = [row for row, decision in decided if decision.served_by is None]
    paid = _sum_known([decision.cost_usd for _, decision in decided])
    if_all_fall_back = sum(row["counterfactual_cost_usd"] for row in unobserved)
    per_1k = 1000 / len(rows)
    return Replay(
        question_count=len(rows),
        teacher_ratio_before=wilson_interval(before, len(rows)),
        teacher_ratio_after=wilson_interval(after, len(rows)),
        to_teacher_count=sum(
            row["served_by"] == "student" and decision.served_by == "teacher"
            for row, decision in decided
        ),
        to_student_count=sum(
            row["served_by"] == "teacher" and decision.served_by != "teacher"
            for row, decision in decided
        ),
        unobserved_count=len(unobserved),
        usd_per_1k_before=per_1k * sum(row["cost_usd"] or 0.0 for row in rows),
        usd_per_1k_after=None if paid is None else per_1k * paid,
        usd_per_1k_after_worst=None if paid is None else per_1k * (paid + if_all_fall_back),
        reasons_before=dict(Counter(row["route_reason"] for row in rows)),
        reasons_after=dict(Counter(decision.reason for _, decision in decided)),
        left_out=left_out,
    )


def select_replayable(records: pl.DataFrame) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return production that a rule decided, and how much of it something else did.

    Answered, and no shadow of another. What the phase, exploration, a canary, a spent budget or an
    open breaker decided says nothing of a rule.
    """
    answered = records.filter(
        pl.col("env") == "prod",
        pl.col("outcome") == "answered",
        pl.col("parent_trace_id").is_null(),
        pl.col("max_score").is_not_null(),
        pl.col("counterfactual_cost_usd").is_not_null(),
    )
    by_rule = ~pl.col("route_reason").is_in(NOT_BY_RULE)
    others = answered.filter(~by_rule)["route_reason"].value_counts().sort("route_reason")
    return answered.filter(by_rule).to_dicts(), dict(others.iter_rows())


def _sum_known(costs: Sequence[float | None]) -> float | None:
    """Return the sum; None where one of them is not known."""
    known = [cost for cost in costs if cost is not None]
    return sum(known) if len(known) == len(costs) else None


def decide(
    row: Mapping[str, Any],
    policy: RouterPolicy,
    confidence_threshold: float | None,
    student_usd: float | None,
) -> Decision:
    """Return what a policy does with one logged question.

    Where it decides as was logged, what came of it is what was logged: served by, and paid.
    `student_usd` is what a call of the student costs that no log holds; None: nobody knows.
    """
    asked = [attempt for attempt in row["attempts"] or [] if attempt["role"] == "student"]
    has_valid = any(attempt["verdict"] == VALID for attempt in asked)
    route, ending = settle_route(
        choose_row_route(row, policy, prefer_quality=bool(row["escalation_granted"])),
        is_valid=has_valid if asked else None,
        confidence=row["confidence"],
        threshold=confidence_threshold,
    )
    paid = sum(attempt["cost_usd"] or 0.0 for attempt in asked)
    if ending == "unknown":
        return Decision(served_by=None, reason="unobserved", cost_usd=student_usd)
    if ending == "teacher":
        return _ask_teacher(row, route.reason, paid_usd=0.0, as_logged=not asked)
    was_doubted = has_valid and row["route_reason"] == "low_confidence"
    if ending == "student" and was_doubted:
        return Decision(served_by="student", reason=route.reason, cost_usd=paid)
    is_doubted = has_valid and ending == "fallback"
    return _ask_teacher(row, route.reason, paid_usd=paid, as_logged=is_doubted == was_doubted)


def _ask_teacher(
    row: Mapping[str, Any], reason: str, *, paid_usd: float, as_logged: bool
) -> Decision:
    """Return the outcome that was logged, or that of the teacher asked beside what was paid."""
    if as_logged:
        return Decision(served_by=row["served_by"], reason=reason, cost_usd=row["cost_usd"] or 0.0)
    teacher_usd = row["counterfactual_cost_usd"] or 0.0
    return Decision(served_by="teacher", reason=reason, cost_usd=paid_usd + teacher_usd)


def _find_mean_student_usd(rows: list[dict[str, Any]]) -> float | None:
    """Return what a logged call of the student cost on average; None where none was logged."""
    paid = [
        attempt["cost_usd"] or 0.0
        for row in rows
        for attempt in row["attempts"] or []
        if attempt["role"] == "student"
    ]
    return sum(paid) / len(paid) if paid else None


def write_patch(current: RouterPolicy, candidate: RouterPolicy) -> str:
    """Return the YAML that makes the candidate the configured router: only what differs."""
    changed = {
        name: getattr(candidate, name)
        for name in vars(candidate)
        if getattr(candidate, name) != getattr(current, name)
    }
    text: str = yaml.safe_dump({"router": changed}, sort_keys=False)
    return text
