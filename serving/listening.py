"""Listening: how connections are taken, and how a server lets go of them.

A request that does not begin to make sense in time is given up; a server that is told to stop
answers what it has taken, then ends what is left with an answer that says so. Belongs here: uvicorn
as a server uses it. Does not belong here: the app (`app`), what ends with it (`server`).
"""

import asyncio
import socket
from collections.abc import Callable
from typing import ClassVar

import uvicorn
from fastapi import FastAPI
from uvicorn.config import LOGGING_CONFIG
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.settings import ServerSettings

DRAIN_SECONDS = 25.0
"""How long questions in flight may go on once the server is told to stop."""

_LAST_ANSWERS_SECONDS = 3
"""For what was ended then: its trace, its problem document. Later, connections are cut."""


class PatientProtocol(HttpToolsProtocol):
    """HTTP/1.1, with an end to patience: uvicorn itself waits for ever for a header's end.

    One timer from the first moment a request is waited for; the byte now and then that keeps a
    connection busy does not wind it up again. Bodies have a limit of their own (`edge`).
    """

    header_seconds: ClassVar[float] = 30.0
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait_for_header()

    def data_received(self, data: bytes) -> None:
        """Go on waiting, unless these bytes end a header; then the request is being answered."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._waiting is None:
            self._wait_for_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_header(self) -> None:
        self._waiting = self.loop.call_later(self.header_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class DrainingServer(uvicorn.Server):
    """A server whose questions end by themselves within the drain, or are ended and told so.

    Left to uvicorn they would be cut: no answer, no reason, and nothing sent to who reads along.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        end_questions: Callable[[], object],
        drain_seconds: float,
    ) -> None:
        """Serve `config`; `end_questions` is called when the drain is over."""
        super().__init__(config)
        self._end_questions = end_questions
        self._drain_seconds = drain_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then stop."""
        loop = asyncio.get_running_loop()
        ending = loop.call_later(self._drain_seconds, self._end_questions)
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()


def make_server(app: FastAPI, settings: ServerSettings) -> DrainingServer:
    """Return the server of an app that `create_app` made."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=PatientProtocol,
        ws="none",
        access_log=False,
        log_config=LOGGING_CONFIG if settings.log_format == "text" else None,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=int(DRAIN_SECONDS) + _LAST_ANSWERS_SECONDS,
    )
    return DrainingServer(
        config, end_questions=app.state.end_questions, drain_seconds=DRAIN_SECONDS
    )
