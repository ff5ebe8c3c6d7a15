"""Weeks of traces that the real server wrote: planned traffic through its app, on a clock of ours.

Only the models and the retriever are canned; admission, routing, validation, tracing and segments
are production's. The clock is the server's `datetime.now` and that of its trace ids.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import uuid6

import serving.exchange
from orchestration.traffic import PlannedAsk, name_client, plan_traffic
from serving.access.keys import create_key
from serving.app import create_app
from serving.models.protocols import ChatRequest, Completion
from serving.pipeline.confidence import RiskThreshold
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
from tests.serving.pipeline.test_confidence import SIGNS, make_calibration

START = datetime(2026, 3, 2, tzinfo=UTC)
TOPICS = {
    "environment": [f"Where do I put environment variable number {n}?" for n in range(9)],
    "deploying": [f"How do I deploy release {n} of my project?" for n in range(9)],
    "restarting": [f"When must the server restart after change {n}?" for n in range(9)],
    "out_of_scope": ["Who won the football match?", "Write me a poem about rain."],
}


class Clock:
    """What time the server thinks it is."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    @contextlib.contextmanager
    def worn_by_server(self) -> Iterator[None]:
        clock = self

        class Simulated(datetime):
            @classmethod
            def now(cls, tz=None):
                return clock.now.astimezone(tz)

        real = serving.exchange.datetime, uuid6.time
        serving.exchange.datetime = Simulated
        uuid6.time = SimpleNamespace(time_ns=lambda: int(clock.now.timestamp() * 1e9))
        uuid6._last_v7_timestamp = None
        try:
            yield
        finally:
            serving.exchange.datetime, uuid6.time = real


def answer_as_student(request: ChatRequest) -> str:
    text = str(request.messages[-1]["content"])
    if "deploy" in text.lower() and "release 3" in text:
        return INVALID
    return "REFUSE" if "football" in text or "poem" in text else GOOD


def answer_as_teacher(request: ChatRequest) -> str:
    text = str(request.messages[-1]["content"])
    return "REFUSE" if "football" in text or "release 3" in text else GOOD


CALIBRATION = make_calibration(
    signals=("raw_logit",), means=(0.0,), scales=(1.0,), weights=(1.0,), intercept=0.0,
    thresholds=(RiskThreshold(risk_limit_ratio=0.05, threshold=0.6, accepted_count=59),),
)  # fmt: skip


class WaveringStudent(CannedChatModel):
    """The student, less sure of itself after change 5 than its calibration wants it."""

    async def complete(self, request: ChatRequest) -> Completion:
        is_unsure = "change 5" in str(request.messages[-1]["content"])
        done = await super().complete(request)
        return replace(done, mean_logprob=-0.6 if is_unsure else -0.1, signs=SIGNS)


def make_keys(home: Path, count: int, env: str = "prod") -> list[str]:
    return [
        create_key(
            home / "keys", tenant=f"tenant-{env}-{n}", scopes=("ask", "feedback:write"),
            valid_days=None, env=env, requests_per_minute=1_000_000,
        ).text
        for n in range(count)
    ]  # fmt: skip


def plan_days(days: float, asks_per_day: int, *, seed: int = 1, keys: int = 12) -> list[PlannedAsk]:
    return plan_traffic(TOPICS, days=days, asks_per_day=asks_per_day, seed=seed, key_count=keys)


def serve_plan(
    home: Path,
    plan: Sequence[PlannedAsk],
    *,
    keys: Sequence[str] = (),
    env: str = "prod",
    seal_bytes: int = 64 * 1024 * 1024,
    feedback: Sequence[str] = (),
    has_shadows: bool = False,
    has_doubts: bool = False,
    **parts: Any,
) -> list[str]:
    """Ask one server everything in order, stop it, and return the trace ids it promised.

    With `has_shadows` every answer has one, whose trace follows it; with `has_doubts` the student
    is calibrated, and some of its valid answers are not sure enough. `parts` of the engine replace
    the ones here.
    """
    student = WaveringStudent if has_doubts else CannedChatModel
    usual = {
        "student": student("compact@3f9c0a1b2c4d", answer_as_student, STUDENT_PRICE),
        "teacher": CannedChatModel("extractive-v1", answer_as_teacher, TEACHER_PRICE),
        "calibration": CALIBRATION if has_doubts else None,
    }
    engine = make_engine(**usual | parts)
    return asyncio.run(_serve(home, engine, plan, keys, env, seal_bytes, feedback, has_shadows))


async def _serve(home, engine, plan, keys, env, seal_bytes, feedback, has_shadows) -> list[str]:
    settings = ServerSettings(
        env=env, home=home, auth="keys" if keys else "open", shadow_ratio=1.0 * has_shadows
    )
    writer = SegmentWriter(settings.segments_folder, seal_bytes=seal_bytes)
    app = create_app(engine=engine, settings=settings, writer=writer)
    clock, stored = Clock(START), []
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        async with asyncio.timeout(20):
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.005)
        with clock.worn_by_server():
            for ask in plan:
                clock.now = START + timedelta(seconds=ask.at_seconds)
                reply = await client.post(
                    "/ask",
                    json={"question": ask.question, "conversation_id": ask.conversation_id},
                    headers=authorise(keys, ask.key_number) | name_client(ask),
                )
                assert reply.headers["x-trace-persisted"] == "true", reply.text
                stored.append(reply.headers["x-trace-id"])
                async with asyncio.timeout(20):
                    while has_shadows and writer.stored_count < 2 * len(stored):
                        await asyncio.sleep(0.001)
        for comment in feedback:
            body = {"trace_id": stored[-1], "rating": "down", "comment": comment}
            reply = await client.post("/feedback", json=body, headers=authorise(keys, 0))
            assert reply.status_code == 201, reply.text
    return stored


def authorise(keys: Sequence[str], number: int) -> dict[str, str]:
    return {"Authorization": f"Bearer {keys[number % len(keys)]}"} if keys else {}
