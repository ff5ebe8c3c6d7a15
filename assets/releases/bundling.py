"""From a verdict and an adapter to a manifest: what a release is.

Belongs here: putting a manifest together. Does not belong here: writing, signing and publishing it
(`serving/releases`), the verdict (`gate`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from assets.parity.tiers import TierStudent
from assets.releases.gates import CLEAN_LANE
from assets.releases.skills import (
    SkillStudent,
    SkillTerms,
    describe_admission,
    describe_terms,
    strip_identity,
)
from serving.models.engines import LocalEngine
from serving.models.protocols import Price
from serving.models.remote import RemoteProvider
from serving.pipeline.assembly import PipelineParts
from serving.pipeline.confidence import ConfidenceCalibration
from serving.pipeline.router import ROUTED_PHASES, Phase, RouterPolicy
from serving.pipeline.validator import ValidatorPolicy
from serving.releases.manifest import (
    EmbedderEntry,
    GateEntry,
    GoldenPrompt,
    IndexEntry,
    PromptEntry,
    ReleaseManifest,
    RerankerEntry,
    RetrievalEntry,
    SkillEntry,
    StudentEntry,
    TeacherEntry,
    ValidatorEntry,
    hash_retrieved,
)


@dataclass(frozen=True, kw_only=True)
class AdapterServer:
    """A server that holds a student's ordinary LoRAs, each as a model of the adapter's own name."""

    provider: RemoteProvider
    base_url: str
    api_key_env: str | None = None


@dataclass(frozen=True, kw_only=True)
class StudentTerms:
    """What the configuration says of a student beyond its adapter."""

    context_tokens: int
    max_answer_tokens: int
    price: Price
    engine: Literal["local"] | RemoteProvider = "local"
    local_engine: LocalEngine = "transformers"
    base_url: str | None = None
    api_key_env: str | None = None
    timeout_seconds: float = 60.0
    adapter_server: AdapterServer | None = None


@dataclass(frozen=True, kw_only=True)
class ReleaseTerms:
    """The configured part of every release. That of `default_recipe` alone holds the skills.

    `tiers` are the recipes whose students are asked in turn; none: a release holds one.
    """

    product: str
    default_recipe: str
    promoted_phase: Phase
    teacher: TeacherEntry
    embedder_model: str
    embedder_revision: str
    k: int
    citation_ids: Literal["local", "full"]
    prompt_version: str
    max_answer_tokens: int
    router: RouterPolicy
    validator: ValidatorPolicy
    students: Mapping[str, StudentTerms]
    reranker: RerankerEntry | None = None
    skills: Mapping[str, SkillTerms] = field(default_factory=dict)
    tiers: tuple[str, ...] = ()

    def describe(self) -> dict[str, str]:
        """Return the terms a report's reader asks about."""
        return {
            "teacher": f"{self.teacher.model} ({self.teacher.provider})",
            "teacher_price_usd_per_mtok": f"{self.teacher.price.input_usd_per_mtok} in, "
            f"{self.teacher.price.output_usd_per_mtok} out (configured, not measured)",
            "prompt_version": self.prompt_version,
            "retrieved_chunks": str(self.k),
            "router": f"long_context > {self.router.long_context_tokens} tokens, "
            f"low_retrieval < {self.router.min_retrieval_score}, "
            f"low_confidence where a risk of {self.router.maximum_risk_ratio} is certified",
            **({"tiers": ", then ".join(self.tiers)} if self.tiers else {}),
            **describe_terms(self.skills),
        }


def choose_phase(configured: Phase, verdict: str) -> Phase:
    """Return the phase a release is published in: without PROMOTE none that asks the router.

    `imposter` needs a student alone: asked in shadow, it gathers what PROMOTE may yet take.
    """
    if verdict == "PROMOTE" or configured not in ROUTED_PHASES:
        return configured
    return "hitchhiker"


def write_manifest(
    *,
    terms: ReleaseTerms,
    gates: Sequence[Mapping[str, Any]],
    losses: Sequence[str],
    tiers: Sequence[TierStudent],
    index: Mapping[str, Any],
    golden_prompts: Sequence[GoldenPrompt],
    skills: Mapping[str, SkillStudent] | None = None,
) -> ReleaseManifest:
    """Return the manifest of a release: the students asked in turn, and the skills beside them.

    A student that did not earn PROMOTE is shipped, but in a phase in which the teacher answers all.

    Args:
        terms: the configured part.
        gates: rows of gate_verdict, the evidence.
        losses: what the students are known to do worse.
        tiers: the students, in the order they are asked.
        index: the vector_index row.
        golden_prompts: questions whose retrieved chunks a server checks before it is ready.
        skills: the students that were admitted, by the skill each serves; two may share one.
    """
    verdict, skills = gates[0]["verdict"], skills or {}
    general = {
        tier.adapter["student"]: _enter_student(terms, tier.adapter, tier.calibration)
        for tier in tiers
    }
    lanes = (tier.adapter["lane"] for tier in tiers)
    lane: Any = next((lane for lane in lanes if lane != CLEAN_LANE), CLEAN_LANE)
    evidence = [strip_identity(gate) for gate in gates]
    for name, skill in skills.items():
        evidence.append(describe_admission(name, skill, position=len(evidence) + 1))
    return ReleaseManifest(
        lane=lane,
        created_at=datetime.now(UTC),
        phase=choose_phase(terms.promoted_phase, verdict),
        students={
            **general,
            **{s.name: _enter_student(terms, s.adapter, s.calibration) for s in skills.values()},
        },
        tiers=tuple(general) if len(general) > 1 else (),
        skills={
            name: SkillEntry(
                student=skill.name, pages=skill.terms.pages, high_stakes=skill.terms.high_stakes
            )
            for name, skill in skills.items()
        },
        teacher=terms.teacher,
        embedder=EmbedderEntry(
            model=terms.embedder_model,
            revision=terms.embedder_revision,
            fingerprint=index["embedder_fingerprint"],
        ),
        index=IndexEntry(uri=index["uri"], fingerprint=index["index_fingerprint"]),
        retrieval=RetrievalEntry(k=terms.k, reranker=terms.reranker),
        prompt=PromptEntry(
            citation_ids=terms.citation_ids,
            version=terms.prompt_version,
            max_answer_tokens=terms.max_answer_tokens,
        ),
        router=terms.router,
        validator=ValidatorEntry(policy=terms.validator),
        gate=GateEntry(verdict=verdict, gates=tuple(evidence)),
        golden_prompts=tuple(golden_prompts),
        distillation_loss_statement=" ".join(losses) or "No loss was measured.",
    )


def _enter_student(
    terms: ReleaseTerms, adapter: Mapping[str, Any], calibration: ConfidenceCalibration | None
) -> StudentEntry:
    """Return what a server has to know of the adapter and of the student it is for.

    Another server can apply an ordinary LoRA only: every other recipe of the student keeps its own
    engine.
    """
    student = terms.students[adapter["student"]]
    if student.adapter_server and (adapter["kind"], adapter["activation"]) == ("lora", "all"):
        server = student.adapter_server
        student = replace(
            student,
            engine=server.provider,
            base_url=server.base_url,
            api_key_env=server.api_key_env,
        )
    return StudentEntry(
        kind=adapter["kind"],
        adapter=adapter["adapter"],
        adapter_sha256=adapter["adapter_sha256"],
        base_model=adapter["base_model"],
        base_revision=adapter["base_revision"],
        base_hash=adapter["base_hash"],
        activation=adapter["activation"],
        context_tokens=student.context_tokens,
        max_answer_tokens=student.max_answer_tokens,
        engine=student.engine,
        local_engine=student.local_engine,
        base_url=student.base_url,
        api_key_env=student.api_key_env,
        timeout_seconds=student.timeout_seconds,
        price=student.price,
        calibration=calibration,
    )


async def sample_retrieval(
    parts: PipelineParts, index_fingerprint: str, questions: Sequence[str]
) -> list[GoldenPrompt]:
    """Return what the index gives for these questions: a server checks it before it is ready."""
    pipeline = await parts.assemble(index_fingerprint)
    return [
        GoldenPrompt(
            question=question,
            retrieved_hash=hash_retrieved(
                [hit.chunk_id for hit in await pipeline.retriever.retrieve(question)]
            ),
        )
        for question in questions
    ]
