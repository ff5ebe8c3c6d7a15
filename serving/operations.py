"""What operators ask of a server: is it alive, ready, what does it serve, how does it do.

Belongs here: the routes beside /ask and /feedback. Does not belong here: counting (`metrics`),
whether a question is taken (`server`).
"""

from collections.abc import Awaitable, Callable

from fastapi import Request
from starlette.responses import JSONResponse, Response

from serving.access.admission import Principal
from serving.access.keys import Scope
from serving.metrics import ServerMetrics
from serving.operation_schemas import (
    Health,
    Readiness,
    ReleaseInfo,
    ReleaseSkill,
    ReleaseStudent,
    TraceHealth,
)
from serving.reference import complete_reference
from serving.releases.live import LiveRelease
from serving.settings import ServerSettings
from serving.tracing.segments import SegmentWriter


class Operations:
    """Answers about one server."""

    def __init__(
        self,
        live: LiveRelease,
        settings: ServerSettings,
        *,
        traces: SegmentWriter,
        metrics: ServerMetrics,
        are_keys_stale: Callable[[], bool],
        admit: Callable[[Request, Scope], Awaitable[Principal]],
        require_ready: Callable[[], None],
    ) -> None:
        """Look at the parts of a server; `admit` and `require_ready` raise problems."""
        self._live = live
        self._settings = settings
        self._traces = traces
        self._metrics = metrics
        self._admit = admit
        self._require_ready = require_ready
        self._are_keys_stale = are_keys_stale
        metrics.keys_stale.set_function(lambda: float(are_keys_stale()))

    async def report_metrics(self, request: Request) -> Response:
        """Count questions, answers, fallbacks, cost and traces. Scope: `metrics:read`."""
        await self._admit(request, "metrics:read")
        return Response(
            self._metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def describe_api(self, request: Request) -> Response:
        """Describe every route in the OpenAPI format."""
        await self._admit(request, "release:read")
        return JSONResponse(complete_reference(request.app.openapi()))

    async def report_health(self) -> Health:
        """Alive; `degraded` when something an operator has to mend does not stop the answers."""
        reasons = self._list_reasons()
        return Health(
            status="degraded" if reasons else "ok",
            degraded_because=reasons,
            release=self._live.engine.release_id,
            is_new_release_refused=self._live.failure is not None,
            traces=TraceHealth(
                stored_count=self._traces.stored_count, lost_count=self._traces.lost_count
            ),
        )

    def _list_reasons(self) -> list[str]:
        """Say what is wrong, in words that anybody may read: no path, nothing of a release."""
        is_wrong = {
            "traces are being lost": self._traces.is_losing,
            "the newest release cannot be loaded": self._live.failure is not None,
            "the key file cannot be read: the last good keys stay valid, and a key revoked since "
            "then still opens the server": self._are_keys_stale(),
        }
        return [reason for reason, holds in is_wrong.items() if holds]

    async def report_readiness(self) -> Readiness:
        """Answer 200 once questions are taken, a 503 problem that says why before."""
        self._require_ready()
        return Readiness(status="ready", release=self._live.engine.release_id)

    async def report_release(self, request: Request) -> ReleaseInfo:
        """Name the release, its models and its evidence; no secrets. Scope: `release:read`."""
        await self._admit(request, "release:read")
        engine = self._live.engine
        manifest = engine.manifest
        origin = engine.trace_origin(self._settings.env)
        return ReleaseInfo(
            release=engine.release_id,
            parent=engine.parent,
            sequence=engine.sequence,
            created_at=manifest.created_at.isoformat(),
            phase=engine.phase,
            release_phase=manifest.phase,
            gate_verdict=manifest.gate.verdict,
            students={
                name: ReleaseStudent(
                    adapter=student.adapter,
                    adapter_sha256=student.adapter_sha256,
                    base_model=student.base_model,
                    base_revision=student.base_revision,
                )
                for name, student in manifest.students.items()
            },
            skills={
                name: ReleaseSkill(
                    student=skill.student, pages=list(skill.pages), high_stakes=skill.high_stakes
                )
                for name, skill in manifest.skills.items()
            },
            teacher_model=manifest.teacher.model,
            prompt_version=origin.prompt_version,
            index_fingerprint=origin.index_fingerprint,
            embedder_fingerprint=origin.embedder_fingerprint,
            snapshot_hash=origin.snapshot_hash,
            distillation_loss_statement=manifest.distillation_loss_statement,
            new_release_refused_because=self._live.failure,
        )
