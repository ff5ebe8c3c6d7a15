"""The transport of a server's remote models: aiohttp's connections below the SDKs' httpx clients.

A call costs two thirds of the CPU it costs over httpx's own connections, which also look at every
idle one of the pool before each call. For one event loop, and closed at its end: the factory, whose
calls take seconds and whose loops come and go, keeps httpx's (`transports`).

Belongs here: requests and answers of one library in the words of the other, and what their failures
are called. Does not belong here: which failures pass (`faults`), deadlines (`asking`).
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial

import aiohttp
import httpx2
from aiohttp.client_proto import ResponseHandler

from serving.models.transports import BoundedStream

_LONGEST_HEADER_BYTES = 64 * 1024
_Names = tuple[tuple[type[Exception], type[httpx2.TransportError]], ...]
_FAILURES: _Names = (
    (aiohttp.ConnectionTimeoutError, httpx2.ConnectTimeout),
    (TimeoutError, httpx2.ReadTimeout),
    (aiohttp.ClientConnectorError, httpx2.ConnectError),
    (aiohttp.InvalidURL, httpx2.UnsupportedProtocol),
    (aiohttp.ClientResponseError, httpx2.RemoteProtocolError),
    (aiohttp.ClientError, httpx2.ReadError),
)
"""The first that fits names a failure: a connection that was never opened is told from one lost."""

_READ_FAILURES: _Names = (*_FAILURES, (Exception, httpx2.ReadError))
"""Of a body: whatever else its reader raises, the connection is of no more use."""

_Bodies = dict[ResponseHandler, aiohttp.StreamReader]


class ServedTransport(httpx2.AsyncBaseTransport):
    """Sends over aiohttp. Opens its session with the first request, in the loop of that request."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._bodies: _Bodies = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; the body of its answer is read as it comes."""
        patience = request.extensions.get("timeout", {})
        with _named_as_httpx_does():
            response = await self._open_session().request(
                request.method,
                str(request.url),
                headers=request.headers.multi_items(),
                data=await request.aread() or None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    sock_connect=patience.get("connect"), sock_read=patience.get("read")
                ),
            )
        self._watch(response)
        return httpx2.Response(
            response.status,
            headers=response.raw_headers,
            stream=BoundedStream(_Body(response)),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _watch(self, response: aiohttp.ClientResponse) -> None:
        """Let the end of its connection end a body.

        After a malformed chunk aiohttp closes the connection and tells nobody who waits for more.
        """
        connection = response.connection
        if connection is None or (protocol := connection.protocol) is None:
            return  # the body is there already
        if protocol not in self._bodies:
            if (closed := protocol.closed) is None:
                return  # it is lost: who reads on is told
            closed.add_done_callback(partial(_end_body, self._bodies, protocol))
        self._bodies[protocol] = response.content

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            # As httpx's: callers bound their own concurrency, and nothing is kept of an answer.
            connector = aiohttp.TCPConnector(limit=0, ssl=httpx2.create_ssl_context())
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                max_line_size=_LONGEST_HEADER_BYTES,
                max_field_size=_LONGEST_HEADER_BYTES,
            )
        return self._session


class _Body(httpx2.AsyncByteStream):
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _named_as_httpx_does(_READ_FAILURES):
            async for part in self._response.content.iter_any():
                yield part

    async def aclose(self) -> None:
        self._response.release()  # read to its end it is used again, else it is closed


def _end_body(bodies: _Bodies, protocol: ResponseHandler, closed: "asyncio.Future[None]") -> None:
    failure = None if closed.cancelled() else closed.exception()  # unread it is logged as lost
    body = bodies.pop(protocol)
    if not body.is_eof() and body.exception() is None:
        told = failure or "malformed, or closed too early"
        body.set_exception(aiohttp.ClientPayloadError(f"the body did not end: {told}"))


@contextmanager
def _named_as_httpx_does(failures: _Names = _FAILURES) -> Iterator[None]:
    try:
        yield
    except tuple(known for known, _ in failures) as failure:
        name = next(name for known, name in failures if isinstance(failure, known))
        raise name(str(failure)) from failure
