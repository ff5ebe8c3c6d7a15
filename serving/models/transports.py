"""How bytes reach a model's server.

Belongs here: the HTTP transport every remote client shares. Does not belong here: what is sent.
"""

import asyncio
from weakref import WeakKeyDictionary

import httpx2

UNLIMITED = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
"""Callers bound their own concurrency; a pool below it would close and reopen connections."""


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
        return await self._transports[loop].handle_async_request(request)

    async def aclose(self) -> None:
        """Close the connections of the running loop."""
        transport = self._transports.pop(asyncio.get_running_loop(), None)
        if transport is not None:
            await transport.aclose()
