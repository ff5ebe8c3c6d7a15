"""An app with its lifespan running, a client of it, and its traces: what server tests start."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from serving.app import create_app
from serving.engine import ServingEngine
from serving.listening import PatientProtocol
from serving.schemas import STREAM_EVENTS
from serving.settings import ServerSettings
from serving.tracing.segments import SegmentWriter, read_segment

QUESTION = {"question": "Where do I put environment variables?"}


class Running:
    """One started app."""

    def __init__(self, client: httpx2.AsyncClient, home: Path) -> None:
        self.client = client
        self.home = home

    async def ask(self, **body: Any) -> httpx2.Response:
        return await self.client.post("/ask", json=QUESTION | body)

    async def stream(self, **body: Any) -> tuple[httpx2.Response, list[tuple[str, Any]]]:
        response = await self.client.post(
            "/ask", json=QUESTION | body, headers={"accept": "text/event-stream"}
        )
        return response, read_events(response.text)

    async def metrics(self) -> str:
        return (await self.client.get("/metrics")).text

    async def wait_for_metric(self, line: str) -> str:
        """Return the metrics once they hold a line; after five seconds, as they are."""
        for _ in range(1000):
            if line in (found := await self.metrics()):
                break
            await asyncio.sleep(0.005)
        return found

    def traces(self) -> list[dict[str, Any]]:
        folder = self.home / "traces" / "segments"
        paths = sorted([*folder.glob("*.seg"), *folder.glob("*.seg.open")])
        return [record for path in paths for record in read_segment(path)]

    async def wait_for_traces(self, count: int) -> list[dict[str, Any]]:
        for _ in range(1000):
            if len(self.traces()) >= count:
                break
            await asyncio.sleep(0.005)
        return self.traces()


def read_events(text: str) -> list[tuple[str, Any]]:
    """Return the server-sent events of a whole stream."""
    found = []
    for block in text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = name.removeprefix("event: ")
        content = json.loads(data.removeprefix("data: "))
        STREAM_EVENTS[event].model_validate(content)  # what the reference says of it
        found.append((event, content))
    return found


@asynccontextmanager
async def run_app(engine: ServingEngine, home: Path, **options: Any) -> AsyncIterator[Running]:
    """Start an app over an engine in a home of its own, and wait until it is warm."""
    settings = ServerSettings(home=home, **options)
    app = create_app(
        engine=engine, settings=settings, writer=SegmentWriter(settings.segments_folder)
    )
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        await wait_until_ready(client)
        yield Running(client, home)


async def wait_until_ready(client: httpx2.AsyncClient) -> None:
    """Wait for the warm-up, for two seconds at most: some tests' models never get warm."""
    for _ in range(400):
        if (await client.get("/readyz")).status_code == 200:
            return
        await asyncio.sleep(0.005)


@asynccontextmanager
async def listen(engine: ServingEngine, home: Path, **options: Any) -> AsyncIterator[int]:
    """Serve an engine on a real socket of this loop; yield the port."""
    settings = ServerSettings(home=home, **options)
    app = create_app(
        engine=engine, settings=settings, writer=SegmentWriter(settings.segments_folder)
    )
    config = uvicorn.Config(app, port=0, log_level="critical", ws="none", http=PatientProtocol)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task
