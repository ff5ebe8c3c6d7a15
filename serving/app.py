"""The HTTP server: /ask and what an operator needs around it.

Belongs here: routes, admission, deadlines, the server's life. Does not belong here: answering
(`pipeline.answer`), loading a release (`engine`), error documents (`problems`), traces (`tracing`).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.engine import ServingEngine, load_engine
from serving.errors import ModelError, UnderstudyError
from serving.pipeline.answer import Answered
from serving.problems import (
    ProblemError,
    deadline_exceeded,
    describe_problems,
    explain_model_error,
    install_problem_handlers,
    too_large,
    unexpected,
    write_problem,
)
from serving.schemas import (
    AskRequest,
    AskResponse,
    Health,
    Readiness,
    ReleaseInfo,
    ReleaseStudent,
    TraceHealth,
)
from serving.settings import MAXIMUM_BODY_BYTES, VARIABLES, ServerSettings, load_settings
from serving.tracing.record import build_failure_record, build_record, new_trace_id
from serving.tracing.segments import SegmentWriter, seal_abandoned

__all__ = ["ServingEngine", "create_app", "load_engine", "run", "serve"]

DRAIN_SECONDS = 25
_LONGEST_WARM_UP_PAUSE_SECONDS = 30.0
_LOG = logging.getLogger(__name__)


def create_app(
    *, engine: ServingEngine, settings: ServerSettings, writer: SegmentWriter
) -> FastAPI:
    """Return the ASGI app.

    Its lifespan warms the engine up and, at the end, closes it and the writer. Until it is warm
    /ask is refused (503); /healthz answers from the start.
    """
    server = _Server(engine, settings, writer)
    app = FastAPI(
        title="Understudy",
        summary="Questions to a documentation assistant, answered with citations.",
        description="Every answer cites the documentation or is a refusal. "
        "Errors are RFC 9457 problem documents with a stable `type`.",
        version=engine.release_id,
        lifespan=server.live,
        redoc_url=None,
    )
    app.add_middleware(_Edge)
    install_problem_handlers(app)
    app.add_api_route(
        "/ask",
        server.ask,
        methods=["POST"],
        response_model=AskResponse,
        summary="Ask a question",
        tags=["product"],
        responses={
            200: {"headers": _ASK_HEADERS},
            **describe_problems(
                "not-allowed",
                "too-large",
                "invalid-request",
                "internal-error",
                "upstream-failed",
                "overloaded",
                "not-ready",
                "deadline-exceeded",
            ),
        },
    )
    for path, endpoint, model, summary in (
        ("/healthz", server.report_health, Health, "Is the process alive?"),
        ("/readyz", server.report_readiness, Readiness, "Is the release loaded and warm?"),
        ("/v1/release", server.report_release, ReleaseInfo, "What is being served?"),
    ):
        app.add_api_route(
            path,
            endpoint,
            methods=["GET"],
            response_model=model,
            summary=summary,
            tags=["operation"],
            responses=describe_problems("not-ready") if path == "/readyz" else None,
        )
    return app


_ASK_HEADERS = {
    "X-Trace-Id": {"description": "The trace of this answer.", "schema": {"type": "string"}},
    "X-Trace-Persisted": {
        "description": "`true` only when the trace is on disk.",
        "schema": {"type": "string", "enum": ["true", "false"]},
    },
}


class _Server:
    """The state behind the routes of one app."""

    def __init__(
        self, engine: ServingEngine, settings: ServerSettings, writer: SegmentWriter
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._writer = writer
        self._in_flight = 0
        # Why /ask is refused; None when it is not.
        self._not_ready: str | None = "the release is still warming up"

    @asynccontextmanager
    async def live(self, _app: FastAPI) -> AsyncIterator[None]:
        """Warm up in the background; at the end persist what waits and let go of the engine."""
        warming = asyncio.create_task(self._warm_up())
        try:
            yield
        finally:
            self._not_ready = "the server is shutting down"
            warming.cancel()
            await asyncio.gather(warming, return_exceptions=True)
            await self._writer.close()
            await self._engine.close()

    async def _warm_up(self) -> None:
        pause = 1.0
        while True:
            try:
                await self._engine.warm_up()
            except Exception as error:  # noqa: BLE001  (whatever it is, the server says so)
                _LOG.exception("the warm-up of release %s failed", self._engine.release_id)
                self._not_ready = f"the warm-up failed ({type(error).__name__}, see the log)"
                if not (isinstance(error, ModelError) and getattr(error, "is_retryable", True)):
                    return
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_WARM_UP_PAUSE_SECONDS)
            else:
                self._not_ready = None
                return

    async def ask(self, body: AskRequest, request: Request) -> Response:
        """Answer a question from the documentation, with citations, or refuse.

        The trace is on disk before the answer is sent, or `X-Trace-Persisted` says `false`.
        """
        self._admit(body)
        self._in_flight += 1
        try:
            return await self._answer_and_trace(body, request.state.trace_id)
        finally:
            self._in_flight -= 1

    def _admit(self, body: AskRequest) -> None:
        self._require_ready()
        if body.prefer_quality and not self._settings.allow_prefer_quality:
            raise ProblemError(
                "not-allowed",
                expected="prefer_quality to be false on this server",
                found="true",
                next_step=f"Leave it out; an operator allows it with "
                f"{VARIABLES['allow_prefer_quality']}=true.",
            )
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

    async def _answer_and_trace(self, body: AskRequest, trace_id: str) -> Response:
        engine = self._engine
        asked_at, began = datetime.now(UTC), time.perf_counter()
        common: dict[str, Any] = {
            "origin": engine.trace_origin(self._settings.env),
            "trace_id": trace_id,
            "asked_at": asked_at,
            "conversation_id": body.conversation_id,
            "prefer_quality": body.prefer_quality,
        }
        try:
            answered = await self._answer(engine, body)
        except ProblemError as problem:
            total_ms = (time.perf_counter() - began) * 1000
            failure = build_failure_record(
                body.question, outcome=problem.name, total_ms=total_ms, **common
            )
            problem.headers |= _trace_headers(
                trace_id, is_persisted=await self._writer.append(failure)
            )
            raise
        is_persisted = await self._writer.append(build_record(answered, **common))
        response = AskResponse.from_answered(answered, trace_id=trace_id, release=engine.release_id)
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

    async def report_health(self) -> Health:
        """Alive; `degraded` when answers go out but their traces are being lost."""
        return Health(
            status="degraded" if self._writer.is_losing else "ok",
            traces=TraceHealth(
                stored_count=self._writer.stored_count, lost_count=self._writer.lost_count
            ),
        )

    async def report_readiness(self) -> Readiness:
        """Answer 200 once questions are taken, a 503 problem that says why before."""
        self._require_ready()
        return Readiness(status="ready", release=self._engine.release_id)

    async def report_release(self) -> ReleaseInfo:
        """Name the release, its models and its evidence. No secrets: a manifest holds none."""
        engine, manifest = self._engine, self._engine.manifest
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
        )


def _trace_headers(trace_id: str, *, is_persisted: bool) -> dict[str, str]:
    return {"X-Trace-Id": trace_id, "X-Trace-Persisted": "true" if is_persisted else "false"}


class _Edge:
    """The outermost middleware: a trace id, the limit on bodies, the security headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace_id = scope.setdefault("state", {})["trace_id"] = new_trace_id()

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Cache-Control"] = "no-store"
                headers["Referrer-Policy"] = "no-referrer"
                headers["X-Frame-Options"] = "DENY"
            await send(message)

        try:
            body = await _read_body(scope, receive)
        except ProblemError as problem:
            await write_problem(problem, trace_id)(scope, receive, send_secured)
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send_secured)


async def _read_body(scope: Scope, receive: Receive) -> bytes | None:
    """Return the whole body, or None when the client left before sending it."""
    declared = Headers(scope=scope).get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > MAXIMUM_BODY_BYTES:
        raise too_large(MAXIMUM_BODY_BYTES)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > MAXIMUM_BODY_BYTES:
            raise too_large(MAXIMUM_BODY_BYTES)
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def run(settings: ServerSettings) -> None:
    """Serve the current release until SIGTERM or SIGINT, then drain.

    Raises:
        ReleaseError: the release does not verify or a part is not what it pins: nothing listens.
    """
    asyncio.run(serve(settings))


def main() -> None:
    """Serve what the environment says: the command `understudy-serve` of the server's own package.

    Raises:
        SystemExit: with the reason, when the release or a setting is not what it has to be.
    """
    try:
        run(load_settings())
    except UnderstudyError as error:
        raise SystemExit(str(error)) from None


async def serve(settings: ServerSettings) -> None:
    """Load the release, then listen."""
    engine = await load_engine(settings)
    seal_abandoned(settings.segments_folder)
    app = create_app(
        engine=engine, settings=settings, writer=SegmentWriter(settings.segments_folder)
    )
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    await uvicorn.Server(config).serve()
