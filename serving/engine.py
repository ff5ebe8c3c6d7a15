"""The serving engine: a verified release, assembled into the pipeline that answers.

Belongs here: loading every part of a release, refusing parts that do not belong together, the
warm-up. Does not belong here: HTTP (`app`), verifying files and signatures (`releases.bundle`).
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from serving.errors import IndexMismatchError, ReleaseError
from serving.hashing import content_hash
from serving.models.protocols import ChatModel, Embedder, Reranker
from serving.pipeline.answer import AnswerPipeline, Mode
from serving.pipeline.assembly import PipelineParts, estimate_tokens
from serving.pipeline.confidence import ConfidenceCalibration
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.router import Phase
from serving.pipeline.validator import VALIDATOR_VERSION
from serving.releases.bundle import VerifiedRelease, load_current, load_public_key
from serving.releases.manifest import ReleaseManifest, StudentEntry, hash_retrieved
from serving.settings import ServerSettings
from serving.tracing.record import TraceOrigin

if TYPE_CHECKING:
    from serving.models.local_student import LocalStudent
    from serving.models.prompted_student import OpenedBase, PromptedStudent

    ServedStudent = LocalStudent | PromptedStudent

WARM_UP_QUESTION = "What is this documentation about?"
_LOG = logging.getLogger(__name__)


async def _close_nothing() -> None:
    """Close an engine that holds nothing open."""


@dataclass(frozen=True, kw_only=True)
class ServingEngine:
    """One release, ready to answer. Requests in flight keep the engine they began with.

    `sequence` and `parent` are those of the signed pointer; `close` frees what is held open.
    """

    pipeline: AnswerPipeline
    manifest: ReleaseManifest
    sequence: int = 0
    parent: str | None = None
    close: Callable[[], Awaitable[None]] = _close_nothing

    @property
    def release_id(self) -> str:
        """The content hash of the release."""
        return self.manifest.release_id

    @property
    def phase(self) -> Phase:
        """The phase in force: the operator's, else the release's."""
        return self.pipeline.phase

    @cached_property
    def snapshot_hash(self) -> str:
        """Identity of what decides an answer: prompt, index, retrieval, policies, students."""
        content = self.manifest.model_dump(mode="json")
        return content_hash(
            *(content[part] for part in ("prompt", "index", "retrieval", "validator", "router")),
            sorted(student.adapter_sha256 for student in self.manifest.students.values()),
            {name: entry["calibration"] for name, entry in content["students"].items()},
        )

    def trace_origin(self, env: str) -> TraceOrigin:
        """Return what every trace of this engine has in common."""
        students = list(self.manifest.students.values())
        return TraceOrigin(
            env=env,
            release_id=self.release_id,
            phase=self.phase,
            prompt_version=self.pipeline.prompt.version,
            snapshot_hash=self.snapshot_hash,
            index_fingerprint=self.pipeline.retriever.index_fingerprint,
            embedder_fingerprint=self.manifest.embedder.fingerprint,
            teacher_price=self.pipeline.teacher.price,
            adapter_sha=students[0].adapter_sha256 if students else None,
        )

    async def warm_up(self) -> None:
        """Answer once with the model that takes most traffic, then check the golden prompts.

        Raises:
            ModelError: the model does not answer.
            IndexMismatchError: a golden prompt retrieves other chunks than it did at the build.
        """
        is_student = self.pipeline.student is not None and self.phase == "switch"
        mode: Mode = "student" if is_student else "teacher"
        await self.pipeline.answer(WARM_UP_QUESTION, mode=mode)
        for golden in self.manifest.golden_prompts:
            hits = await self.pipeline.retriever.retrieve(golden.question)
            found = hash_retrieved([hit.chunk_id for hit in hits])
            if found != golden.retrieved_hash:
                raise IndexMismatchError(
                    f"checking the golden prompt {golden.question!r}",
                    expected=f"retrieved chunks with hash {golden.retrieved_hash}",
                    found=f"{found}: {[hit.chunk_id for hit in hits]}",
                    next_step="serve the index and embedder the release was built with",
                )


async def load_engine(settings: ServerSettings) -> ServingEngine:
    """Load the release CURRENT points at.

    Raises:
        ReleaseError: the release does not verify, or a part is not what its manifest pins.
        IndexMismatchError: index and embedder do not belong together.
        InvalidInputError: the teacher's key or a base model is missing.
    """
    # In a thread: a server loads its next release while it answers from the last.
    release, embedder, reranker = await asyncio.to_thread(_load_files, settings)
    manifest = release.manifest
    async with contextlib.AsyncExitStack() as opened:
        teacher, close_teacher = _connect_teacher(manifest, settings, embedder)
        opened.push_async_callback(close_teacher)
        student = await asyncio.to_thread(_load_student, release, settings, embedder)
        opened.push_async_callback(getattr(student, "close", _close_nothing))
        parts = _gather_parts(manifest, settings, embedder, reranker, teacher, student)
        pipeline = await parts.assemble(
            manifest.index.fingerprint,
            student=student,
            calibration=choose_calibration(manifest, student),
            phase=_choose_phase(manifest, settings),
        )
        close = opened.pop_all().aclose
    return ServingEngine(
        pipeline=pipeline,
        manifest=manifest,
        sequence=release.sequence,
        parent=release.parent,
        close=close,
    )


def _load_files(settings: ServerSettings) -> tuple[VerifiedRelease, Embedder, Reranker | None]:
    """Verify the release and load what embeds and orders; reads every byte of the bundle."""
    release = load_current(settings.releases_folder, load_public_key(settings.keys_folder))
    _check_versions(release.manifest)
    embedder = _load_embedder(release.manifest, settings.models_folder)
    _ = embedder.dimension  # an embedder that is not compiled loads its weights for it
    return release, embedder, _load_reranker(release.manifest, settings.models_folder)


def _gather_parts(
    manifest: ReleaseManifest,
    settings: ServerSettings,
    embedder: Embedder,
    reranker: Reranker | None,
    teacher: ChatModel,
    student: "ServedStudent | None",
) -> PipelineParts:
    return PipelineParts(
        index_folder=(settings.home / manifest.index.uri).parent,
        embedder=embedder,
        k=manifest.retrieval.k,
        teacher=teacher,
        prompt=_prompt(manifest),
        router=manifest.router,
        validator=manifest.validator.policy,
        count_tokens=student.count_prompt_tokens if student else estimate_tokens,
        reranker=reranker,
    )


def _choose_phase(manifest: ReleaseManifest, settings: ServerSettings) -> Phase:
    """Return the operator's phase, else the release's; overriding a verdict is said in the log."""
    phase = settings.phase or manifest.phase
    if phase != manifest.phase:
        _LOG.warning(
            "serving in phase %s by setting; the release was published as %s (verdict %s)",
            phase,
            manifest.phase,
            manifest.gate.verdict,
        )
    return phase


def choose_calibration(
    manifest: ReleaseManifest, student: "ServedStudent | None"
) -> ConfidenceCalibration | None:
    """Return the student's calibration, unless it was fitted to numbers of another precision."""
    entry = next(iter(manifest.students.values()), None)
    if student is None or entry is None or entry.calibration is None:
        return None
    if entry.calibration.dtype != student.dtype:
        _LOG.warning(
            "serving %s in %s without confidences: they were calibrated in %s",
            entry.adapter,
            student.dtype,
            entry.calibration.dtype,
        )
        return None
    return entry.calibration


def _prompt(manifest: ReleaseManifest) -> PromptFormat:
    entry = manifest.prompt
    return PromptFormat(citation_ids=entry.citation_ids, max_answer_tokens=entry.max_answer_tokens)


def _check_versions(manifest: ReleaseManifest) -> None:
    _expect(manifest, "prompt version", manifest.prompt.version, _prompt(manifest).version)
    _expect(manifest, "validator version", manifest.validator.version, VALIDATOR_VERSION)
    if len(manifest.students) > 1:
        _expect(manifest, "number of students", "1", str(len(manifest.students)))


def _load_embedder(manifest: ReleaseManifest, models_folder: Path) -> Embedder:
    from serving.models.embedder import load_embedder

    entry = manifest.embedder
    embedder = load_embedder(entry.model, entry.revision, models_folder)
    if embedder.fingerprint != entry.fingerprint:
        raise IndexMismatchError(
            f"loading the embedder of release {manifest.release_id}",
            expected=f"{entry.model} with fingerprint {entry.fingerprint}, the index's",
            found=embedder.fingerprint,
            next_step="install the embedder the index was built with, or build a new release",
        )
    return embedder


def _load_reranker(manifest: ReleaseManifest, models_folder: Path) -> Reranker | None:
    from serving.models.cross_encoder import load_reranker

    entry = manifest.retrieval.reranker
    if entry is None:
        return None
    reranker = load_reranker(entry.model, entry.revision, models_folder)
    _expect(manifest, f"reranker {entry.model}", entry.fingerprint, reranker.fingerprint)
    return reranker


def _connect_teacher(
    manifest: ReleaseManifest, settings: ServerSettings, embedder: Embedder
) -> tuple[ChatModel, Callable[[], Awaitable[None]]]:
    from serving.models.openai_chat import connect_in_process
    from serving.models.remote import connect_remote

    entry = manifest.teacher
    teacher: ChatModel
    if entry.provider == "extractive":
        from serving.models.extractive.app import create_app

        teacher = connect_in_process(
            create_app(embedder),
            model=entry.model,
            price=entry.price,
            timeout_seconds=entry.timeout_seconds,
        )
    else:
        teacher = connect_remote(
            provider=entry.provider,
            base_url=entry.base_url,
            api_key=settings.read_secret(entry.api_key_env),
            model=entry.model,
            price=entry.price,
            timeout_seconds=entry.timeout_seconds,
        )
    return teacher, getattr(teacher, "close", _close_nothing)


def _load_student(
    release: VerifiedRelease, settings: ServerSettings, embedder: Embedder
) -> "ServedStudent | None":
    from serving.models.prompted_student import load_prompted_student

    for name, entry in release.manifest.students.items():
        folder = release.adapter_folder(name)
        if entry.is_trained:
            return _load_local(release.manifest, entry, settings.models_folder, folder)
        return load_prompted_student(
            folder,
            _open_base(release.manifest, entry, settings),
            name=entry.adapter,
            base_identity=entry.base_hash,
            open_embedder=lambda: embedder,
        )
    return None


def _load_local(
    manifest: ReleaseManifest, entry: StudentEntry, models_folder: Path, folder: Path | None
) -> "LocalStudent":
    """Load the base of a student, with the adapter in `folder` unless that is None."""
    from serving.models.causal_lm import hash_base_model
    from serving.models.embedded import resolve_model
    from serving.models.local_student import LocalStudent

    base = resolve_model(entry.base_model, entry.base_revision, models_folder).path
    found = hash_base_model(base)
    _expect(manifest, f"hash of the base model {entry.base_model}", entry.base_hash, found)
    return LocalStudent.load(
        base,
        folder,
        name=entry.adapter,
        price=entry.price,
        activation=entry.activation or "question",  # without an adapter: where a prefix is shared
        context_tokens=entry.context_tokens,
    )


def _open_base(
    manifest: ReleaseManifest, entry: StudentEntry, settings: ServerSettings
) -> "OpenedBase":
    from serving.models.prompted_student import OpenedBase
    from serving.models.remote import connect_remote, hash_remote_model

    if entry.engine == "local":
        local = _load_local(manifest, entry, settings.models_folder, None)
        return OpenedBase(
            model=local,
            identity=entry.base_hash,
            count_tokens=local.count_prompt_tokens,
            context_tokens=entry.context_tokens,
            dtype=local.dtype,
        )
    remote = connect_remote(
        provider=entry.engine,
        base_url=entry.base_url,
        api_key=settings.read_secret(entry.api_key_env),
        model=entry.base_model,
        price=entry.price,
        timeout_seconds=entry.timeout_seconds,
    )
    return OpenedBase(
        model=remote,
        identity=hash_remote_model(entry.engine, entry.base_model, entry.base_url),
        count_tokens=estimate_tokens,
        context_tokens=entry.context_tokens,
    )


def _expect(manifest: ReleaseManifest, what: str, expected: str, found: str) -> None:
    if expected != found:
        raise ReleaseError(
            f"loading the release {manifest.release_id}",
            expected=f"{what} {expected}",
            found=found,
            next_step="serve it with the version of Understudy that built it, or build a new one",
        )
