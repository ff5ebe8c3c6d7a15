"""The manifest of a release: everything that decides an answer, pinned by hash.

Belongs here: the schema of `manifest.json`, what the release id is a hash of. Does not belong here:
files, signatures (`bundle`, `signing`), secrets (a manifest names the variable that holds one).
"""

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from serving.hashing import content_hash
from serving.models.chat_tokens import Activation
from serving.models.engines import LocalEngine
from serving.models.prompted_student import TRAINED_KINDS, StudentKind
from serving.models.protocols import Price
from serving.models.remote import NEEDS_BASE_URL, SERVES_ADAPTERS, Provider, RemoteProvider
from serving.pipeline.confidence import ConfidenceCalibration
from serving.pipeline.prompt import CitationIds
from serving.pipeline.router import ROUTED_PHASES, Phase, RouterPolicy
from serving.pipeline.validator import VALIDATOR_VERSION, ValidatorPolicy

RELEASE_ID_PATTERN = r"[0-9a-f]{12}"
SAFE_NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}"
OUTSIDE_THE_HASH = frozenset({"release_id", "parent", "created_at", "sequence"})
"""When and after what a bundle was built: CURRENT, which is signed, says what was published."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FolderName = Annotated[str, StringConstraints(pattern=rf"^{SAFE_NAME_PATTERN}$")]
Positive = Annotated[int, Field(gt=0)]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class _Entry(BaseModel):
    """A part of the manifest: unknown keys are refused, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StudentEntry(_Entry):
    """A student: one folder (of an adapter, or of a prompt, as its kind says) on one pinned base.

    `adapter` is the folder's name (`compact@3f9c0a1b2c4d`), `adapter_sha256` its `folder_sha256`,
    `base_hash` what `hash_base_model` says of the base, or `hash_remote_model` of one behind the
    server that `engine`, `base_url` and `api_key_env` (the name of a variable) name. `local_engine`
    is what runs a local one. An ordinary LoRA may be behind a server too, which is then asked for a
    model of the name `adapter`: by content, so that no other adapter can answer under it.
    """

    kind: StudentKind = "alora"
    adapter: FolderName
    adapter_sha256: Sha256
    base_model: str
    base_revision: str
    base_hash: str
    activation: Activation | None = None
    context_tokens: Positive
    max_answer_tokens: Positive
    engine: Literal["local"] | RemoteProvider = "local"
    local_engine: LocalEngine = "transformers"
    base_url: str | None = None
    api_key_env: VariableName | None = None
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    price: Price = Price()
    calibration: ConfidenceCalibration | None = None

    @model_validator(mode="after")
    def _calibration_is_its_own(self) -> Self:
        calibration = self.calibration
        if calibration and calibration.adapter_sha256 != self.adapter_sha256:
            raise ValueError(
                f"calibration was fitted for adapter {calibration.adapter_sha256}, "
                f"not for {self.adapter_sha256}"
            )
        return self

    @model_validator(mode="after")
    def _can_be_loaded(self) -> Self:
        if self.is_trained and self.activation is None:
            raise ValueError(f"a student of kind {self.kind} needs an activation")
        if self.is_trained and self.engine != "local" and not self._is_servable_by_name:
            raise ValueError(
                f"a student of kind {self.kind} and activation {self.activation} needs engine "
                f"local, not {self.engine}: servers apply an ordinary LoRA (kind lora, activation "
                f"all) alone, and those of {', '.join(sorted(SERVES_ADAPTERS))} name it"
            )
        _refuse_unreachable(self.engine, self.base_url)
        return self

    @property
    def _is_servable_by_name(self) -> bool:
        is_ordinary = self.kind == "lora" and self.activation == "all"
        return is_ordinary and self.engine in SERVES_ADAPTERS

    @property
    def is_trained(self) -> bool:
        """Whether its folder holds an adapter's weights; else it holds a prompt."""
        return self.kind in TRAINED_KINDS


class SkillEntry(_Entry):
    """A task with an adapter of its own, on the base of the students that are asked in tiers.

    `student` is one of the release's. `pages` are slug prefixes: a question whose best chunk lies
    below one is for this skill, also where its caller names none.
    """

    student: FolderName
    pages: tuple[str, ...] = ()
    high_stakes: bool = False


class TeacherEntry(_Entry):
    """The teacher. `api_key_env` names a variable; a secret itself has no field to stand in."""

    provider: Provider
    model: str
    base_url: str | None = None
    api_key_env: VariableName | None = None
    price: Price = Price()
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0

    @model_validator(mode="after")
    def _is_reachable_without_secrets(self) -> Self:
        _refuse_unreachable(self.provider, self.base_url)
        return self


class EmbedderEntry(_Entry):
    """The query embedder, which must be the index's."""

    model: str
    revision: str
    fingerprint: str


class IndexEntry(_Entry):
    """The index snapshot: the folder `uri`, relative to home or absolute, named by fingerprint."""

    uri: str
    fingerprint: str

    @model_validator(mode="after")
    def _uri_names_the_snapshot(self) -> Self:
        path = PurePosixPath(self.uri)
        if ".." in path.parts or path.name != self.fingerprint:
            raise ValueError(f"uri must end in /{self.fingerprint} and hold no '..'")
        return self


class RerankerEntry(_Entry):
    """The cross-encoder that orders the candidates."""

    model: str
    revision: str
    fingerprint: str


class RetrievalEntry(_Entry):
    """How many chunks a question is answered from, and who orders the candidates anew."""

    k: Annotated[int, Field(ge=1, le=50)]
    reranker: RerankerEntry | None = None


class PromptEntry(_Entry):
    """The prompt format, version and answer limit that labels and answers were made with."""

    citation_ids: CitationIds
    version: str
    max_answer_tokens: Positive


class ValidatorEntry(_Entry):
    """The validator's limits and the version of its rules."""

    policy: ValidatorPolicy = ValidatorPolicy()
    version: str = VALIDATOR_VERSION


class GateEntry(_Entry):
    """The verdict this release was published with, and every gate's evidence."""

    verdict: Literal["PROMOTE", "HOLD", "INCONCLUSIVE"]
    gates: tuple[dict[str, JsonValue], ...] = ()


class GoldenPrompt(_Entry):
    """A question whose retrieved chunks are known: a server checks it before it is ready."""

    question: str
    retrieved_hash: str


class ReleaseManifest(_Entry):
    """A release. Build with an empty `release_id`: `build_bundle` fills it."""

    release_id: Annotated[str, StringConstraints(pattern=rf"^({RELEASE_ID_PATTERN})?$")] = ""
    parent: str | None = None
    created_at: datetime
    sequence: Annotated[int, Field(ge=0)] = 0
    phase: Phase
    students: dict[FolderName, StudentEntry] = Field(default_factory=dict)
    tiers: tuple[FolderName, ...] = ()
    """The students in the order they are asked, the smallest first; of several, all are named that
    are no skill's."""
    skills: dict[FolderName, SkillEntry] = Field(default_factory=dict)
    teacher: TeacherEntry
    embedder: EmbedderEntry
    index: IndexEntry
    retrieval: RetrievalEntry
    prompt: PromptEntry
    router: RouterPolicy = RouterPolicy()
    validator: ValidatorEntry = ValidatorEntry()
    gate: GateEntry
    lane: Literal["clean", "contaminated"] = "clean"
    """`contaminated`: trained on its own exam on purpose; such a release is never published."""
    golden_prompts: tuple[GoldenPrompt, ...] = ()
    distillation_loss_statement: str

    @model_validator(mode="after")
    def _student_earned_its_traffic(self) -> Self:
        is_routed = self.phase in ROUTED_PHASES
        if is_routed and self.gate.verdict != "PROMOTE":
            verdict = self.gate.verdict
            raise ValueError(f"phase {self.phase} needs the verdict PROMOTE, not {verdict}")
        if self.phase != "hitchhiker" and not self.students:
            raise ValueError(f"phase {self.phase} needs a student")
        if len({s.adapter for s in self.students.values()}) < len(self.students):
            raise ValueError("two students share an adapter folder")
        return self

    @model_validator(mode="after")
    def _tiers_name_all_but_skills(self) -> Self:
        skilled = {skill.student for skill in self.skills.values()}
        general = [name for name in self.students if name not in skilled]
        order = sorted(self.tiers)
        if order != sorted(general) and (order or len(general) > 1):
            raise ValueError(
                f"tiers must name every student once, found {', '.join(self.tiers) or 'none'} "
                f"for {', '.join(general)}"
            )
        return self

    @model_validator(mode="after")
    def _skills_share_the_base(self) -> Self:
        for name, skill in self.skills.items():
            if skill.student not in self.students:
                raise ValueError(f"skill {name} names {skill.student}, which is no student")
            bases = {self.students[tier].base_hash for tier in self.tier_names}
            if self.students[skill.student].base_hash not in bases:
                raise ValueError(f"skill {name} stands on another base than the students asked")
        pages = [page.strip("/") for skill in self.skills.values() for page in skill.pages]
        if len(set(pages)) < len(pages) or "" in pages:
            raise ValueError("each page of the skills must be named once, and none is empty")
        return self

    @property
    def tier_names(self) -> tuple[str, ...]:
        """The students asked in turn, those of skills left out."""
        skilled = {skill.student for skill in self.skills.values()}
        return self.tiers or tuple(name for name in self.students if name not in skilled)

    @property
    def prices(self) -> dict[str, Price]:
        """What each model costs, by role or student name."""
        return {"teacher": self.teacher.price, **{n: s.price for n, s in self.students.items()}}

    def content_id(self) -> str:
        """Return the 12 hex digits that identify this content, whenever it was built."""
        # Through the text that is stored: what JSON cannot say (NaN) hashes as it is read back.
        return hash_stored(self.model_dump_json())


def hash_stored(text: str | bytes) -> str:
    """Return the identity of a manifest as it was written: keys added since then are no part of it.

    So a release keeps its id when the server learns to read more.
    """
    content = {name: v for name, v in json.loads(text).items() if name not in OUTSIDE_THE_HASH}
    return hashlib.sha256(canonical_json(content)).hexdigest()[:12]


def _refuse_unreachable(provider: str, base_url: str | None) -> None:
    if provider in NEEDS_BASE_URL and not base_url:
        raise ValueError(f"provider {provider} needs base_url")
    if base_url and re.search(r"://[^/]*@|[?&]", base_url):
        raise ValueError("base_url must not carry credentials or a query")


def canonical_json(value: object) -> bytes:
    """Return the one byte form of a JSON value: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text.encode()


def hash_retrieved(chunk_ids: Sequence[str]) -> str:
    """Return the hash a golden prompt stores of the chunks retrieved, in order."""
    return content_hash(list(chunk_ids))
