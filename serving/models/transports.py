"""How bytes reach a model's server.

Belongs here: the HTTP transport every remote client shares. Does not belong here: what is sent.
"""

import asyncio
from collections.abc import AsyncIterator
from weakref import WeakKeyDictionary

import httpx2

UNLIMITED = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
"""Callers bound their own concurrency; a pool below it would close and reopen connections."""

LARGEST_BODY_BYTES = 32 * 1024 * 1024
"""Of a model's answer, its logprobs included: one that never ends must not fill the memory."""


class TransportPerLoop(httpx2.AsyncBaseTransport):
    """Connections belong to the event loop that opened them; assets run one loop after another."""

    def __init__(self) -> None:
        self._transports: WeakKeyDictionary[
            asyncio.AbstractEventLoop, httpx2.AsyncHTTPTransport
        ] = WeakKeyDictionary()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send over a connection of the running loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._transports:
            self._transports[loop] = httpx2.AsyncHTTPTransport(limits=UNLIMITED)
        response = await self._transports[loop].handle_async_request(request)
        if isinstance(response.stream, httpx2.AsyncByteStream):
            response.stream = BoundedStream(response.stream)
        return response

    async def aclose(self) -> None:
        """Close the connections of the running loop."""
        transport = self._transports.pop(asyncio.get_running_loop(), None)
        if transport is not None:
            await transport.aclose()


class BoundedStream(httpx2.AsyncByteStream):
    """A body that fails once it is longer than any answer."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Hand the body on."""
        size = 0
        async for part in self._stream:
            size += len(part)
            if size > LARGEST_BODY_BYTES:
                raise httpx2.ReadError(f"a body over {LARGEST_BODY_BYTES} bytes")
            yield part

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()
