"""The outermost middleware: a trace id, the limit on bodies, the security headers, the last catch.

Belongs here: what holds for every request before any route sees it. Does not belong here: routes.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.problems import ProblemError, too_large, unexpected, write_problem
from serving.settings import MAXIMUM_BODY_BYTES
from serving.tracing.record import new_trace_id

SECURITY_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""A page of our own names a wider content policy itself; these do not replace it."""

_LOG = logging.getLogger(__name__)

LONGEST_BODY_SECONDS = 30.0
"""A client that sends a byte now and then holds a connection no longer than this."""


class Edge:
    """Middleware around the whole app. No CORS header is ever sent: other origins get nothing."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        is_foreign: Callable[[str], bool] | None = None,
        body_seconds: float = LONGEST_BODY_SECONDS,
    ) -> None:
        """Wrap an app. `is_foreign` says of a `Host` that nobody may have come by it."""
        self._app = app
        self._body_seconds = body_seconds
        self._is_foreign = is_foreign or (lambda _host: False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body whole, then hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace_id = scope.setdefault("state", {})["trace_id"] = new_trace_id()
        has_started = False

        async def send_secured(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check_host(Headers(scope=scope).get("host", ""))
            body = await self._read_body_in_time(scope, receive)
        except ProblemError as problem:
            await write_problem(problem, trace_id)(scope, receive, send_secured)
            return
        if body is None:
            return
        try:
            await self._app(scope, _replay(body, receive), send_secured)
        except Exception as error:
            # Here and not in an exception handler: those of `Exception` run outside this
            # middleware, where the document would go out without the security headers.
            if has_started:
                raise
            _LOG.exception("the request %s failed", trace_id)
            await write_problem(unexpected(error), trace_id)(scope, receive, send_secured)

    async def _read_body_in_time(self, scope: Scope, receive: Receive) -> bytes | None:
        try:
            async with asyncio.timeout(self._body_seconds):
                return await _read_body(scope, receive)
        except TimeoutError:
            raise ProblemError(
                "invalid-request",
                expected=f"a whole body within {self._body_seconds:g} s",
                found="a part of one",
                next_step="Send the body at once.",
                headers={"Connection": "close"},
            ) from None

    def _check_host(self, host: str) -> None:
        if self._is_foreign(host):
            raise ProblemError(
                "not-allowed",
                expected="an address of this machine in the Host header",
                found="another name",
                next_step="Use 127.0.0.1 or localhost; a server with API keys takes any name.",
            )


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
