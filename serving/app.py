"""The HTTP app and its process: addresses, what each can end in, starting.

Belongs here: routes and how they are described, starting. Does not belong here: what a route does
(`server`), loading a release (`engine`), what holds for every request (`edge`), connections
(`listening`).
"""

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import uvloop
from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse

from serving.access.admission import Admission
from serving.access.keys import Scope
from serving.access.ring import KeyRing
from serving.admitted_route import AdmittedRoute
from serving.edge import Edge
from serving.engine import ServingEngine, load_engine
from serving.errors import InvalidInputError
from serving.listening import make_server
from serving.logs import write_logs_as
from serving.operation_schemas import Health, Readiness, ReleaseInfo
from serving.operations import Operations
from serving.page import add_pages
from serving.problems import install_problem_handlers
from serving.reference import TRACE_PERSISTED, describe_problems, describe_stream
from serving.releases.live import LiveRelease, Load
from serving.schemas import AskResponse, FeedbackStored, ProblemName
from serving.server import Server
from serving.settings import LOOPBACK_HOSTS, VARIABLES, ServerSettings
from serving.streaming import EVENT_STREAM
from serving.tracing.otlp import require_otlp
from serving.tracing.segments import SegmentWriter, seal_abandoned

__all__ = ["ServingEngine", "create_app", "load_engine", "run", "serve"]

_LOG = logging.getLogger(__name__)

_ADMISSION: tuple[ProblemName, ...] = ("unauthenticated", "not-allowed", "over-quota")


def create_app(
    *,
    engine: ServingEngine,
    settings: ServerSettings,
    writer: SegmentWriter,
    load: Load | None = None,
    admission: Admission | None = None,
    on_warm: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Return the ASGI app.

    Its lifespan warms the engine up, follows CURRENT, and at the end closes engine and writer.
    Until it is warm /ask is refused (503); /healthz answers from the start. `load` returns the
    engine of another release; the default is `load_engine`. `admission` is opened unless given.
    `on_warm` is called when the first release is warm, before it answers, and whenever one that was
    replaced is closed.

    Raises:
        InvalidInputError: the key file cannot be read, or the server would be open to a network.
    """
    admission = admission or open_admission(settings)
    live = LiveRelease(
        engine,
        releases_folder=settings.releases_folder,
        keys_folder=settings.keys_folder,
        load=load or (lambda: load_engine(settings)),
        poll_seconds=settings.release_poll_seconds,
        on_closed=on_warm,
    )
    server = Server(
        live,
        settings,
        traces=writer,
        feedback=SegmentWriter(settings.feedback_folder),
        admission=admission,
        on_warm=on_warm,
    )
    app = FastAPI(
        title="Understudy",
        summary="Questions to a documentation assistant, answered with citations.",
        description="Every answer cites the documentation or is a refusal. "
        "Errors are RFC 9457 problem documents with a stable `type`. Send a key as "
        "`Authorization: Bearer us_…` where the server wants one; each route names its scope.",
        openapi_tags=[
            {"name": "product", "description": "For those who ask."},
            {"name": "operation", "description": "For those who run the server."},
        ],
        generate_unique_id_function=lambda route: route.name,
        version="1",  # of this interface; /v1/release names the release
        lifespan=server.live,
        openapi_url=None,  # ours asks for a key where one is needed
        docs_url=None,
        redoc_url=None,
    )
    app.state.end_questions = server.end_questions
    app.add_middleware(Edge, is_foreign=_find_foreign(settings, admission))
    install_problem_handlers(app)
    _add_product_routes(app, server)
    _add_operation_routes(app, server.operations)
    if settings.pages:
        add_pages(app)
    return app


def _find_foreign(settings: ServerSettings, admission: Admission) -> Callable[[str], bool] | None:
    """Return what tells foreign hosts on a listening loopback server.

    A page elsewhere can make its own name mean this machine (DNS rebinding), and then read what an
    open server answers. With keys it has none to send.
    """
    if not (settings.checks_host and settings.is_loopback):
        return None
    return lambda host: admission.is_open and split_host(host) not in LOOPBACK_HOSTS


def split_host(header: str) -> str:
    """Return the name in a `Host` header, without port and brackets."""
    return (urlsplit(f"//{header}").hostname or "").lower()


def open_admission(settings: ServerSettings) -> Admission:
    """Return what decides on requests of a server with these settings.

    Raises:
        InvalidInputError: the key file cannot be read, or no key was made for a server that others
            can reach.
    """
    ring = KeyRing(settings.keys_folder)
    if settings.auth == "auto" and ring.is_empty and not settings.is_loopback:
        raise InvalidInputError(
            f"opening a server on {settings.host}",
            expected="an API key, or a loopback address",
            found=f"no key in {settings.keys_folder}",
            next_step="make one with `understudy keys create --tenant NAME`, or set "
            f"{VARIABLES['auth']}=open where something in front asks for credentials",
        )
    if settings.auth == "open" and not settings.is_loopback:
        _LOG.warning("open to everybody who reaches %s: no key is asked for", settings.host)
    anybody: set[Scope] = {"ask", "feedback:write", "release:read", "metrics:read"}
    if settings.allow_prefer_quality:
        anybody.add("ask:prefer_quality")
    return Admission(
        settings.auth,
        ring,
        open_scopes=frozenset(anybody),
        teacher_calls_per_day=settings.teacher_calls_per_day,
    )


def _add_product_routes(app: FastAPI, server: Server) -> None:
    app.router.add_api_route(
        "/ask",
        server.ask,
        route_class_override=AdmittedRoute,
        methods=["POST"],
        # Before the body is read as JSON: who may not ask costs next to nothing.
        dependencies=[Depends(server.admit_question)],
        response_model=AskResponse,
        response_description="An answer with its citations, or a refusal",
        summary="Ask a question",
        tags=["product"],
        responses={
            200: {
                "headers": _ASK_HEADERS,
                "content": {EVENT_STREAM: describe_stream()},
            },
            **describe_problems(
                *_ADMISSION,
                "too-large",
                "invalid-request",
                "internal-error",
                "upstream-failed",
                "overloaded",
                "not-ready",
                "deadline-exceeded",
                is_traced=True,
            ),
        },
    )
    app.router.add_api_route(
        "/feedback",
        server.take_feedback,
        route_class_override=AdmittedRoute,
        methods=["POST"],
        dependencies=[Depends(server.admit_feedback)],
        status_code=201,
        response_model=FeedbackStored,
        response_description="It is on disk",
        summary="Say whether an answer helped",
        tags=["product"],
        responses=describe_problems(*_ADMISSION, "too-large", "invalid-request", "not-stored"),
    )


def _add_operation_routes(app: FastAPI, ops: Operations) -> None:
    for path, endpoint, model, summary, gives, problems in (
        ("/healthz", ops.report_health, Health, "Is it alive?", "It is", ()),
        ("/readyz", ops.report_readiness, Readiness, "Is it warm?", "It is", ("not-ready",)),
        (
            "/v1/release",
            ops.report_release,
            ReleaseInfo,
            "What is being served?",
            "The release in force",
            _ADMISSION,
        ),
        (
            "/metrics",
            ops.report_metrics,
            None,
            "Counts for Prometheus",
            "Text exposition format",
            _ADMISSION,
        ),
    ):
        app.add_api_route(
            path,
            endpoint,
            methods=["GET"],
            response_model=model,
            response_class=JSONResponse if model else PlainTextResponse,
            response_description=gives,
            summary=summary,
            tags=["operation"],
            responses=describe_problems(*problems) or None,
        )
    app.add_api_route("/openapi.json", ops.describe_api, methods=["GET"], include_in_schema=False)


_ASK_HEADERS = {
    "X-Trace-Id": {"description": "The trace of this answer.", "schema": {"type": "string"}},
    "X-Trace-Persisted": TRACE_PERSISTED,
}


def run(settings: ServerSettings) -> None:
    """Serve the current release until SIGTERM or SIGINT, then drain.

    Raises:
        ReleaseError: the release does not verify or a part is not what it pins: nothing listens.
        InvalidInputError: see `open_admission`.
    """
    write_logs_as(settings.log_format)
    run_on_server_loop(serve(settings))


def run_on_server_loop(work: Coroutine[Any, Any, None]) -> None:
    """Run a server to its end on libuv's event loop, which costs a request less than Python's."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


async def serve(settings: ServerSettings) -> None:
    """Load the release, then listen."""
    # First: what would keep the server from starting says so before anything slow is loaded.
    admission = open_admission(settings)
    if settings.otlp_endpoint:
        require_otlp()
    engine = await load_engine(settings)
    seal_abandoned(settings.segments_folder)
    seal_abandoned(settings.feedback_folder)
    app = create_app(
        engine=engine,
        settings=replace(settings, checks_host=True),
        writer=SegmentWriter(settings.segments_folder),
        admission=admission,
        on_warm=set_loaded_aside,
    )
    await make_server(app, settings).serve()


def set_loaded_aside() -> None:
    """Collect garbage once, and leave what is loaded by now out of all later collections.

    A full collection looks at every object of the libraries and of the release, and no question
    moves meanwhile: 50 to 300 ms, again and again under load. Now that happens once a release.
    Measured by `bench/gateway.py` at 100 requests/s, without traces: what the server adds at p99
    falls from 29 to 15 ms.
    """
    gc.unfreeze()  # what a release left that is closed by now may go
    gc.collect()
    gc.freeze()
