"""Segments as a running server leaves them: asked over HTTP, recorded, sealed at shutdown."""

import asyncio
from pathlib import Path

import httpx2
import pytest

from serving.app import create_app
from serving.errors import UpstreamError
from serving.settings import ServerSettings
from serving.tracing.segments import SegmentWriter
from tests.serving.fakes import (
    GOOD,
    INVALID,
    STUDENT_PRICE,
    TEACHER_PRICE,
    CannedChatModel,
    make_engine,
)

QUESTIONS = (
    "Where do I put environment variables?",
    "My address is jo@example.com and my number +44 20 7946 0958: how do I deploy?",
    "Who won the football match?",
)


async def serve_questions(
    folder: Path, questions=QUESTIONS, *, student: str = GOOD, outage: Exception | None = None
) -> None:
    """Ask a server that traces into `folder`, and stop it; an outage begins once it is warm."""
    models = [
        CannedChatModel("compact@3f9c0a1b2c4d", student, price=STUDENT_PRICE),
        CannedChatModel("extractive-v1", price=TEACHER_PRICE),
    ]
    app = create_app(
        engine=make_engine(student=models[0], teacher=models[1]),
        settings=ServerSettings(env="prod", home=folder.parent),
        writer=SegmentWriter(folder),
    )
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        for _ in range(200):
            if (await client.get("/readyz")).status_code == 200:
                break
            await asyncio.sleep(0.005)
        for model in models:
            model.answer = outage or model.answer
        for text in questions:
            response = await client.post("/ask", json={"question": text})
            assert response.headers["x-trace-persisted"] == "true"


@pytest.fixture
async def segments(tmp_path: Path) -> Path:
    """Answers, a refusal, a fallback and a problem: one server each."""
    folder = tmp_path / "home" / "traces" / "segments"
    await serve_questions(folder)
    await serve_questions(folder, QUESTIONS[:1], student="REFUSE")
    await serve_questions(folder, QUESTIONS[:1], student=INVALID)
    outage = UpstreamError("asking", expected="200", found="502", next_step="wait")
    await serve_questions(folder, QUESTIONS[:1], outage=outage)
    return folder
