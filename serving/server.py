"""One server's state and what its routes do: admit, answer, trace, report.

Belongs here: the life of a request between HTTP and the pipeline. Does not belong here: addresses
(`app`), answering (`pipeline.answer`), error documents (`problems`), traces on disk (`tracing`).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from serving.access.admission import Admission, Principal
from serving.access.escalation import strip_admin_prefix
from serving.access.keys import Scope
from serving.engine import ServingEngine
from serving.errors import ModelError
from serving.feedback import build_feedback
from serving.metrics import ServerMetrics
from serving.pipeline.answer import Answered
from serving.problems import ProblemError, deadline_exceeded, explain_model_error, unexpected
from serving.releases.live import LiveRelease
from serving.schemas import (
    AskRequest,
    AskResponse,
    FeedbackRequest,
    FeedbackStored,
    Health,
    Readiness,
    ReleaseInfo,
    ReleaseStudent,
    TraceHealth,
)
from serving.settings import ServerSettings
from serving.tracing.record import Escalation, build_failure_record, build_record
from serving.tracing.segments import SegmentWriter

_LONGEST_WARM_UP_PAUSE_SECONDS = 30.0
_LOG = logging.getLogger(__name__)


class Server:
    """The state behind the routes of one app."""

    def __init__(
        self,
        live: LiveRelease,
        settings: ServerSettings,
        *,
        traces: SegmentWriter,
        feedback: SegmentWriter,
        admission: Admission,
    ) -> None:
        """Hold the parts; `live` warms the engine up."""
        self._live = live
        self._settings = settings
        self._traces = traces
        self._feedback = feedback
        self._admission = admission
        self._metrics = ServerMetrics(traces, live)
        self._in_flight = 0
        # Why /ask is refused; None when it is not.
        self._not_ready: str | None = "the release is still warming up"

    @asynccontextmanager
    async def live(self, _app: FastAPI) -> AsyncIterator[None]:
        """Warm up in the background; at the end persist what waits and let go of the engine."""
        background = asyncio.create_task(self._warm_up_and_watch())
        try:
            yield
        finally:
            self._close_to_questions("the server is shutting down")
            background.cancel()
            await asyncio.gather(background, return_exceptions=True)
            await self._traces.close()
            await self._feedback.close()
            await self._live.close()

    async def _warm_up_and_watch(self) -> None:
        """Warm up and follow CURRENT at once: another release may cure what this one cannot."""
        async with asyncio.TaskGroup() as tasks:
            warming = tasks.create_task(self._warm_up())
            tasks.create_task(self._live.watch(lambda: self._take_over(warming)))

    def _take_over(self, warming: asyncio.Task[None]) -> None:
        """A release that was swapped in is warm, whatever became of the first one."""
        warming.cancel()
        self._open_to_questions()

    def _open_to_questions(self) -> None:
        self._not_ready = None
        self._metrics.is_ready.set(1)

    async def _warm_up(self) -> None:
        pause = 1.0
        while True:
            try:
                await self._live.engine.warm_up()
            except Exception as error:  # noqa: BLE001  (whatever it is, the server says so)
                _LOG.exception("the warm-up of release %s failed", self._live.engine.release_id)
                self._close_to_questions(
                    f"the warm-up failed ({type(error).__name__}, see the log)"
                )
                if not (isinstance(error, ModelError) and getattr(error, "is_retryable", True)):
                    return
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_WARM_UP_PAUSE_SECONDS)
            else:
                self._open_to_questions()
                return

    def _close_to_questions(self, reason: str) -> None:
        self._not_ready = reason
        self._metrics.is_ready.set(0)

    async def ask(self, body: AskRequest, request: Request) -> Response:
        """Answer a question from the documentation, with citations, or refuse.

        The trace is on disk before the answer is sent, or `X-Trace-Persisted` says `false`.
        """
        principal = await self.admit(request, "ask")
        self._require_ready()
        self._require_room()
        body, escalation = await self._settle_escalation(body, principal)
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            with self._live.lease() as engine:
                return await self._answer_and_trace(
                    engine, body, request.state.trace_id, principal, escalation
                )
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)

    async def admit(self, request: Request, scope: Scope) -> Principal:
        """Return who asks, if they may.

        Raises:
            ProblemError: `unauthenticated`, `not-allowed` or `over-quota`.
        """
        principal = self._admission.identify(request.headers.get("authorization"))
        await self._admission.admit(principal, scope)
        return principal

    async def _settle_escalation(
        self, body: AskRequest, principal: Principal
    ) -> tuple[AskRequest, Escalation]:
        """Take the `[admin]` prefix off, and grant quality to who asks for it and may have it.

        Who sets the field without the right is told so; who only types the prefix is answered.
        """
        question, has_prefix = strip_admin_prefix(body.question)
        if has_prefix and not question:
            raise ProblemError(
                "invalid-request",
                expected="a question after the prefix",
                found="nothing",
                next_step="Ask something.",
            )
        is_granted = body.prefer_quality
        if body.prefer_quality:
            await self._admission.grant_quality(principal)
        elif has_prefix and self._settings.admin_prefix:
            is_granted = await self._admission.may_have_quality(principal)
        settled = body.model_copy(update={"question": question, "prefer_quality": is_granted})
        requested = body.prefer_quality or has_prefix
        return settled, Escalation(requested=requested, granted=is_granted)

    def _require_room(self) -> None:
        # Nothing waits for a place: a queue that grows answers everybody too late.
        if self._in_flight >= self._settings.max_concurrency:
            raise ProblemError(
                "overloaded",
                expected=f"fewer than {self._settings.max_concurrency} questions at once",
                found=f"{self._in_flight} being answered",
                next_step="Wait as Retry-After says, then try again.",
                headers={"Retry-After": "1"},
            )

    def _require_ready(self) -> None:
        if self._not_ready is not None:
            raise ProblemError(
                "not-ready",
                expected="a release that is loaded and warm",
                found=self._not_ready,
                next_step="Ask /readyz until it answers 200.",
                headers={"Retry-After": "1"},
            )

    async def _answer_and_trace(
        self,
        engine: ServingEngine,
        body: AskRequest,
        trace_id: str,
        principal: Principal,
        escalation: Escalation,
    ) -> Response:
        asked_at, began = datetime.now(UTC), time.perf_counter()
        common: dict[str, Any] = {
            "origin": engine.trace_origin(principal.trace_env(self._settings.env)),
            "trace_id": trace_id,
            "asked_at": asked_at,
            "key_id": principal.key_id,
            "conversation_id": body.conversation_id,
            "escalation": escalation,
        }
        try:
            answered = await self._answer(engine, body)
        except ProblemError as problem:
            total_ms = (time.perf_counter() - began) * 1000
            failure = build_failure_record(
                body.question, outcome=problem.name, total_ms=total_ms, **common
            )
            self._metrics.count_problem(problem.name)
            problem.headers |= _trace_headers(
                trace_id, is_persisted=await self._traces.append(failure)
            )
            raise
        record = build_record(answered, **common)
        is_persisted = await self._traces.append(record)
        self._metrics.count_answer(answered)
        sees_cost = "release:read" in principal.scopes
        response = AskResponse.from_answered(
            answered,
            trace_id=trace_id,
            release=engine.release_id,
            counterfactual_cost_usd=record.counterfactual_cost_usd if sees_cost else None,
        )
        return Response(
            response.model_dump_json(),
            media_type="application/json",
            headers=_trace_headers(trace_id, is_persisted=is_persisted),
        )

    async def _answer(self, engine: ServingEngine, body: AskRequest) -> Answered:
        """Answer within the deadline; whatever goes wrong becomes a problem."""
        seconds = self._settings.request_deadline_seconds
        try:
            async with asyncio.timeout(seconds) as deadline:
                return await engine.pipeline.answer(
                    body.question, prefer_quality=body.prefer_quality
                )
        except ModelError as error:
            _LOG.warning("no model answered", exc_info=error)
            raise explain_model_error(error) from error
        except Exception as error:
            if deadline.expired():
                raise deadline_exceeded(f"none after {seconds:g} s") from error
            _LOG.exception("answering failed")
            raise unexpected(error) from error

    async def take_feedback(self, body: FeedbackRequest, request: Request) -> FeedbackStored:
        """Store what a reader thought of an answer; 201 only once it is on disk.

        It is kept for people who debug and never becomes training data.
        """
        principal = await self.admit(request, "feedback:write")
        env = principal.trace_env(self._settings.env)
        record = build_feedback(body, env=env, key_id=principal.key_id)
        if not await self._feedback.append(record.to_mapping()):
            raise ProblemError(
                "not-stored",
                expected="a disk that takes the feedback",
                found="one that does not",
                next_step="Send it again later.",
                headers={"Retry-After": "30"},
            )
        self._metrics.count_feedback(body.rating)
        return FeedbackStored(feedback_id=record.feedback_id)

    async def report_metrics(self, request: Request) -> Response:
        """Count questions, answers, fallbacks, cost and traces, in the Prometheus format."""
        await self.admit(request, "metrics:read")
        return Response(
            self._metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def describe_api(self, request: Request) -> Response:
        """Describe every route in the OpenAPI format."""
        await self.admit(request, "release:read")
        return JSONResponse(request.app.openapi())

    async def report_health(self) -> Health:
        """Alive; `degraded` when traces are being lost or a new release cannot be loaded."""
        is_degraded = self._traces.is_losing or self._live.failure is not None
        return Health(
            status="degraded" if is_degraded else "ok",
            release=self._live.engine.release_id,
            is_new_release_refused=self._live.failure is not None,
            traces=TraceHealth(
                stored_count=self._traces.stored_count, lost_count=self._traces.lost_count
            ),
        )

    async def report_readiness(self) -> Readiness:
        """Answer 200 once questions are taken, a 503 problem that says why before."""
        self._require_ready()
        return Readiness(status="ready", release=self._live.engine.release_id)

    async def report_release(self, request: Request) -> ReleaseInfo:
        """Name the release, its models and its evidence. No secrets: a manifest holds none."""
        await self.admit(request, "release:read")
        engine = self._live.engine
        manifest = engine.manifest
        origin = engine.trace_origin(self._settings.env)
        return ReleaseInfo(
            release=engine.release_id,
            parent=engine.parent,
            sequence=engine.sequence,
            created_at=manifest.created_at.isoformat(),
            phase=engine.phase,
            release_phase=manifest.phase,
            gate_verdict=manifest.gate.verdict,
            students={
                name: ReleaseStudent(
                    adapter=student.adapter,
                    adapter_sha256=student.adapter_sha256,
                    base_model=student.base_model,
                    base_revision=student.base_revision,
                )
                for name, student in manifest.students.items()
            },
            teacher_model=manifest.teacher.model,
            prompt_version=origin.prompt_version,
            index_fingerprint=origin.index_fingerprint,
            embedder_fingerprint=origin.embedder_fingerprint,
            snapshot_hash=origin.snapshot_hash,
            distillation_loss_statement=manifest.distillation_loss_statement,
            new_release_refused_because=self._live.failure,
        )


def _trace_headers(trace_id: str, *, is_persisted: bool) -> dict[str, str]:
    return {"X-Trace-Id": trace_id, "X-Trace-Persisted": "true" if is_persisted else "false"}
