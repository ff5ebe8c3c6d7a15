"""One question and its answer: circumstances, the deadline, the trace on disk, the body.

The same for readers who wait for the whole answer and for those who read along. Belongs here: what
lies between an admitted question and what is sent back. Does not belong here: who may ask
(`access`), HTTP and events (`server`, `streaming`), answering (`pipeline.answer`).
"""

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from serving.access.admission import Admission, Principal
from serving.engine import ServingEngine
from serving.errors import ModelError
from serving.metrics import ServerMetrics
from serving.models.asking import CALLER_DEADLINE
from serving.pipeline.answer import Answered
from serving.pipeline.answered import Attempt, Progress
from serving.pipeline.canary import draw_conversation
from serving.pipeline.circumstances import Circumstances, DraftReader
from serving.problems import (
    ProblemError,
    deadline_exceeded,
    explain_model_error,
    shutting_down,
    unexpected,
)
from serving.schemas import AskRequest, AskResponse
from serving.settings import ServerSettings
from serving.tracing.clients import ClientKind
from serving.tracing.otlp import OtlpExport
from serving.tracing.record import (
    Escalation,
    TraceRecord,
    build_failure_record,
    build_record,
)
from serving.tracing.segments import SegmentWriter

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Inquiry:
    """An admitted question. `body` has no prefix left, and `prefer_quality` only if granted."""

    body: AskRequest
    trace_id: str
    principal: Principal
    escalation: Escalation
    client_kind: ClientKind = "other"


@dataclass(frozen=True, kw_only=True)
class Exchanged:
    """An answered question: what is sent, and whether its trace is on disk."""

    response: AskResponse
    answered: Answered
    record: TraceRecord
    is_persisted: bool


class Exchange:
    """Answers admitted questions of one server."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        traces: SegmentWriter,
        metrics: ServerMetrics,
        admission: Admission,
        otlp: OtlpExport | None = None,
    ) -> None:
        """Hold the parts."""
        self._settings = settings
        self._traces = traces
        self._metrics = metrics
        self._admission = admission
        self._otlp = otlp
        self._draw = random.SystemRandom().random
        self._answering: set[asyncio.Task[Any]] = set()

    async def answer(
        self, engine: ServingEngine, inquiry: Inquiry, reader: DraftReader | None = None
    ) -> Exchanged:
        """Answer within the deadline and persist the trace.

        Raises:
            ProblemError: there is no answer; its trace is persisted, as its headers say.
        """
        body, principal = inquiry.body, inquiry.principal
        began = time.perf_counter()
        common: dict[str, Any] = {
            "origin": engine.trace_origin(principal.trace_env(self._settings.env)),
            "trace_id": inquiry.trace_id,
            "asked_at": datetime.now(UTC),
            "client_kind": inquiry.client_kind,
            "key_id": principal.key_id,
            "conversation_id": body.conversation_id,
            "escalation": inquiry.escalation,
        }
        progress = Progress()
        try:
            answered = await self._answer(engine, inquiry, reader, progress)
        except ProblemError as problem:
            total_ms = (time.perf_counter() - began) * 1000
            failure = build_failure_record(
                body.question,
                outcome=problem.name,
                total_ms=total_ms,
                progress=progress,
                **common,
            )
            self._metrics.count_problem(problem.name, progress.attempts, seconds=total_ms / 1000)
            is_persisted = await self._persist(failure, progress.attempts)
            problem.headers |= trace_headers(inquiry.trace_id, is_persisted=is_persisted)
            raise
        record = build_record(answered, **common)
        is_persisted = await self._persist(record, answered.attempts)
        self._metrics.count_answer(answered)
        sees_cost = "release:read" in principal.scopes
        response = AskResponse.from_answered(
            answered,
            trace_id=inquiry.trace_id,
            release=engine.release_id,
            counterfactual_cost_usd=record.counterfactual_cost_usd if sees_cost else None,
        )
        return Exchanged(
            response=response, answered=answered, record=record, is_persisted=is_persisted
        )

    def end_questions(self) -> set[asyncio.Task[Any]]:
        """End what is being answered: it becomes a problem, and its trace is written.

        Returns the tasks of those questions.
        """
        ended = set(self._answering)
        for task in ended:
            task.cancel()
        return ended

    async def _persist(self, record: TraceRecord, attempts: Sequence[Attempt]) -> bool:
        if self._otlp is not None:
            self._otlp.export(record, attempts)
        return await self._traces.append(record)

    async def _answer(
        self,
        engine: ServingEngine,
        inquiry: Inquiry,
        reader: DraftReader | None,
        progress: Progress,
    ) -> Answered:
        """Answer within the deadline; whatever goes wrong becomes a problem."""
        # Anew: another release may be in force than the one that the question was admitted to.
        require_skill(engine, inquiry.body.skill)
        seconds = self._settings.request_deadline_seconds
        deadline_set = CALLER_DEADLINE.set(time.monotonic() + seconds)
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._answering.add(task)
        try:
            async with asyncio.timeout(seconds) as deadline:
                return await engine.pipeline.answer(
                    inquiry.body.question,
                    prefer_quality=inquiry.body.prefer_quality,
                    skill=inquiry.body.skill,
                    around=self._describe_circumstances(engine, inquiry, reader),
                    progress=progress,
                )
        except asyncio.CancelledError:
            # Nobody cancels a question but a server that ends: it has to be told and traced.
            task.uncancel()
            raise shutting_down() from None
        except ModelError as error:
            _LOG.warning("no model answered", exc_info=error)
            raise explain_model_error(error) from error
        except Exception as error:
            if deadline.expired():
                raise deadline_exceeded(f"none after {seconds:g} s") from error
            _LOG.exception("answering failed")
            raise unexpected(error) from error
        finally:
            self._answering.discard(task)
            CALLER_DEADLINE.reset(deadline_set)

    def _describe_circumstances(
        self, engine: ServingEngine, inquiry: Inquiry, reader: DraftReader | None
    ) -> Circumstances:
        """Draw the lots of a question. Only production is explored: elsewhere nobody estimates."""
        principal = inquiry.principal
        is_prod = principal.trace_env(self._settings.env) == "prod"
        canary_draw = None
        if engine.pipeline.router.canary_ratio is not None:
            canary_draw = draw_conversation(
                salt=self._settings.canary_salt or engine.release_id,
                conversation_id=inquiry.body.conversation_id or inquiry.trace_id,
            )
        return Circumstances(
            explore_draw=self._draw() if is_prod else None,
            canary_draw=canary_draw,
            allow_teacher=self._admission.allow_teacher(
                principal, is_granted=inquiry.escalation.granted
            ),
            insists_on_teacher=inquiry.escalation.insists,
            reader=reader,
        )


def require_skill(engine: ServingEngine, named: str | None) -> None:
    """Refuse a skill that a release does not have.

    Raises:
        ProblemError: `invalid-request`, with the names it has.
    """
    skills = engine.manifest.skills
    if named is not None and named not in skills:
        raise ProblemError(
            "invalid-request",
            expected=f"a skill of this release: {', '.join(skills) or 'it has none'}",
            found=repr(named),
            next_step="Leave skill out, or name one that /v1/release lists.",
        )


def trace_headers(trace_id: str, *, is_persisted: bool) -> dict[str, str]:
    """Return the headers that say which trace an answer has, and whether it is on disk."""
    return {"X-Trace-Id": trace_id, "X-Trace-Persisted": "true" if is_persisted else "false"}
