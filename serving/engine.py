"""The serving engine: a verified release, assembled into the pipeline that answers.

Belongs here: joining the parts of a release, the warm-up. Does not belong here: HTTP (`app`),
opening one part (`releases.parts`), verifying files and signatures (`releases.bundle`).
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from serving.errors import IndexMismatchError, ModelError
from serving.hashing import content_hash
from serving.models.protocols import ChatModel, Embedder, Reranker
from serving.pipeline.answer import AnswerPipeline
from serving.pipeline.assembly import PipelineParts, estimate_tokens
from serving.pipeline.canary import check_inputs_disjoint
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.router import ROUTED_PHASES, Phase
from serving.pipeline.validator import VALIDATOR_VERSION
from serving.releases.bundle import VerifiedRelease, copy_current, load_public_key
from serving.releases.manifest import ReleaseManifest, hash_retrieved
from serving.releases.parts import (
    Close,
    LoadedStudent,
    close_nothing,
    connect_teacher,
    expect_same,
    list_skills,
    load_embedder_of,
    load_reranker_of,
    load_students,
)
from serving.settings import ServerSettings
from serving.tracing.record import TraceOrigin

WARM_UP_QUESTION = "What is this documentation about?"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServingEngine:
    """One release, ready to answer. Requests in flight keep the engine they began with.

    `sequence` and `parent` are those of the signed pointer; `close` frees what is held open.
    """

    pipeline: AnswerPipeline
    manifest: ReleaseManifest
    sequence: int = 0
    parent: str | None = None
    close: Close = close_nothing

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
            {
                name: [entry["calibration"], entry["engine"], entry["local_engine"]]
                for name, entry in content["students"].items()
            },
            content["tiers"],
            content["skills"],
        )

    def trace_origin(self, env: str) -> TraceOrigin:
        """Return what every trace of this engine has in common."""
        return TraceOrigin(
            env=env,
            release_id=self.release_id,
            phase=self.phase,
            prompt_version=self.pipeline.prompt.version,
            snapshot_hash=self.snapshot_hash,
            index_fingerprint=self.pipeline.retriever.index_fingerprint,
            embedder_fingerprint=self.manifest.embedder.fingerprint,
            teacher_price=self.pipeline.teacher.price,
            adapter_shas={s.adapter: s.adapter_sha256 for s in self.manifest.students.values()},
        )

    async def warm_up(self) -> None:
        """Answer once with every model that is asked first; then check the golden prompts.

        Of several only the general student must answer: the breaker of another one that is dead
        keeps questions from it.

        Raises:
            ModelError: the general student does not answer, or the teacher where it answers all.
            IndexMismatchError: a golden prompt retrieves other chunks than it did at the build.
        """
        needed, others = self._choose_warmed()
        hits = await self.pipeline.retriever.retrieve(WARM_UP_QUESTION)
        request = self.pipeline.prompt.write_request(WARM_UP_QUESTION, hits)
        # Without a score no rule refuses it: what is to be warm is the model behind the rule.
        request = replace(request, best_score=None)
        await needed.complete(request)
        for model in others:
            try:
                await model.complete(request)
            except ModelError as error:
                _LOG.warning("%s did not answer the warm-up question: %s", model.name, error)
        await self._check_golden_prompts()

    def _choose_warmed(self) -> tuple[ChatModel, list[ChatModel]]:
        """Return the model a server cannot do without, and the others that are asked first."""
        pipeline = self.pipeline
        if pipeline.student is None or self.phase not in ROUTED_PHASES:
            return pipeline.teacher, []
        asked = (skill.tier for skill in pipeline.skills if not skill.is_high_stakes)
        models = {tier.model.name: tier.model for tier in (*pipeline.tiers, *asked)}
        models.pop(pipeline.student.name, None)
        return pipeline.student, list(models.values())

    async def _check_golden_prompts(self) -> None:
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
    with contextlib.ExitStack() as copied:
        release, embedder, reranker = await asyncio.to_thread(_load_files, settings, copied)
        return await _open_engine(settings, release, embedder, reranker)


async def _open_engine(
    settings: ServerSettings,
    release: VerifiedRelease,
    embedder: Embedder,
    reranker: Reranker | None,
) -> ServingEngine:
    manifest = release.manifest
    async with contextlib.AsyncExitStack() as opened:
        teacher, close_teacher = connect_teacher(manifest, settings, embedder)
        opened.push_async_callback(close_teacher)
        students = await asyncio.to_thread(load_students, release, settings, embedder)
        for student in students:
            opened.push_async_callback(student.close)
        parts = _gather_parts(manifest, settings, embedder, reranker, teacher, students)
        count = len(manifest.tier_names)
        last = students[count - 1].tier if count else None
        pipeline = await parts.assemble(
            manifest.index.fingerprint,
            student=last.model if last else None,
            calibration=last.calibration if last else None,
            smaller=tuple(student.tier for student in students[: max(count - 1, 0)]),
            skills=list_skills(manifest, students),
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


def _load_files(
    settings: ServerSettings, copied: contextlib.ExitStack
) -> tuple[VerifiedRelease, Embedder, Reranker | None]:
    """Copy and verify the release, and load what embeds and orders; reads the whole bundle.

    The copy lies there until `copied` is closed.
    """
    key = load_public_key(settings.keys_folder)
    release = copied.enter_context(copy_current(settings.releases_folder, key))
    _check_versions(release.manifest)
    embedder = load_embedder_of(release.manifest, settings.models_folder)
    _ = embedder.dimension  # an embedder that is not compiled loads its weights for it
    return release, embedder, load_reranker_of(release.manifest, settings.models_folder)


def _gather_parts(
    manifest: ReleaseManifest,
    settings: ServerSettings,
    embedder: Embedder,
    reranker: Reranker | None,
    teacher: ChatModel,
    students: Sequence[LoadedStudent],
) -> PipelineParts:
    return PipelineParts(
        index_folder=(settings.home / manifest.index.uri).parent,
        embedder=embedder,
        k=manifest.retrieval.k,
        teacher=teacher,
        prompt=_prompt(manifest),
        router=manifest.router,
        validator=manifest.validator.policy,
        count_tokens=students[len(manifest.tier_names) - 1].count_tokens
        if students
        else estimate_tokens,
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


def _prompt(manifest: ReleaseManifest) -> PromptFormat:
    entry = manifest.prompt
    return PromptFormat(citation_ids=entry.citation_ids, max_answer_tokens=entry.max_answer_tokens)


def _check_versions(manifest: ReleaseManifest) -> None:
    expect_same(manifest, "prompt version", manifest.prompt.version, _prompt(manifest).version)
    expect_same(manifest, "validator version", manifest.validator.version, VALIDATOR_VERSION)
    check_inputs_disjoint()
