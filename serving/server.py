"""One server's state and what its product routes do: admit, make room, answer, take feedback.

Belongs here: whether a question is taken, and the life of the server. Does not belong here:
addresses (`app`), one question's answer and trace (`exchange`), events (`streaming`), what
operators ask (`operations`).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from starlette.background import BackgroundTask
from starlette.responses import Response

from serving.access.admission import Admission, Principal
from serving.access.escalation import strip_admin_prefix
from serving.access.keys import Scope
from serving.engine import ServingEngine
from serving.errors import ModelError
from serving.exchange import Exchange, Exchanged, Inquiry, require_skill, trace_headers
from serving.feedback import build_feedback
from serving.metrics import ServerMetrics
from serving.operations import Operations
from serving.pipeline.circumstances import DraftReader
from serving.problems import ProblemError
from serving.releases.live import LiveRelease
from serving.schemas import AskRequest, FeedbackRequest, FeedbackStored
from serving.settings import ServerSettings
from serving.shadowing import Shadow
from serving.streaming import stream_answer, wants_stream
from serving.tracing.clients import name_client_kind
from serving.tracing.otlp import connect_otlp
from serving.tracing.record import Escalation
from serving.tracing.segments import SegmentWriter

_LONGEST_WARM_UP_PAUSE_SECONDS = 30.0
_LAST_STREAMS_SECONDS = 3.0
"""For streams whose readers have left, once nobody else is waited for."""
_SHUTTING_DOWN = "the server is shutting down"
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
        on_warm: Callable[[], None] = lambda: None,
    ) -> None:
        """Hold the parts; `live` warms the engine up."""
        self._live = live
        self._on_warm = on_warm
        self._settings = settings
        self._traces = traces
        self._feedback = feedback
        self._admission = admission
        self._metrics = ServerMetrics(traces, live)
        self._otlp = connect_otlp(settings.otlp_endpoint) if settings.otlp_endpoint else None
        self._exchange = Exchange(
            settings,
            traces=traces,
            metrics=self._metrics,
            admission=admission,
            otlp=self._otlp,
        )
        self._shadow = Shadow(live, settings, traces=traces, metrics=self._metrics)
        self._streams: set[asyncio.Task[None]] = set()
        self.operations = Operations(
            live,
            settings,
            traces=traces,
            metrics=self._metrics,
            are_keys_stale=lambda: admission.is_stale,
            admit=self.admit,
            require_ready=self._require_ready,
        )
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
            self._close_to_questions(_SHUTTING_DOWN)
            background.cancel()
            await asyncio.gather(background, return_exceptions=True)
            await self._settle_questions()
            await self._shadow.close()
            await self._traces.close()
            await self._feedback.close()
            await self._live.close()
            if self._otlp is not None:
                await asyncio.to_thread(self._otlp.close)

    def end_questions(self) -> None:
        """End what is being answered, and take nothing more: the drain is over."""
        self._close_to_questions(_SHUTTING_DOWN)
        self._exchange.end_questions()

    async def _settle_questions(self) -> None:
        """Give answers that nobody waits for any more a moment, then end them; all are traced."""
        if self._streams:
            await asyncio.wait(self._streams, timeout=_LAST_STREAMS_SECONDS)
        left = self._exchange.end_questions() | self._streams
        if left:
            await asyncio.wait(left, timeout=_LAST_STREAMS_SECONDS)

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
                self._close_to_questions(
                    f"the warm-up failed ({type(error).__name__}, see the log)"
                )
                told = "the warm-up of release %s failed"
                if not (isinstance(error, ModelError) and getattr(error, "is_retryable", True)):
                    _LOG.exception(told, self._live.engine.release_id)
                    return
                _LOG.warning(f"{told}: %s", self._live.engine.release_id, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_WARM_UP_PAUSE_SECONDS)
            else:
                self._on_warm()
                self._open_to_questions()
                return

    def _close_to_questions(self, reason: str) -> None:
        self._not_ready = reason
        self._metrics.is_ready.set(0)

    async def ask(self, body: AskRequest, request: Request) -> Response:
        """Answer a question from the documentation, with citations, or refuse. Scope: `ask`.

        The trace is on disk before the answer is sent, or `X-Trace-Persisted` says `false`.

        With `Accept: text/event-stream` it comes as server-sent events: `draft` adds text that is
        not yet validated, `correction` takes the draft back, and one `answer` or `problem` ends the
        stream.
        """
        principal: Principal = request.state.principal
        require_skill(self._live.engine, body.skill)
        self._enter()  # before quality is counted: who finds no place has spent nothing
        try:
            body, escalation = await self._settle_escalation(body, principal)
        except BaseException:
            self._leave()
            raise
        inquiry = Inquiry(
            body=body,
            trace_id=request.state.trace_id,
            principal=principal,
            escalation=escalation,
            client_kind=name_client_kind(request.headers.get("user-agent")),
        )
        if wants_stream(request.headers.get("accept")):
            return stream_answer(
                lambda reader: self._answer_streamed(inquiry, reader),
                trace_id=inquiry.trace_id,
                tasks=self._streams,
            )
        engine, done = await self._answer(inquiry)
        return Response(
            done.response.model_dump_json(),
            media_type="application/json",
            headers=trace_headers(inquiry.trace_id, is_persisted=done.is_persisted),
            background=BackgroundTask(
                self._shadow.follow, engine, done.answered, done.record, principal
            ),
        )

    async def admit_question(self, request: Request) -> None:
        """Let a question in, before the fields of its body are checked."""
        request.state.principal = await self.admit(request, "ask")
        self._require_ready()
        self._require_room()

    async def admit_feedback(self, request: Request) -> None:
        """Let feedback in, before the fields of its body are checked."""
        request.state.principal = await self.admit(request, "feedback:write")

    async def _answer_streamed(self, inquiry: Inquiry, reader: DraftReader) -> Exchanged:
        engine, done = await self._answer(inquiry, reader)
        await self._shadow.follow(engine, done.answered, done.record, inquiry.principal)
        return done

    async def _answer(
        self, inquiry: Inquiry, reader: DraftReader | None = None
    ) -> tuple[ServingEngine, Exchanged]:
        """Answer in the place that was taken, and free it."""
        try:
            with self._live.lease() as engine:
                return engine, await self._exchange.answer(engine, inquiry, reader)
        finally:
            self._leave()

    def _enter(self) -> None:
        """Take a place; the room is looked at again, since others came in meanwhile."""
        self._require_room()
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)

    def _leave(self) -> None:
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

        Naming a skill of high stakes insists on the teacher as the field does. Who does either
        without the right is told so; who only types the prefix is answered.
        """
        question, has_prefix = strip_admin_prefix(body.question)
        if has_prefix and not question:
            raise ProblemError(
                "invalid-request",
                expected="a question after the prefix",
                found="nothing",
                next_step="Ask something.",
            )
        skill = self._live.engine.manifest.skills.get(body.skill or "")
        insists = body.prefer_quality or (skill is not None and skill.high_stakes)
        is_granted = insists
        if insists:
            asked = "prefer_quality: true" if body.prefer_quality else "a skill of high stakes"
            await self._admission.grant_quality(principal, asked=asked)
        elif has_prefix and self._settings.admin_prefix:
            is_granted = await self._admission.may_have_quality(principal)
        settled = body.model_copy(update={"question": question, "prefer_quality": is_granted})
        return settled, Escalation(
            requested=insists or has_prefix, granted=is_granted, insists=insists
        )

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

    async def take_feedback(self, body: FeedbackRequest, request: Request) -> Response:
        """Store what a reader thought of an answer. Scope: `feedback:write`.

        It is kept for people who debug and never becomes training data.
        """
        principal: Principal = request.state.principal
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
        stored = FeedbackStored(feedback_id=record.feedback_id)
        return Response(stored.model_dump_json(), status_code=201, media_type="application/json")
