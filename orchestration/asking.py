"""Asking the current release without a network: the server's own app, called in process.

Belongs here: settings of a server started by the platform's CLI, and one request to it. Does not
belong here: the server (`serving/app`).
"""

from collections.abc import Mapping
from typing import Any

from orchestration.config import Config, read_environment
from serving.aio import run_blocking
from serving.settings import ServerSettings, from_environment


def server_settings(config: Config, overrides: Mapping[str, str] | None = None) -> ServerSettings:
    """Return the settings of a server of this configuration's home."""
    return from_environment(
        {**read_environment(), "UNDERSTUDY_HOME": str(config.home), **(overrides or {})}
    )


def ask_once(config: Config, question: str, *, prefer_quality: bool = False) -> dict[str, Any]:
    """Return the body `POST /ask` answers with: an answer, or a problem document.

    Raises:
        ReleaseError: nothing is released yet, or the release does not verify.
    """
    allow = {"UNDERSTUDY_SERVE_ALLOW_PREFER_QUALITY": "true"} if prefer_quality else {}
    return run_blocking(_ask(server_settings(config, allow), question, prefer_quality))


async def _ask(settings: ServerSettings, question: str, prefer_quality: bool) -> dict[str, Any]:  # noqa: FBT001
    import httpx2

    from serving.app import create_app
    from serving.engine import load_engine
    from serving.tracing.segments import SegmentWriter

    engine = await load_engine(settings)
    await engine.warm_up()
    app = create_app(
        engine=engine, settings=settings, writer=SegmentWriter(settings.segments_folder)
    )
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://release") as client:
            while (await client.get("/readyz")).status_code != 200:
                pass
            reply = await client.post(
                "/ask", json={"question": question, "prefer_quality": prefer_quality}
            )
    body: dict[str, Any] = reply.json()
    return body
