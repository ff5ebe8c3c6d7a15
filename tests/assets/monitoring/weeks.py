"""Weeks of traffic through the real server, quiet or with one thing wrong, as stored traces.

Planned traffic of real seed questions goes through the server's app on a clock of ours: routing,
canary, shadow, validation, tracing, segments and compaction are production's. Only the models and
the retriever are canned. Time is virtual, so what a model is said to take is what the trace says.
"""

import asyncio
import contextlib
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import httpx2
import limits.aio.storage.memory
import polars as pl

import serving.exchange
import serving.pipeline.answer
import serving.pipeline.answered
import serving.shadowing
from assets.monitoring.traffic import Traffic, add_columns, split_traffic
from assets.traces.hours import find_folder, list_hours, scan_hours
from orchestration.curate_cli import compact
from orchestration.traffic import PlannedAsk, name_client, plan_traffic
from orchestration.traffic_cli import read_topics
from resources.input_files import SeedFile
from serving.app import create_app
from serving.home import Home
from serving.models.protocols import ChatRequest, Completion, Hit
from serving.pipeline.router import RouterPolicy
from serving.settings import ServerSettings
from serving.tracing.segments import SegmentWriter
from tests.assets.traces.served import START, Clock, authorise, make_keys
from tests.serving.fakes import (
    GOOD,
    HITS,
    STUDENT_PRICE,
    TEACHER_PRICE,
    CannedChatModel,
    CannedRetriever,
    make_engine,
    make_manifest,
)

WEEK = timedelta(days=7)
ASKS_PER_DAY = 100
SEEDS = Path(__file__).resolve().parents[3] / "data" / "seed_prompts.jsonl"
QUESTIONS = read_topics(SeedFile(SEEDS))
TOPIC_OF = {text: topic for topic, texts in QUESTIONS.items() for text in texts}


@dataclass
class VirtualTime:
    """Seconds that pass only when a model says so."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now


@dataclass
class TimedModel(CannedChatModel):
    """A canned model that takes virtual time and says whether it was cold."""

    time: VirtualTime = field(default_factory=VirtualTime)
    latency: Callable[[], float] = lambda: 1.0
    cold: Callable[[], float] = lambda: 0.0
    """Seconds of loading that this answer waits for; 0: it was warm."""

    async def complete(self, request: ChatRequest) -> Completion:
        done = await super().complete(request)
        load = self.cold()
        taken = self.latency() + load
        self.time.now += taken
        return replace(
            done, latency_ms=taken * 1000, cold_start=load > 0, adapter_load_ms=load * 1000
        )


@dataclass
class TopicRetriever(CannedRetriever):
    """Finds the page of a seed question's topic, with a score that is the question's own."""

    score_shift: float = 0.0

    async def retrieve(self, question: str) -> tuple[Hit, ...]:
        core = next((text for text in TOPIC_OF if text in question), "")
        topic = TOPIC_OF.get(core, "other")
        score = 0.6 + zlib.crc32(question.encode()) % 1000 / 3000 + self.score_shift
        return tuple(
            replace(hit, chunk_id=f"docs:{topic}/{n}", score=score - n / 100)
            for n, hit in enumerate(HITS)
        )


@dataclass
class Faults:
    """What is wrong in a week; nothing by default."""

    student_lapse_ratio: float = 0.005
    refused_words: tuple[str, ...] = ()
    """A student that lost a behaviour: it refuses questions with these words."""
    cold_ratio: float = 0.0
    cold_seconds: float = 20.0
    slow_hours: tuple[int, ...] = ()
    slow_factor: float = 1.0
    draw_arm: Callable[..., float] | None = None
    canary_ratio: float | None = 0.5
    shadow_ratio: float = 1.0
    shadow_calls_per_day: int = 10**9
    score_shift: float = 0.0
    """What the index lost: the best sources are no longer there."""
    embedder_fingerprint: str = "e0e0"
    is_late: bool = False
    """The generator's second half, in which other topics dominate."""
    reword: Callable[[str], str] = str


def plan_week(
    seed: int, start: datetime, *, asks_per_day: int = ASKS_PER_DAY, is_late: bool = False
) -> list[PlannedAsk]:
    """Return a week of the generator's traffic, before its topics shift or after, at `start`."""
    plan = plan_traffic(QUESTIONS, days=14, asks_per_day=asks_per_day, seed=seed, key_count=12)
    length = WEEK.total_seconds()
    offset = (start - START).total_seconds() - (length if is_late else 0.0)
    half = [ask for ask in plan if (ask.at_seconds >= length) == is_late]
    return [replace(ask, at_seconds=ask.at_seconds + offset) for ask in half]


def serve_week(
    root: Path, start: datetime, *, seed: int, faults: Faults | None = None, env: str = "prod",
    asks_per_day: int = ASKS_PER_DAY,
) -> pl.DataFrame:  # fmt: skip
    """Serve a week into a home and return all its stored traces, with the monitors' columns."""
    faults = faults or Faults()
    plan = plan_week(seed, start, asks_per_day=asks_per_day, is_late=faults.is_late)
    keys = make_keys(root, 12, env=env)
    asyncio.run(_serve(root, plan, keys, faults, seed))
    compact(Home(root))
    return read_traces(Home(root))


def read_traces(home: Home) -> pl.DataFrame:
    """Return every stored trace of a home."""
    return add_columns(scan_hours(list_hours(find_folder(home)))).collect()


def put_together(before: pl.DataFrame, now: pl.DataFrame, *, start: datetime) -> Traffic:
    """Return a week and the one before it as the monitors see them."""
    return split_traffic(
        pl.concat([before, now]), start=start, end=start + WEEK, before_start=start - 4 * WEEK
    )


async def _serve(
    root: Path, plan: Sequence[PlannedAsk], keys: Sequence[str], faults: Faults, seed: int
) -> None:
    clock, virtual = Clock(START), VirtualTime()
    app = create_app(
        engine=_build_engine(clock, virtual, faults, random.Random(seed)),  # noqa: S311 - of a test
        settings=ServerSettings(
            env="prod", home=root, auth="keys", canary_salt="s",
            shadow_ratio=faults.shadow_ratio, shadow_calls_per_day=faults.shadow_calls_per_day,
        ),
        writer=SegmentWriter(root / "traces" / "segments"),
    )  # fmt: skip
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        async with asyncio.timeout(20):
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.005)
        with clock.worn_by_server(), _wear(virtual, clock, faults):
            for ask in plan:
                clock.now = START + timedelta(seconds=ask.at_seconds)
                reply = await client.post(
                    "/ask",
                    json={
                        "question": faults.reword(ask.question),
                        "conversation_id": ask.conversation_id,
                    },
                    headers=authorise(keys, ask.key_number) | name_client(ask),
                )
                assert reply.headers["x-trace-persisted"] == "true", reply.text
                for _ in range(20):  # the shadow answers after the reply
                    await asyncio.sleep(0)
            await asyncio.sleep(0.05)


def _build_engine(clock: Clock, virtual: VirtualTime, faults: Faults, chance: random.Random):
    def latency() -> float:
        factor = faults.slow_factor if clock.now.hour in faults.slow_hours else 1.0
        return chance.lognormvariate(0.0, 0.3) * factor

    def load() -> float:
        return faults.cold_seconds if chance.random() < faults.cold_ratio else 0.0

    def answer(request: ChatRequest) -> str:
        text = str(request.messages[-1]["content"]).lower()
        is_lost = any(word in text for word in faults.refused_words)
        return "REFUSE" if is_lost or chance.random() < faults.student_lapse_ratio else GOOD

    manifest = make_manifest()
    embedder = manifest.embedder.model_copy(update={"fingerprint": faults.embedder_fingerprint})
    policy = RouterPolicy(canary_ratio=faults.canary_ratio, maximum_risk_ratio=None)
    return make_engine(
        manifest=manifest.model_copy(update={"embedder": embedder}),
        student=TimedModel(
            "compact@3f9c0a1b2c4d", answer, STUDENT_PRICE, time=virtual, latency=latency, cold=load
        ),
        teacher=TimedModel("extractive-v1", GOOD, TEACHER_PRICE, time=virtual, latency=latency),
        retriever=TopicRetriever(score_shift=faults.score_shift),
        router=policy,
    )


@contextlib.contextmanager
def _wear(virtual: VirtualTime, clock: Clock, faults: Faults) -> Iterator[None]:
    """Put virtual time, the clock and a faulty draw in the place of the server's and quotas' own.

    The shadow's clock is that of the questions.
    """
    timed = [serving.pipeline.answer, serving.pipeline.answered]
    kept = [module.time for module in timed], serving.exchange.time, serving.shadowing.datetime
    draw, daily = serving.exchange.draw_conversation, limits.aio.storage.memory.time
    limits.aio.storage.memory.time = SimpleNamespace(time=lambda: clock.now.timestamp())
    for module in timed:
        module.time = virtual
    real = kept[1]
    serving.exchange.time = SimpleNamespace(
        perf_counter=virtual.perf_counter, monotonic=real.monotonic, time=real.time
    )
    serving.shadowing.datetime = serving.exchange.datetime
    if faults.draw_arm:
        serving.exchange.draw_conversation = faults.draw_arm
    try:
        yield
    finally:
        for module, time in zip(timed, kept[0], strict=True):
            module.time = time
        serving.exchange.time, serving.shadowing.datetime = kept[1], kept[2]
        serving.exchange.draw_conversation = draw
        limits.aio.storage.memory.time = daily
