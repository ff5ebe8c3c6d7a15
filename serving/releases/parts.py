"""The parts a manifest names, opened: embedder, reranker, teacher, students.

Each is checked against the manifest before it is used. Belongs here: loading and connecting one
part. Does not belong here: joining them (`engine`), verifying files and signatures (`bundle`).
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serving.errors import IndexMismatchError, ReleaseError
from serving.models.breaker import CircuitBreaker
from serving.models.guarded import GuardedChatModel
from serving.models.protocols import ChatModel, Embedder, Reranker
from serving.models.student_rules import RuledStudent, follow_rules
from serving.pipeline.assembly import estimate_tokens
from serving.pipeline.confidence import ConfidenceCalibration
from serving.pipeline.skills import Skill
from serving.pipeline.tiers import Tier
from serving.releases.bundle import VerifiedRelease
from serving.releases.manifest import ReleaseManifest, StudentEntry
from serving.settings import ServerSettings

if TYPE_CHECKING:
    from serving.models.local_student import LocalStudent
    from serving.models.prompted_student import OpenedBase, PromptedStudent
    from serving.models.shared_bases import SharedBases

    ServedStudent = LocalStudent | PromptedStudent | RuledStudent

Close = Callable[[], Awaitable[None]]
_LOG = logging.getLogger(__name__)


async def close_nothing() -> None:
    """Close a part that holds nothing open."""


@dataclass(frozen=True, kw_only=True)
class LoadedStudent:
    """A student ready to answer, behind its breaker."""

    name: str
    tier: Tier
    count_tokens: Callable[[str], int]
    close: Close


def load_embedder_of(manifest: ReleaseManifest, models_folder: Path) -> Embedder:
    """Load the query embedder, which must be the index's."""
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


def load_reranker_of(manifest: ReleaseManifest, models_folder: Path) -> Reranker | None:
    """Load the cross-encoder, where the release has one."""
    from serving.models.cross_encoder import load_reranker

    entry = manifest.retrieval.reranker
    if entry is None:
        return None
    reranker = load_reranker(entry.model, entry.revision, models_folder)
    expect_same(manifest, f"reranker {entry.model}", entry.fingerprint, reranker.fingerprint)
    return reranker


def connect_teacher(
    manifest: ReleaseManifest, settings: ServerSettings, embedder: Embedder
) -> tuple[GuardedChatModel, Close]:
    """Connect to the teacher, behind its breaker."""
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
            is_served=True,
        )
    guarded = GuardedChatModel(
        teacher, breaker=CircuitBreaker(), timeout_seconds=entry.timeout_seconds
    )
    return guarded, guarded.close


def load_students(
    release: VerifiedRelease, settings: ServerSettings, embedder: Embedder
) -> list[LoadedStudent]:
    """Load the students of a release in the order they are asked, then those of its skills.

    Local ones on one base share it, and what they keep of prefixes.
    """
    from serving.models.shared_bases import SharedBases

    manifest, bases = release.manifest, SharedBases()
    tiers = manifest.tier_names
    return [
        _load_student(
            manifest,
            name,
            release.adapter_folder(name),
            settings,
            embedder,
            bases=bases,
            most_seconds=settings.student_seconds / (len(tiers) if name in tiers else 1),
        )
        for name in (*tiers, *(name for name in manifest.students if name not in tiers))
    ]


def list_skills(manifest: ReleaseManifest, students: Sequence[LoadedStudent]) -> tuple[Skill, ...]:
    """Return the skills of a release, each with its loaded student."""
    tiers = {student.name: student.tier for student in students}
    return tuple(
        Skill(
            name=name,
            tier=tiers[entry.student],
            pages=entry.pages,
            is_high_stakes=entry.high_stakes,
        )
        for name, entry in manifest.skills.items()
    )


def _load_student(
    manifest: ReleaseManifest,
    name: str,
    folder: Path,
    settings: ServerSettings,
    embedder: Embedder,
    *,
    bases: "SharedBases",
    most_seconds: float,
) -> LoadedStudent:
    from serving.models.prompted_student import load_prompted_student

    entry = manifest.students[name]
    began = time.perf_counter()
    student: ServedStudent
    if entry.is_trained and entry.engine == "local":
        local = _load_local(manifest, entry, settings.models_folder, folder, bases)
        student = follow_rules(local, folder)
    elif entry.is_trained:
        student = follow_rules(_connect_adapter(entry, settings), folder)
    else:
        student = load_prompted_student(
            folder,
            _open_base(manifest, entry, settings, bases),
            name=entry.adapter,
            base_identity=entry.base_hash,
            open_embedder=lambda: embedder,
        )
    load_ms = (time.perf_counter() - began) * 1000
    _LOG.info("student %s loaded in %.0f ms", entry.adapter, load_ms)
    guarded = GuardedChatModel(
        student,
        breaker=CircuitBreaker(),
        timeout_seconds=min(entry.timeout_seconds, most_seconds),
        load_ms=load_ms if entry.engine == "local" else None,
    )
    return LoadedStudent(
        name=name,
        tier=Tier(model=guarded, calibration=choose_calibration(entry, student)),
        count_tokens=student.count_prompt_tokens,
        close=getattr(student, "close", close_nothing),
    )


def choose_calibration(
    entry: StudentEntry, student: "ServedStudent"
) -> ConfidenceCalibration | None:
    """Return a student's calibration, unless it was fitted to numbers of another precision."""
    if entry.calibration is None or entry.calibration.dtype == student.dtype:
        return entry.calibration
    _LOG.warning(
        "serving %s in %s without confidences: they were calibrated in %s",
        entry.adapter,
        student.dtype,
        entry.calibration.dtype,
    )
    return None


def _load_local(
    manifest: ReleaseManifest,
    entry: StudentEntry,
    models_folder: Path,
    folder: Path | None,
    bases: "SharedBases",
) -> "LocalStudent":
    """Load the base of a student, with the adapter in `folder` unless that is None."""
    from serving.models.causal_lm import hash_base_model
    from serving.models.embedded import resolve_model
    from serving.models.local_student import LocalStudent

    base = resolve_model(entry.base_model, entry.base_revision, models_folder).path
    found = hash_base_model(base)
    expect_same(manifest, f"hash of the base model {entry.base_model}", entry.base_hash, found)
    return LocalStudent.load(
        base,
        folder,
        name=entry.adapter,
        price=entry.price,
        activation=entry.activation or "question",  # without an adapter: where a prefix is shared
        context_tokens=entry.context_tokens,
        local_engine=entry.local_engine,
        models_folder=models_folder,
        bases=bases,
    )


def _connect_adapter(entry: StudentEntry, settings: ServerSettings) -> "PromptedStudent":
    """Connect to the server that holds an adapter, which is asked for by its own name.

    What computes there is not what a calibration was fitted to: it answers without confidences.
    """
    from serving.models.prompted_student import PromptedStudent, StudentPrompt

    base = _connect_base(entry, settings, model=entry.adapter)
    return PromptedStudent(name=entry.adapter, base=base, prompt=StudentPrompt(layout="plain"))


def _open_base(
    manifest: ReleaseManifest,
    entry: StudentEntry,
    settings: ServerSettings,
    bases: "SharedBases",
) -> "OpenedBase":
    from serving.models.prompted_student import OpenedBase

    if entry.engine == "local":
        local = _load_local(manifest, entry, settings.models_folder, None, bases)
        return OpenedBase(
            model=local,
            identity=entry.base_hash,
            count_tokens=local.count_prompt_tokens,
            context_tokens=entry.context_tokens,
            dtype=local.dtype,
        )
    return _connect_base(entry, settings, model=entry.base_model)


def _connect_base(entry: StudentEntry, settings: ServerSettings, *, model: str) -> "OpenedBase":
    from serving.models.prompted_student import OpenedBase
    from serving.models.remote import connect_remote, hash_remote_model

    if entry.engine == "local":
        raise ValueError(f"{entry.adapter} runs here and is not asked through a server")
    remote = connect_remote(
        provider=entry.engine,
        base_url=entry.base_url,
        api_key=settings.read_secret(entry.api_key_env),
        model=model,
        price=entry.price,
        timeout_seconds=entry.timeout_seconds,
        is_served=True,
    )
    return OpenedBase(
        model=remote,
        identity=hash_remote_model(entry.engine, model, entry.base_url),
        count_tokens=estimate_tokens,
        context_tokens=entry.context_tokens,
    )


def expect_same(manifest: ReleaseManifest, what: str, expected: str, found: str) -> None:
    """Refuse a release whose part is not the one it pins.

    Raises:
        ReleaseError: `expected` and `found` differ.
    """
    if expected != found:
        raise ReleaseError(
            f"loading the release {manifest.release_id}",
            expected=f"{what} {expected}",
            found=found,
            next_step="serve it with the version of Understudy that built it, or build a new one",
        )
