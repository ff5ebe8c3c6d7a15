"""The shadow: after an answer is sent, a sampled share of questions also goes to the other model.

Its answers are traces of their own and nobody waits for them: one runs at a time, what comes
meanwhile is skipped and counted, and a budget of its own bounds what it costs. Belongs here:
sampling, asking, tracing it. Does not belong here: comparing the two (the platform).
"""

import asyncio
import logging
import random
import time
from datetime import UTC, datetime

from serving.access.admission import Principal
from serving.access.quotas import Quotas
from serving.engine import ServingEngine
from serving.errors import ModelError
from serving.metrics import ServerMetrics
from serving.models.protocols import ServedBy, is_stopped
from serving.pipeline.answer import Answered
from serving.releases.live import LiveRelease
from serving.settings import ServerSettings
from serving.tracing.record import TraceRecord, build_record, new_trace_id
from serving.tracing.segments import SegmentWriter

_LOG = logging.getLogger(__name__)


class Shadow:
    """Asks the other model again, off the hot path."""

    def __init__(
        self,
        live: LiveRelease,
        settings: ServerSettings,
        *,
        traces: SegmentWriter,
        metrics: ServerMetrics,
    ) -> None:
        """Ask nobody yet."""
        self._live = live
        self._settings = settings
        self._traces = traces
        self._metrics = metrics
        self._quotas = Quotas()
        self._draw = random.SystemRandom().random
        self._task: asyncio.Task[None] | None = None

    async def follow(
        self, engine: ServingEngine, answered: Answered, served: TraceRecord, principal: Principal
    ) -> None:
        """Start a shadow of an answer that was sent, if it is drawn; returns at once."""
        if engine.pipeline.student is None or self._draw() >= self._share(engine):
            return
        if self._task is not None and not self._task.done():
            self._metrics.count_shadow("skipped_busy")
            return
        task = self._ask(engine, answered, served, principal)
        self._task = asyncio.create_task(task)

    async def close(self) -> None:
        """Let the one that runs go."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _share(self, engine: ServingEngine) -> float:
        if self._settings.shadow_ratio is not None:
            return self._settings.shadow_ratio
        return 1.0 if engine.phase == "imposter" else 0.0

    async def _ask(
        self, engine: ServingEngine, answered: Answered, served: TraceRecord, principal: Principal
    ) -> None:
        other: ServedBy = "student" if answered.served_by == "teacher" else "teacher"
        with self._live.lease() as current:
            if current is not engine:
                self._metrics.count_shadow("skipped_release")
                return
            pipeline = engine.pipeline
            is_teacher = other == "teacher"
            model = pipeline.teacher if is_teacher else pipeline.find_student(answered.skill)
            if model is None or is_stopped(model):
                self._metrics.count_shadow("skipped_breaker")
            elif await self._quotas.count_daily("shadow", self._settings.shadow_calls_per_day):
                self._metrics.count_shadow("skipped_budget")
            else:
                await self._ask_and_trace(engine, answered, other, served, principal)

    async def _ask_and_trace(
        self,
        engine: ServingEngine,
        answered: Answered,
        other: ServedBy,
        served: TraceRecord,
        principal: Principal,
    ) -> None:
        asked_at = datetime.now(UTC)
        try:
            async with asyncio.timeout(self._settings.request_deadline_seconds):
                again = await engine.pipeline.ask_again_as(answered, other)
        except Exception as error:  # noqa: BLE001  (nobody waits for it, so nobody is told)
            is_planned = isinstance(error, ModelError | TimeoutError)
            _LOG.warning("a shadow did not answer", exc_info=None if is_planned else error)
            self._metrics.count_shadow("failed")
            return
        record = build_record(
            again,
            origin=engine.trace_origin(principal.trace_env(self._settings.env)),
            trace_id=new_trace_id(),
            asked_at=asked_at,
            client_kind=served.client_kind,
            key_id=principal.key_id,
            conversation_id=served.conversation_id,
            shadow_of=served.trace_id,
        )
        await self._traces.append(record)
        self._metrics.count_shadow("answered", cost_usd=again.cost_usd, now=time.time())
