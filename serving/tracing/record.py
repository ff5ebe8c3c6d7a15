"""The trace record: one per question that reached the pipeline, with all that later stages ask.

Belongs here: the declared fields and how an `Answered` fills them. Does not belong here: how
records reach the disk (`segments`), admission to training beyond the first cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Literal

import uuid6

from serving.hashing import content_hash
from serving.models.protocols import Hit, Price, ServedBy
from serving.pipeline.answered import Answered, Attempt, Progress, has_fallback
from serving.pipeline.questions import normalise_question
from serving.pipeline.router import Route, RouteReason
from serving.tracing.clients import ClientKind
from serving.tracing.scrub import scrub

SelectionMode = Literal["rule", "forced", "explore", "fallback", "shadow"]


@dataclass(frozen=True, kw_only=True)
class TracedHit:
    """A retrieved chunk, by identity."""

    chunk_id: str
    content_hash: str
    score: float


@dataclass(frozen=True, kw_only=True)
class TracedAttempt:
    """One call of one model. Null: this engine does not say, or the call failed."""

    role: ServedBy
    model: str
    adapter_sha: str | None
    started_ms: float
    latency_ms: float
    first_token_ms: float | None
    queue_ms: float | None
    adapter_load_ms: float | None
    cold_start: bool | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float
    finish_reason: str | None
    error: str | None
    verdict: str | None


@dataclass(frozen=True, kw_only=True)
class Escalation:
    """Whether the caller asked for the expensive model, by field or by prefix, and got it.

    `insists`: by a field, so that no other model will do. It is not stored.
    """

    requested: bool = False
    granted: bool = False
    insists: bool = False


NO_ESCALATION = Escalation()


@dataclass(frozen=True, kw_only=True)
class TraceRecord:
    """One request. What this release cannot know yet is null: it keeps its place in the schema.

    `question`, `answer`, `conversation_id` and errors are scrubbed; `question_hash` is the hash of
    the scrubbed question, so no personal data can be guessed back from it. `outcome` is `answered`
    or the name of the problem the user was shown.
    """

    trace_id: str
    asked_at: str
    env: str
    surface: str = "api"
    client_kind: ClientKind | None = None
    key_id: str | None = None
    conversation_id: str | None
    question: str
    question_hash: str
    prompt_version: str
    release_id: str
    snapshot_hash: str
    index_fingerprint: str
    embedder_fingerprint: str
    retrieved: tuple[TracedHit, ...] = ()
    max_score: float | None = None
    prompt_tokens_estimate: int | None = None
    phase: str
    route: ServedBy | None = None
    route_reason: RouteReason | None = None
    selection_mode: SelectionMode
    propensity: float = 1.0
    attempts: tuple[TracedAttempt, ...] = ()
    served_by: ServedBy | None = None
    model: str | None = None
    answer: str | None = None
    citations: tuple[str, ...] = ()
    refused: bool | None = None
    confidence: float | None = None
    total_latency_ms: float
    overhead_ms: float | None = None
    cost_usd: float = 0.0
    counterfactual_cost_usd: float = 0.0
    escalation_requested: bool
    escalation_granted: bool
    trainable: bool
    trainable_reason: str
    outcome: str = "answered"
    parent_trace_id: str | None = None
    """Of a shadow's record: the question it was asked again from."""
    canary_arm: ServedBy | None = None
    """The side of the canary the conversation is on; null: none, or a rule decided."""
    skill: str | None = None
    """The skill it was a question for; null: none."""


TRACE_FIELDS = tuple(f.name for f in fields(TraceRecord))


@dataclass(frozen=True, kw_only=True)
class TraceOrigin:
    """What every record of one loaded release has in common."""

    env: str
    release_id: str
    phase: str
    prompt_version: str
    snapshot_hash: str
    index_fingerprint: str
    embedder_fingerprint: str
    teacher_price: Price
    adapter_shas: Mapping[str, str] = field(default_factory=dict)
    """Of each student, by the name it answers with."""


def new_trace_id() -> str:
    """Return a uuid7: unique, and sortable by time."""
    return str(uuid6.uuid7())


def build_record(
    answered: Answered,
    *,
    origin: TraceOrigin,
    trace_id: str,
    asked_at: datetime,
    client_kind: ClientKind | None = None,
    key_id: str | None = None,
    conversation_id: str | None = None,
    escalation: Escalation = NO_ESCALATION,
    shadow_of: str | None = None,
) -> TraceRecord:
    """Describe an answered request; `shadow_of` is the trace that a shadow's answer belongs to."""
    unanswered = build_failure_record(
        answered.question,
        origin=origin,
        trace_id=trace_id,
        asked_at=asked_at,
        outcome="answered",
        total_ms=answered.total_ms,
        client_kind=client_kind,
        key_id=key_id,
        conversation_id=conversation_id,
        escalation=escalation,
    )
    attempts = _trace_attempts(answered.attempts, answered.total_ms, origin.adapter_shas)
    known_ms = answered.retrieval_ms + sum(a.latency_ms for a in attempts)
    trainable_reason = _judge_trainable(
        env=origin.env, is_escalated=escalation.requested, is_shadow=shadow_of is not None
    )
    return replace(
        unanswered,
        retrieved=_trace_hits(answered.retrieved),
        max_score=answered.max_score,
        prompt_tokens_estimate=answered.prompt_tokens_estimate,
        route=answered.route.to,
        route_reason=answered.route.reason,
        selection_mode="shadow"
        if shadow_of
        else _name_selection(answered.route, answered.attempts),
        propensity=answered.route.propensity,
        parent_trace_id=shadow_of,
        canary_arm=answered.route.canary_arm,
        skill=answered.skill,
        attempts=attempts,
        served_by=answered.served_by,
        model=answered.model,
        answer=scrub(answered.answer),
        citations=tuple(hit.chunk_id for hit in answered.cited),
        refused=answered.refused,
        confidence=answered.confidence,
        overhead_ms=max(0.0, answered.total_ms - known_ms),
        cost_usd=answered.cost_usd,
        counterfactual_cost_usd=_price_at_teacher(answered, origin.teacher_price),
        trainable=trainable_reason == "eligible",
        trainable_reason=trainable_reason,
    )


def build_failure_record(
    question: str,
    *,
    origin: TraceOrigin,
    trace_id: str,
    asked_at: datetime,
    outcome: str,
    total_ms: float,
    client_kind: ClientKind | None = None,
    key_id: str | None = None,
    conversation_id: str | None = None,
    escalation: Escalation = NO_ESCALATION,
    progress: Progress | None = None,
) -> TraceRecord:
    """Describe a request that reached the pipeline and got a problem instead of an answer.

    `progress` is how far it came: what it cost until then is in the record.
    """
    scrubbed = scrub(normalise_question(question))
    record = TraceRecord(
        trace_id=trace_id,
        asked_at=write_time(asked_at),
        env=origin.env,
        client_kind=client_kind,
        key_id=key_id,
        conversation_id=scrub(conversation_id) if conversation_id else None,
        question=scrubbed,
        question_hash=content_hash(scrubbed),
        prompt_version=origin.prompt_version,
        release_id=origin.release_id,
        snapshot_hash=origin.snapshot_hash,
        index_fingerprint=origin.index_fingerprint,
        embedder_fingerprint=origin.embedder_fingerprint,
        phase=origin.phase,
        selection_mode="forced" if escalation.granted else "rule",
        total_latency_ms=total_ms,
        escalation_requested=escalation.requested,
        escalation_granted=escalation.granted,
        trainable=False,
        trainable_reason="not_answered",
        outcome=outcome,
    )
    return _add_progress(record, progress, origin.adapter_shas) if progress else record


def _add_progress(record: TraceRecord, progress: Progress, shas: Mapping[str, str]) -> TraceRecord:
    """Say of an unanswered question what was retrieved, where it went and what was paid."""
    asked, route = progress.asked, progress.route
    if asked is None:
        return record
    attempts = _trace_attempts(progress.attempts, record.total_latency_ms, shas)
    record = replace(
        record,
        retrieved=_trace_hits(asked.hits),
        max_score=max((hit.score for hit in asked.hits), default=0.0),
        prompt_tokens_estimate=asked.prompt_tokens,
        skill=asked.skill.name if asked.skill else None,
        attempts=attempts,
        cost_usd=sum(attempt.cost_usd for attempt in attempts),
    )
    if route is None:
        return record
    return replace(
        record,
        route=route.to,
        route_reason=route.reason,
        selection_mode=_name_selection(route, progress.attempts),
        propensity=route.propensity,
        canary_arm=route.canary_arm,
    )


def _trace_hits(hits: Sequence[Hit]) -> tuple[TracedHit, ...]:
    return tuple(
        TracedHit(chunk_id=h.chunk_id, content_hash=h.content_hash, score=h.score) for h in hits
    )


def _trace_attempts(
    attempts: Sequence[Attempt], total_ms: float, shas: Mapping[str, str]
) -> tuple[TracedAttempt, ...]:
    ends = [a.started_ms for a in attempts[1:]] + [total_ms]
    return tuple(
        _trace_attempt(attempt, end, shas.get(attempt.model))
        for attempt, end in zip(attempts, ends, strict=False)
    )


def _trace_attempt(attempt: Attempt, end_ms: float, adapter_sha: str | None) -> TracedAttempt:
    done = attempt.completion
    return TracedAttempt(
        role=attempt.role,
        model=attempt.model,
        adapter_sha=adapter_sha if attempt.role == "student" else None,
        started_ms=attempt.started_ms,
        latency_ms=done.latency_ms if done else max(0.0, end_ms - attempt.started_ms),
        first_token_ms=done.first_token_ms if done else None,
        queue_ms=done.queue_ms if done else None,
        adapter_load_ms=done.adapter_load_ms if done else None,
        cold_start=done.cold_start if done else None,
        prompt_tokens=done.prompt_tokens if done else None,
        completion_tokens=done.completion_tokens if done else None,
        cost_usd=done.cost_usd if done else 0.0,
        finish_reason=done.finish_reason if done else None,
        error=scrub(attempt.error) if attempt.error else None,
        verdict=str(attempt.verdict) if attempt.verdict else None,
    )


def _name_selection(route: Route, attempts: Sequence[Attempt]) -> SelectionMode:
    if has_fallback(attempts):
        return "fallback"
    if route.reason == "explore":
        return "explore"
    return "forced" if route.reason == "prefer_quality" else "rule"


def _price_at_teacher(answered: Answered, price: Price) -> float:
    """What the teacher alone would have cost: its own call where it was asked, else one like it.

    It would have been sent the whole prompt, of which a student may read less or, where a rule of
    it refuses, nothing; and would have written as much as was served.
    """
    asked = [a.completion for a in answered.attempts if a.role == "teacher" and a.completion]
    if asked:
        return price.cost_usd(asked[-1].prompt_tokens, asked[-1].completion_tokens)
    done = answered.last.completion
    return price.cost_usd(answered.prompt_tokens_estimate, done.completion_tokens if done else 0)


def _judge_trainable(*, env: str, is_escalated: bool, is_shadow: bool) -> str:
    """First cut of admission: only unforced production traffic may ever be curated."""
    if is_shadow:
        return "shadow"
    if is_escalated:
        return "escalated"
    return "eligible" if env == "prod" else "not_prod"


def write_time(moment: datetime) -> str:
    """Return a moment as records hold it: UTC, milliseconds, Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
