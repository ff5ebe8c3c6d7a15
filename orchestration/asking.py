"""Asking the current release without a network: the server's own app, called in process.

Belongs here: settings of a server started by the platform's CLI, and one request to it. Does not
belong here: the server (`serving/app`).
"""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestration.config import Config, read_environment
from serving.aio import run_blocking
from serving.errors import ReleaseError
from serving.settings import ServerSettings, from_environment

if TYPE_CHECKING:
    import httpx2

LONGEST_WARM_UP_SECONDS = 120.0
POLL_SECONDS = 0.1
WARM_UP_FAILED = "warm-up failed"
"""What the server's /readyz says of a warm-up that went wrong."""


def server_settings(config: Config, overrides: Mapping[str, str] | None = None) -> ServerSettings:
    """Return the settings of a server of this configuration's home."""
    return from_environment(
        {**read_environment(), "UNDERSTUDY_HOME": str(config.home), **(overrides or {})}
    )


def ask_once(config: Config, question: str, *, prefer_quality: bool = False) -> dict[str, Any]:
    """Return the body `POST /ask` answers with: an answer, or a problem document.

    Raises:
        ReleaseError: nothing is released yet, the release does not verify or does not warm up.
    """
    # Who runs this owns the home: no key is asked for, and nothing listens.
    allow = {"UNDERSTUDY_SERVE_AUTH": "open"}
    if prefer_quality:
        allow["UNDERSTUDY_SERVE_ALLOW_PREFER_QUALITY"] = "true"
    return run_blocking(_ask(server_settings(config, allow), question, prefer_quality))


async def _ask(settings: ServerSettings, question: str, prefer_quality: bool) -> dict[str, Any]:  # noqa: FBT001
    import httpx2

    from serving.app import create_app
    from serving.engine import load_engine
    from serving.tracing.segments import SegmentWriter

    engine = await load_engine(settings)
    app = create_app(
        engine=engine, settings=settings, writer=SegmentWriter(settings.segments_folder)
    )
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://release") as client:
            await wait_until_ready(client)
            reply = await client.post(
                "/ask", json={"question": question, "prefer_quality": prefer_quality}
            )
    body: dict[str, Any] = reply.json()
    return body


async def wait_until_ready(client: "httpx2.AsyncClient") -> None:
    """Wait for the app's own warm-up: a second one here would pay the teacher twice.

    Raises:
        ReleaseError: the warm-up failed, or took longer than two minutes.
    """
    found = "no answer of /readyz"
    try:
        async with asyncio.timeout(LONGEST_WARM_UP_SECONDS):
            while True:
                reply = await client.get("/readyz")
                if reply.status_code == 200:
                    return
                found = reply.json()["found"]
                if WARM_UP_FAILED in found:
                    break
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        found = f"{found}, for {LONGEST_WARM_UP_SECONDS:.0f} s"
    raise ReleaseError(
        "warming up the current release",
        expected="its model to answer and its golden prompts to retrieve what they did",
        found=found,
        next_step="read the lines above; check the teacher's key and server with "
        "`understudy doctor`, or build a new release with `understudy run`",
    )
