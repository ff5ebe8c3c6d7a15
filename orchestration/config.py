"""The product's configuration: one YAML file, validated; and the only reader of the environment.

Belongs here: the schema of `config/understudy.yaml`, where the file and the home are found, errors
that name key, legal values and line. Does not belong here: what the values are used for.
"""

import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from assets.parity.arms import DEFAULT_ARMS, refuse_unfit_arms
from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.models.concessions import StructuredOutput
from serving.models.embedded import EMBEDDED_REVISION
from serving.models.engines import LocalEngine
from serving.models.remote import NEEDS_BASE_URL, OFFERS_LOGPROBS, Provider, RemoteProvider
from serving.releases.manifest import FolderName

PROJECT_ROOT = Path(__file__).resolve().parent.parent
DEFAULT_CONFIG = PROJECT_ROOT / "config" / "understudy.yaml"

ALIASES = frozenset({"latest", "main", "master", "head", "default", "stable", "current"})


def _refuse_alias(value: str) -> str:
    words = {word.casefold() for word in value.replace(":", "-").replace("@", "-").split("-")}
    if words & ALIASES or value.casefold() in ALIASES:
        raise ValueError(
            f"{value!r} is an alias that can change silently; name a pinned snapshot or revision"
        )
    return value


FLOATING_FAMILIES = re.compile(
    r"(?:gpt-|chatgpt-|o\d(?:-|$)|claude-|gemini-|grok-|command-|sonar|deepseek-(?:chat|reasoner)"
    r"|qwen-(?:max|plus|turbo)|(?:mistral|ministral|magistral|codestral|devstral|pixtral)-"
    r"(?:tiny|small|medium|large))",
    re.IGNORECASE,
)
"""Hosted families whose bare names their providers move from one snapshot to the next."""

SNAPSHOT = re.compile(r"\d{4}-\d{2}-\d{2}|\d{8}|[-@]\d{4}$|[-@]\d{2}-\d{4}$|[-@]\d{3}$")
"""The end of a name that is a date (2024-08-06, 20241022, 0613, 08-2024) or a version (002)."""


def _refuse_floating(model: str) -> None:
    name = model.rpartition("/")[2]
    if FLOATING_FAMILIES.match(name) and not SNAPSHOT.search(name):
        raise ValueError(
            f"{model!r} names a family, and its provider can change what answers; write a dated "
            "snapshot such as gpt-4o-2024-08-06, or, if the provider documents this very name as "
            "a fixed snapshot, add pinned: true"
        )


def _refuse_url(value: Any) -> Any:
    if "://" in str(value):
        raise ValueError("must be a local folder, not a URL: tables and indexes are read from disk")
    return value


def _check_variable_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError(
            "must be the name of an environment variable such as TEACHER_API_KEY (letters, digits "
            "and _), never the key itself; the value is not shown here in case it is one"
        )
    return value


def _check_base_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        is_plain = "@" not in parts.netloc and not parts.query and not parts.fragment
        is_web = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        is_plain = is_web = False
    if not (is_plain and is_web):
        raise ValueError(
            "must look like https://host/v1, without user, password or query: a key belongs in "
            "the variable that api_key_env names; the value is not shown here in case it holds one"
        )
    return value


UNSHOWN_KEYS = frozenset({"api_key_env", "base_url"})
"""Keys into which a secret is pasted by mistake: an error never repeats their values."""

LocalFolder = Annotated[Path, BeforeValidator(_refuse_url)]
VariableName = Annotated[str, AfterValidator(_check_variable_name)]
BaseUrl = Annotated[str, AfterValidator(_check_base_url)]
StudentName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Pinned = Annotated[str, Field(min_length=1), AfterValidator(_refuse_alias)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Factor = Annotated[float, Field(gt=0)]
Dollars = Annotated[float, Field(ge=0)]
Hour = Annotated[int, Field(ge=0, le=23)]


class Section(BaseModel):
    """A block of the file: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def fingerprint(self) -> str:
        """Identity of this block's values."""
        return content_hash(self.model_dump(mode="json"))


class CorpusSection(Section):
    """Which files are the documentation."""

    path: Path
    include: tuple[str, ...] = ("**/*.mdx", "**/*.md")
    exclude: tuple[str, ...] = ()
    url: str = "/{slug}/"

    @model_validator(mode="after")
    def _url_has_slug(self) -> Self:
        if "{slug}" not in self.url:
            raise ValueError("url must contain {slug}, for example https://docs.example/{slug}/")
        return self


class ProductSection(Section):
    """The assistant being distilled."""

    name: str = Field(min_length=1)
    corpus: CorpusSection


class SeedsSection(Section):
    """Hand-written and harvested questions, and how they multiply."""

    path: Path
    harvested: Path | None = None
    paraphrases_per_medoid: Positive = 8
    paraphrase_temperature: Annotated[float, Field(ge=0, le=2)] = 0.9
    seeds_per_cluster: Positive = 4


class SuitesSection(Section):
    """The files of the suites, each with its lock beside it; one that is left out has no cases.

    `ratings` holds what people said of anchors: it grows, so it has no lock.
    """

    refusal: Path | None = None
    over_refusal: Path | None = None
    behaviours: Path | None = None
    anchors: Path | None = None
    ratings: Path | None = None


class EvalSection(Section):
    """The frozen golden set; its lock lies beside it."""

    golden: Path
    suites: SuitesSection = SuitesSection()
    cases_by_bucket: dict[
        Literal["answerable", "boundary", "out_of_scope"], Annotated[int, Field(ge=0)]
    ] = {}


class EmbedderSection(Section):
    """The embedding model of index, guard and clustering."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    revision: Pinned = "embedded"


class ChunkingSection(Section):
    """Chunk sizes in tokens of the embedder."""

    target_tokens: Positive = 90
    maximum_tokens: Positive = 180

    @model_validator(mode="after")
    def _target_fits(self) -> Self:
        if self.target_tokens > self.maximum_tokens:
            raise ValueError("target_tokens must not exceed maximum_tokens")
        return self


class RerankerSection(Section):
    """A cross-encoder that reads question and chunk together."""

    model: str
    revision: Pinned


class RetrievalSection(Section):
    """How many chunks a question is answered from, and who orders the best candidates anew."""

    k: Annotated[int, Field(ge=1, le=50)] = 3
    reranker: RerankerSection | None = None


class PromptSection(Section):
    """How the model is asked to cite."""

    citation_ids: Literal["local", "full"] = "local"


class PriceSection(Section):
    """US dollars per million tokens; None: not stated, which is no price of 0."""

    input_usd_per_mtok: Dollars | None = None
    output_usd_per_mtok: Dollars | None = None


class RemoteSection(Section):
    """A chat model: embedded (`extractive`) or behind a server (`openai`, `vllm`, `anthropic`).

    `pinned` is the owner's word that a name without a date stays one snapshot.
    """

    provider: Provider = "extractive"
    model: Pinned
    pinned: bool = False
    base_url: BaseUrl | None = None
    api_key_env: VariableName | None = None
    price: PriceSection = PriceSection()
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    deadline_seconds: Annotated[float, Field(gt=0)] = 600.0
    concurrency: Positive = 8
    structured_output: StructuredOutput = "json_schema"

    @model_validator(mode="after")
    def _is_served(self) -> Self:
        if self.provider in NEEDS_BASE_URL and not self.base_url:
            raise ValueError(
                f"provider {self.provider} needs base_url, for example https://host/v1"
            )
        if not self.pinned:
            _refuse_floating(self.model)
        return self


class TeacherSection(RemoteSection):
    """The expensive model whose answers are the labels."""

    license: str
    trainable: bool
    budget_usd: Annotated[float, Field(ge=0)] = 25.0
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0

    @model_validator(mode="after")
    def _has_logprobs(self) -> Self:
        if self.top_logprobs and self.provider not in OFFERS_LOGPROBS:
            raise ValueError(
                f"top_logprobs needs provider openai or vllm: {self.provider} reports no logprobs"
            )
        return self


class JudgeSection(RemoteSection):
    """The model that grades answers by the rubric. Its budget is beside the teacher's."""

    epoch: Pinned
    minimum_score: Annotated[int, Field(ge=1, le=5)] = 4
    budget_usd: Annotated[float, Field(ge=0)] = 25.0


class ScorerSection(Section):
    """An open-weights model sharing the student's tokenizer, for soft targets: here or at vLLM."""

    provider: Literal["local", "vllm"] = "local"
    model: Pinned
    revision: Pinned = "embedded"
    top_k: Annotated[int, Field(ge=1, le=100)] = 20
    maximum_examples: Positive | None = None
    base_url: BaseUrl | None = None
    api_key_env: VariableName | None = None
    timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    deadline_seconds: Annotated[float, Field(gt=0)] = 600.0
    concurrency: Positive = 8

    @model_validator(mode="after")
    def _is_served(self) -> Self:
        if self.provider == "vllm" and not self.base_url:
            raise ValueError("provider vllm needs base_url, for example http://127.0.0.1:8000/v1")
        if self.provider == "vllm" and self.revision == "embedded":
            raise ValueError(
                "provider vllm needs revision: that of the weights it was started with"
            )
        return self


class StudentSection(Section):
    """A base model that students are made of: here, or behind a server (then it is not trained)."""

    provider: Literal["local"] | RemoteProvider = "local"
    local_engine: LocalEngine = "transformers"
    base_model: str
    revision: Pinned = "embedded"
    context_tokens: Positive = 2048
    max_answer_tokens: Positive = 120
    price: PriceSection = PriceSection()
    pinned: bool = False
    base_url: BaseUrl | None = None
    api_key_env: VariableName | None = None
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    deadline_seconds: Annotated[float, Field(gt=0)] = 600.0
    concurrency: Positive = 8
    budget_usd: Annotated[float, Field(ge=0)] = 5.0

    @model_validator(mode="after")
    def _is_served(self) -> Self:
        if self.provider == "local" and self.base_url:
            raise ValueError("base_url needs a provider: openai, vllm or anthropic")
        if self.provider != "local" and self.local_engine != "transformers":
            raise ValueError(f"local_engine is for provider local, not for {self.provider}")
        if self.provider in NEEDS_BASE_URL and not self.base_url:
            raise ValueError(
                f"provider {self.provider} needs base_url, for example https://host/v1"
            )
        if self.provider != "local":
            _refuse_alias(self.base_model)
            if not self.pinned:
                _refuse_floating(self.base_model)
        return self

    def to_remote(self) -> RemoteSection:
        """Return how the model behind a server is asked."""
        if self.provider == "local":
            raise ValueError("a local student is not asked through a server")
        return RemoteSection(
            provider=self.provider,
            model=self.base_model,
            pinned=self.pinned,
            base_url=self.base_url,
            api_key_env=self.api_key_env,
            price=self.price,
            timeout_seconds=self.timeout_seconds,
            deadline_seconds=self.deadline_seconds,
            concurrency=self.concurrency,
        )


class RouterSection(Section):
    """Thresholds of the router's rules."""

    long_context_tokens: Positive = 6000
    min_retrieval_score: Ratio = 0.55
    maximum_risk_ratio: Ratio | None = 0.05
    high_stakes_pages: tuple[str, ...] = ()
    high_stakes_terms: tuple[str, ...] = ()
    explore_ratio: Ratio = 0.02
    canary_ratio: Ratio | None = None


class ValidatorSection(Section):
    """Limits of the validator."""

    minimum_cite_coverage_ratio: Ratio = 1.0
    minimum_support_ratio: Ratio = 0.6
    maximum_answer_chars: Positive = 4000


class GatesSection(Section):
    """What a student must prove, declared before the run."""

    margin_ratio: Ratio = 0.10
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    minimum_slice_cases: Positive = 30
    slice_floor_ratio: Ratio = 0.50
    minimum_refusal_recall_ratio: Ratio = 0.85
    maximum_cost_ratio: Annotated[float, Field(gt=0)] = 0.60
    shadow_days: Positive = 28
    minimum_agreement_ratio: Ratio = 0.95
    minimum_agreement_pairs: Positive = 500
    suite_margin_ratio: Ratio = 0.05
    behaviour_margin_ratio: Ratio = 0.10
    unregistered_cluster_cases: Positive = 5


class HeldOutSection(Section):
    """How many validation and calibration questions a student is asked."""

    validation_cases: Positive = 60
    calibration_cases: Positive = 60
    base_cases: Annotated[int, Field(ge=0)] = 20


class ParitySection(Section):
    """Which arms the report sets side by side, and whose student is asked before the default's."""

    arms: tuple[str, ...] = DEFAULT_ARMS
    smaller_recipe: str | None = Field(default=None, min_length=1, exclude_if=lambda v: v is None)
    """Left out of the dump where it is left out of the file: then nothing made is stale."""

    @model_validator(mode="after")
    def _can_be_judged(self) -> Self:
        refuse_unfit_arms(self.arms)
        return self


class EconomicsSection(Section):
    """What no run measures of the worth of a student."""

    asks_per_month: Positive = 100_000
    volume_factors: tuple[Factor, Factor] = (0.5, 2.0)
    gpu_usd_per_hour: Dollars = 0.0
    gpu_utilisation_ratio: Annotated[float, Field(gt=0, le=1)] = 0.3
    gpu_utilisation_range: tuple[Factor, Factor] = (0.1, 0.6)
    minimum_machines: Annotated[int, Field(ge=0)] = 0
    infrastructure_usd_per_month: Dollars = 0.0
    setup_usd: Dollars = 0.0
    training_usd_per_hour: Dollars = 0.0
    retrains_per_month: Annotated[float, Field(ge=0)] = 1.0
    relabelled_ratio: Ratio = 0.5
    horizon_months: Positive = 12
    monthly_budget_usd: Dollars | None = None
    minimum_examples: Positive = 100

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name in ("volume_factors", "gpu_utilisation_range"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must ascend, found [{low:g}, {high:g}]")
        if self.gpu_utilisation_range[1] > 1:
            raise ValueError("gpu_utilisation_range must end at 1 or below")
        return self


class RouterVariantSection(Section):
    """What is predicted of an operating point, against another arm of the same recipe."""

    against: str = "routed_80_20"
    predicted_delta: dict[str, float] = Field(min_length=1)
    description: str = ""


class SkillSection(Section):
    """A task with a student of its own. `adapter` is the recipe that makes it."""

    adapter: str = Field(min_length=1)
    pages: tuple[str, ...] = ()
    high_stakes: bool = False


class ReleasesSection(Section):
    """The students a release holds: those asked in turn, and those of skills.

    `tiers` are recipes, the smallest student's first; the last is the `default_recipe`.
    """

    tiers: tuple[str, ...] = Field(default=(), max_length=2, exclude_if=lambda v: not v)
    """Left out of the dump where it is left out of the file: then nothing made is stale."""
    skills: dict[FolderName, SkillSection] = {}

    @model_validator(mode="after")
    def _tiers_serve_no_skill(self) -> Self:
        for name, skill in self.skills.items():
            if skill.adapter in self.tiers:
                raise ValueError(f"the recipe {skill.adapter} is of tiers and of the skill {name}")
        return self

    @model_validator(mode="after")
    def _pages_are_named_once(self) -> Self:
        homes: dict[str, str] = {}
        for name, skill in self.skills.items():
            for page in (page.strip("/") for page in skill.pages):
                if not page:
                    raise ValueError(f"a page of the skill {name} is empty; leave `pages` out")
                if page in homes:
                    raise ValueError(f"the page {page} is of {homes[page]} and of {name}")
                homes[page] = name
        return self


class AdapterServerSection(Section):
    """A server that holds a student's LoRA adapters, each as a model of the adapter's own name."""

    provider: Literal["openai", "vllm"] = "vllm"
    base_url: BaseUrl
    api_key_env: VariableName | None = None


class ServingSection(Section):
    """The phase a promoted release is published in, and where its adapters are served from.

    `adapters` names, by student, the server a release asks instead of running the adapter itself.
    """

    phase: Literal["hitchhiker", "imposter", "switch", "dreamer"] = "switch"
    adapters: dict[StudentName, AdapterServerSection] = {}


class LoopSection(Section):
    """What happens by itself: training again, writing by night, looking after servers."""

    minimum_teacher_traces: Positive = 50
    minimum_after_drift: Positive = 20
    maximum_attempts: Positive = 3
    maximum_eval_age_days: Positive = 14
    retrain: Literal["automatic", "manual"] = "manual"
    dream_questions: Positive = 24
    dream_budget_usd: Dollars = 1.0
    dream_hours: tuple[Hour, ...] = Field(default=(1, 2, 3, 4), min_length=1)
    servers: tuple[BaseUrl, ...] = ()
    maximum_cold_seconds: Positive = 300


class MonitoringSection(Section):
    """What users were promised, which weeks are compared, and which devices serve and train.

    `slo_ms` is the latency of the slowest answer in a hundred. The devices are those the operator
    gives to either, as `cuda:0` or `cpu`; an accelerator in both lists alarms.
    """

    slo_ms: float = Field(default=10_000.0, gt=0)
    window_days: int = Field(default=7, ge=7, le=28, multiple_of=7)
    reference_days: int = Field(default=28, ge=7, le=84, multiple_of=7)
    serving_devices: tuple[str, ...] = ("cpu",)
    training_devices: tuple[str, ...] = ("cpu",)


class Config(Section):
    """The whole file, with paths made absolute."""

    home: LocalFolder = Path(".understudy")
    product: ProductSection
    seeds: SeedsSection
    eval: EvalSection
    embedder: EmbedderSection = EmbedderSection()
    chunking: ChunkingSection = ChunkingSection()
    retrieval: RetrievalSection = RetrievalSection()
    prompt: PromptSection = PromptSection()
    teacher: TeacherSection
    judge: JudgeSection
    scorer: ScorerSection | None = None
    students: dict[StudentName, StudentSection] = Field(min_length=1)
    router: RouterSection = RouterSection()
    validator: ValidatorSection = ValidatorSection()
    gates: GatesSection = GatesSection()
    held_out: HeldOutSection = HeldOutSection()
    parity: ParitySection = ParitySection()
    economics: EconomicsSection = EconomicsSection()
    experiments: dict[str, RouterVariantSection] = {}
    releases: ReleasesSection = ReleasesSection()
    serving: ServingSection = ServingSection()
    monitoring: MonitoringSection = MonitoringSection()
    loop: LoopSection = LoopSection()
    recipes: Path = PROJECT_ROOT / "config" / "recipes"
    default_recipe: str = "compact"
    source: Path = Field(default=DEFAULT_CONFIG, exclude=True)

    @model_validator(mode="after")
    def _tiers_end_with_the_default(self) -> Self:
        tiers = self.releases.tiers
        if tiers and tiers[-1] != self.default_recipe:
            raise ValueError(
                f"releases.tiers must end with the default_recipe {self.default_recipe}, the "
                f"student asked last; found {', '.join(tiers)}"
            )
        if len(tiers) > 1 and self.parity.smaller_recipe is not None:
            raise ValueError(
                "parity.smaller_recipe tries what releases.tiers releases: leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _adapters_have_students(self) -> Self:
        for name in self.serving.adapters:
            student = self.students.get(name)
            if student is None or student.provider != "local":
                raise ValueError(
                    f"serving.adapters.{name} needs a student {name} of provider local: only what "
                    "was trained here has an adapter"
                )
        return self


def load_config(environment: Mapping[str, str] | None = None) -> Config:
    """Read the file named by `UNDERSTUDY_CONFIG`, or the embedded default.

    Raises:
        InvalidInputError: the file is missing, is no YAML, or a value is wrong (key, line, found);
            or UNDERSTUDY_HOME is no local folder.
    """
    environment = os.environ if environment is None else environment
    path = Path(environment.get("UNDERSTUDY_CONFIG") or DEFAULT_CONFIG).expanduser().resolve()
    config = read_config(path)
    home = environment.get("UNDERSTUDY_HOME")
    if not home:
        return config
    if "://" in home:
        raise InvalidInputError(
            "reading $UNDERSTUDY_HOME",
            expected="a local folder (tables and indexes are read from disk)",
            found=repr(home),
            next_step="set UNDERSTUDY_HOME to a local path, or unset it",
        )
    return config.model_copy(update={"home": Path(home).expanduser().resolve()})


def read_config(path: Path) -> Config:
    """Read and validate one file; relative paths in it are relative to its folder."""
    text = _read_text(path)
    node = _parse(path, text)
    _refuse_duplicates(path, node)
    data = yaml.safe_load(text)
    if not isinstance(data, dict):
        raise InvalidInputError(
            f"reading the config {path}",
            expected="a mapping of keys such as product, seeds, teacher",
            found="nothing" if data is None else f"a {type(data).__name__}",
            next_step="start from config/understudy.yaml",
        )
    data["source"] = path
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise _explain(path, node, data, error) from None
    return _make_absolute(config, path.parent)


TELEMETRY_OFF = {
    "DAGSTER_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "TQDM_DISABLE": "1",  # our own progress is shown instead
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def prepare_environment(config: Config) -> None:
    """Set what Dagster and the libraries read from the environment, here and in children.

    DAGSTER_HOME is the project (where `dagster.yaml` lies); what Dagster stores lies in the home.
    """
    storage = config.home / "dagster"
    storage.mkdir(parents=True, exist_ok=True)
    # Dagster says of its own beta features that they are beta; a user can do nothing about it.
    warnings.filterwarnings("ignore", message=".*currently in (beta|preview)")
    os.environ.update(
        TELEMETRY_OFF,
        DAGSTER_HOME=str(PROJECT_ROOT),
        UNDERSTUDY_DAGSTER_STORAGE=str(storage),
        UNDERSTUDY_CONFIG=str(config.source),
        UNDERSTUDY_HOME=str(config.home),
    )


def read_environment() -> dict[str, str]:
    """Return the process's environment, for those who are not allowed to read it themselves."""
    return dict(os.environ)


def read_secret(variable: str | None, environment: Mapping[str, str] | None = None) -> str | None:
    """Return the secret in the named environment variable, or None when no variable is named.

    Raises:
        InvalidInputError: the variable is named in the config but not set.
    """
    if not variable:
        return None
    value = (os.environ if environment is None else environment).get(variable)
    if not value:
        raise InvalidInputError(
            f"reading the API key from ${variable}",
            expected="a non-empty value",
            found="nothing",
            next_step=f"export {variable}=… in the shell that runs Understudy",
        )
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"reading the config {path}",
            expected="a readable UTF-8 YAML file",
            found=str(error),
            next_step="set UNDERSTUDY_CONFIG to your file, or unset it for the embedded default",
        ) from error


def _parse(path: Path, text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
        raise InvalidInputError(
            f"parsing the config {path}",
            expected="valid YAML",
            found=f"{getattr(error, 'problem', error)} at {where}",
            next_step="mend that line (indentation, quotes, a missing colon)",
        ) from error


def _refuse_duplicates(path: Path, root: yaml.Node | None) -> None:
    """YAML lets a later key win silently; in a hand-written file it is always a mistake."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:  # an alias leads to a node once more
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        if not isinstance(node, yaml.MappingNode):
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if str(key.value) in lines:
                raise InvalidInputError(
                    f"reading the config {path}",
                    expected="every key once",
                    found=f"{key.value} on line {lines[str(key.value)]} and again on line {line}",
                    next_step="remove or rename one of the two",
                )
            lines[str(key.value)] = line
            waiting.append(value)


def _explain(
    path: Path, node: yaml.Node | None, data: dict[str, Any], error: ValidationError
) -> InvalidInputError:
    problems = []
    for item in error.errors():
        location = [part for part in item["loc"] if part not in {"source", "[key]"}]
        key = ".".join(map(str, location)) or "(top level)"
        line = _line_of(node, location)
        if item["type"] == "extra_forbidden":
            legal = ", ".join(_legal_keys(location[:-1]))
            problems.append(f"{key} (line {line}): unknown key; legal here: {legal}")
        elif item["type"] == "missing":
            problems.append(f"{key} (line {line}): missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            found = "" if item["loc"][-1:] == ("[key]",) else _show_value(data, location)
            problems.append(f"{key} (line {line}): {message}{found}")
    return InvalidInputError(
        f"reading the config {path}",
        expected="keys and values as docs/reference/configuration lists them",
        found="; ".join(problems),
        next_step="mend the file at the lines named",
    )


def _line_of(node: yaml.Node | None, location: list[Any]) -> int:
    line = 1
    for part in location:
        if not isinstance(node, yaml.MappingNode):
            break
        match = next(((k, v) for k, v in node.value if k.value == str(part)), None)
        if match is None:
            break
        line, node = match[0].start_mark.line + 1, match[1]
    return line


def _show_value(data: Any, location: list[Any]) -> str:
    value = _value_at(data, location)
    if UNSHOWN_KEYS & set(map(str, location)):
        return ""
    if isinstance(value, dict):  # whole sections would drown the sentence before them
        return f"; found the keys {', '.join(map(str, value))}" if location else ""
    return f"; found {value!r}"


def _value_at(data: Any, location: list[Any]) -> Any:
    for part in location:
        if not isinstance(data, (dict, list)):
            break
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _legal_keys(location: list[Any]) -> list[str]:
    section: Any = Config
    for part in location:
        annotation = section.model_fields[part].annotation if part in section.model_fields else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if nested:
            section = nested[0]
    return sorted(set(section.model_fields) - {"source"})


def _make_absolute(config: Config, base: Path) -> Config:
    def absolute(path: Path) -> Path:
        return Path(os.path.normpath(base / path.expanduser()))

    corpus = config.product.corpus.model_copy(update={"path": absolute(config.product.corpus.path)})
    reranker = _locate_model(config.retrieval.reranker, "model", absolute)
    return config.model_copy(
        update={
            "embedder": _locate_model(config.embedder, "model", absolute),
            "retrieval": config.retrieval.model_copy(update={"reranker": reranker}),
            "scorer": _locate_model(config.scorer, "model", absolute),
            "students": {
                name: _locate_model(student, "base_model", absolute)
                for name, student in config.students.items()
            },
            "home": absolute(config.home),
            "recipes": absolute(config.recipes),
            "product": config.product.model_copy(update={"corpus": corpus}),
            "seeds": config.seeds.model_copy(
                update={
                    "path": absolute(config.seeds.path),
                    "harvested": config.seeds.harvested and absolute(config.seeds.harvested),
                }
            ),
            "eval": config.eval.model_copy(
                update={
                    "golden": absolute(config.eval.golden),
                    "suites": SuitesSection(
                        **{name: path and absolute(path) for name, path in config.eval.suites}
                    ),
                }
            ),
        }
    )


def _locate_model(section: Any, key: str, absolute: Callable[[Path], Path]) -> Any:
    """Return the section of a model: the path of one that lies here is relative to the file."""
    if section is None or getattr(section, "provider", "local") != "local":
        return section
    if section.revision == EMBEDDED_REVISION:
        return section
    name: str = getattr(section, key)
    if not (name.startswith((".", "~")) or absolute(Path(name)).is_dir()):
        return section  # a name on a hub
    return section.model_copy(update={key: str(absolute(Path(name)))})
