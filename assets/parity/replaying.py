"""Replay: what another router policy would have done with questions that were really asked.

Logged decisions are made anew by the router's own functions. An answer of the student that no log
holds is not invented: where the candidate asks it for the first time, its outcome is counted as
unobserved. Belongs here: the replay and the patch it proposes. Does not belong here: deciding
(`routes`), changing any configuration.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl
import yaml

from assets.parity.routes import VALID, choose_row_route, settle_route
from assets.statistics import Interval, wilson_interval
from serving.errors import InvalidInputError
from serving.models.protocols import ServedBy
from serving.pipeline.router import RouterPolicy

NOT_BY_RULE = ("explore", "canary", "budget", "breaker")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a policy does with one question. `served_by` is None where no log tells."""

    served_by: ServedBy | None
    reason: str
    cost_usd: float


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
        usd_per_1k_after: lower limit: no unobserved question falls back.
        usd_per_1k_after_worst: every unobserved question falls back.
        reasons_before: questions by logged reason.
        reasons_after: questions by the candidate's reason.
    """

    question_count: int
    teacher_ratio_before: Interval
    teacher_ratio_after: Interval
    to_teacher_count: int
    to_student_count: int
    unobserved_count: int
    usd_per_1k_before: float
    usd_per_1k_after: float
    usd_per_1k_after_worst: float
    reasons_before: Mapping[str, int]
    reasons_after: Mapping[str, int]


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
    rows = select_replayable(records).to_dicts()
    if not rows:
        raise InvalidInputError(
            "replaying a router policy",
            expected="answered questions in traces/trace_records",
            found=f"{records.height} records, none of them answered in routing",
            next_step="serve some traffic, then `understudy run --select traces`",
        )
    student_usd = _find_mean_student_usd(rows)
    decided = [(row, decide(row, policy, confidence_threshold, student_usd)) for row in rows]
    before = sum(row["served_by"] == "teacher" for row in rows)
    after = sum(decision.served_by == "teacher" for _, decision in decided)
    unobserved = [row for row, decision in decided if decision.served_by is None]
    paid = sum(decision.cost_usd for _, decision in decided)
    worst = paid + sum(row["counterfactual_cost_usd"] or 0.0 for row in unobserved)
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
        usd_per_1k_after=per_1k * paid,
        usd_per_1k_after_worst=per_1k * worst,
        reasons_before=dict(Counter(row["route_reason"] for row in rows)),
        reasons_after=dict(Counter(decision.reason for _, decision in decided)),
    )


def select_replayable(records: pl.DataFrame) -> pl.DataFrame:
    """Return production that a rule decided: answered, no shadow of another, not left to chance.

    What exploration, a canary, a spent budget or an open breaker decided says nothing of a rule.
    """
    return records.filter(
        pl.col("env") == "prod",
        pl.col("outcome") == "answered",
        pl.col("parent_trace_id").is_null(),
        pl.col("max_score").is_not_null(),
        pl.col("counterfactual_cost_usd").is_not_null(),
        ~pl.col("route_reason").is_in(NOT_BY_RULE),
    )


def decide(
    row: Mapping[str, Any],
    policy: RouterPolicy,
    confidence_threshold: float | None,
    student_usd: float,
) -> Decision:
    """Return what a policy does with one logged question.

    Where it decides as was logged, what came of it is what was logged: served by, and paid.
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


def _find_mean_student_usd(rows: list[dict[str, Any]]) -> float:
    paid = [
        attempt["cost_usd"] or 0.0
        for row in rows
        for attempt in row["attempts"] or []
        if attempt["role"] == "student"
    ]
    return sum(paid) / len(paid) if paid else 0.0


def write_patch(current: RouterPolicy, candidate: RouterPolicy) -> str:
    """Return the YAML that makes the candidate the configured router: only what differs."""
    changed = {
        name: getattr(candidate, name)
        for name in vars(candidate)
        if getattr(candidate, name) != getattr(current, name)
    }
    text: str = yaml.safe_dump({"router": changed}, sort_keys=False)
    return text
