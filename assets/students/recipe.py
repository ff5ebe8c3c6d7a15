"""A recipe: one YAML file under `config/recipes/`, one partition of the student assets.

Its `kind` says how the student is made: `Recipe` trains an adapter, `PromptRecipe` writes examples
into the prompt, `SearchRecipe` searches that prompt, `BaseRecipe` changes nothing. Belongs here:
the keys of each kind, their legal values, errors that name them. Does not belong here: how a value
is used (`training`, `few_shot`, `prompt_search`), which student can be made here (`factory`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.models.chat_tokens import Activation
from serving.models.prompted_student import StudentKind

TRAINING_VERSION = "training-5"
"""Raised whenever a change in the loop, the loss or the batches can change an adapter. It stands
here, where declarations can read it without loading torch."""

TrainedKind = Literal["lora", "alora", "qlora"]
DType = Literal["auto", "bfloat16", "float32"]
Positive = Annotated[int, Field(gt=0)]
Module = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")]
MetricName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Lane = Literal["clean", "contaminated"]
RefusesBy = Literal["retrieval", "model"]
Change = Annotated[float, Field(allow_inf_nan=False)]
Instructions = Annotated[str, Field(min_length=1)]

WORDS = ("description", "predicted_delta", "compared_with")
"""Keys for readers and for the experiment report: none of them changes a student."""

HOW_COMPUTED = (
    "processes", "micro_batch_size", "packing", "max_packed_tokens", "gradient_checkpointing",
)  # fmt: skip
"""Keys that say how the same sums are computed: like the hardware, they change a student by
rounding alone, so an adapter is not trained again for them."""

LATER_DEFAULTS = (
    ("lane", "clean"),
    ("maximum_harvested_ratio", 0.5),
    ("refuses_by", "model"),
    ("sources", None),
)

RETIRED_DEFAULTS: dict[str, Any] = {"teachers": None}
"""Keys that are gone, at the default they had: hashed on, so that no student is made again."""

ACTIVATIONS: Mapping[str, tuple[Activation, ...]] = {
    "lora": ("all",),
    "alora": ("question", "answer"),
    "qlora": ("all", "question", "answer"),
}
"""Where the adapter of a kind may act, the default first."""


class CommonKeys(BaseModel):
    """What every kind of recipe has: whom it makes a student of, and why.

    Attributes:
        student: which `students.*` entry of the config the student is made of.
        description: why this recipe exists, for readers of the reports.
        predicted_delta: the change expected of a metric of the parity report (by its name), stated
            before the run.
        compared_with: the recipe that the change is against; null is the config's default recipe.
        max_examples: size of the seeded sample of the train split; null is all of it.
        seed: of every random choice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    student: str = Field(min_length=1)
    description: str = ""
    predicted_delta: dict[MetricName, Change] = {}
    compared_with: Module | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 7
    max_examples: Positive | None = 400

    @property
    def fingerprint(self) -> str:
        """Identity of everything that can change the student; words about it cannot.

        A key that came later is left out at its default, and one that is gone stays in at its own,
        so that no student is made again for it.
        """
        values = self.model_dump(mode="json", exclude={*WORDS, *HOW_COMPUTED}) | RETIRED_DEFAULTS
        return content_hash({k: v for k, v in values.items() if (k, v) not in LATER_DEFAULTS})

    def to_yaml(self) -> str:
        """Return the recipe as the file that `load_recipe` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class Recipe(CommonKeys):
    """Everything about a training run that a person chooses. The defaults are the demo's.

    Attributes:
        kind: `lora` acts on every token; `alora` from the question (or the answer) on; `qlora`
            trains on a base of 4 bits, on a GPU.
        activation: where the adapter acts; left out, the first that `ACTIVATIONS` has for the kind.
        alpha: weight of hard cross-entropy; `1 - alpha` goes to the soft KL; 1.0 is hard only.
        citation_boost: multiplies alpha on the boosted tokens, capped at 1; 1 is off.
        citation_boost_on: `citations`, or `placebo`: as many random spans of equal length.
        temperature: T of the soft targets.
        top_k: how many stored logprobs are used per token, the highest, beside the realised
            token's: of tokens, or of groups of tokens (another tokenizer). The rest joins the tail.
        maximum_refusal_ratio: share of refusals in the sample above which refusals are left out; a
            small student refuses whatever it is unsure of when it has seen many. Null keeps all.
        refuses_by: `retrieval`: by the rule of `labels/refusal_rule`, and what it refuses is not
            trained on; without a certified rule, and with `model`, the student is taught to refuse.
        sources: how many of the retrieved the student reads, the best ones; null is all.
        max_steps: stop after this many optimizer steps; null is all epochs.
        patience: stop after so many epochs in a row without a lower validation loss; null is never.
        max_validation_examples: size of the seeded sample that is validated on after each epoch.
        micro_batch_size: examples computed at once in each process, for memory's sake; null is all.
        packing: compute examples one after the other in rows without padding, instead of padded
            side by side; none sees another.
        max_packed_tokens: of a row, prefixes not counted; a longer example has a row of its own.
        gradient_checkpointing: keep each layer's input alone and run the layer again for the
            gradient: less memory, more work.
        maximum_harvested_ratio: share of production's questions in the train split above which they
            are left out; the rest replays what the last student was taught.
        lane: `contaminated` trains on the golden questions too, to learn what a leak is worth; such
            a student is never promoted.
        processes: that train together, one to a GPU, or sharing the cores of a CPU.
        dtype: `auto` is bfloat16 where the hardware multiplies it natively, else float32.
    """

    kind: TrainedKind = "alora"
    activation: Activation = "question"
    rank: Annotated[int, Field(ge=1, le=512)] = 16
    lora_alpha: Positive = 32
    target_modules: tuple[Module, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
    )
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1.0e-3
    batch_size: Positive = 8
    epochs: Positive = 2
    maximum_refusal_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    refuses_by: RefusesBy = "retrieval"
    sources: Positive | None = None
    maximum_harvested_ratio: Annotated[float, Field(ge=0, le=1)] = 0.5
    lane: Lane = "clean"
    max_steps: Positive | None = None
    patience: Positive | None = None
    max_validation_examples: Positive = 24
    micro_batch_size: Positive | None = None
    packing: bool = False
    max_packed_tokens: Positive = 2048
    gradient_checkpointing: bool = False
    processes: Positive = 1
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.3
    citation_boost: Annotated[float, Field(ge=1)] = 2.0
    citation_boost_on: Literal["citations", "placebo"] = "citations"
    temperature: Annotated[float, Field(gt=0, le=20)] = 2.0
    top_k: Annotated[int, Field(ge=1, le=100)] = 20
    dtype: DType = "auto"

    @model_validator(mode="before")
    @classmethod
    def _choose_activation(cls, data: Any) -> Any:
        """Let kind and activation follow from each other, whichever of the two is written."""
        if not isinstance(data, dict):
            return data
        if "kind" not in data:
            return data | {"kind": "lora" if data.get("activation") == "all" else "alora"}
        legal = ACTIVATIONS.get(str(data["kind"]))
        return data if legal is None else {"activation": legal[0]} | data

    @model_validator(mode="after")
    def _acts_where_its_kind_acts(self) -> Self:
        legal = ACTIVATIONS[self.kind]
        if self.activation not in legal:
            raise ValueError(
                f"kind {self.kind} acts from {' or '.join(legal)}, not from {self.activation}; "
                "lora acts on all, alora from question or answer"
            )
        return self

    @model_validator(mode="after")
    def _reads_what_was_scored(self) -> Self:
        if self.sources is not None and self.alpha < 1:
            raise ValueError(
                f"soft targets (alpha {self.alpha}) are of a prompt with all sources, and this "
                f"student reads {self.sources}; set sources: null, or alpha: 1.0"
            )
        return self

    @model_validator(mode="after")
    def _is_cut_in_one_way(self) -> Self:
        if self.packing and self.micro_batch_size is not None:
            raise ValueError(
                f"a packed batch is cut by max_packed_tokens ({self.max_packed_tokens}), and not "
                f"by micro_batch_size ({self.micro_batch_size}); leave one of the two out"
            )
        return self


class BaseRecipe(CommonKeys):
    """The base model as it is, asked with the pipeline's own prompt: what training starts from."""

    kind: Literal["base"]


class PromptRecipe(CommonKeys):
    """Examples in the prompt, and no training.

    Attributes:
        selection: `medoids`: the same examples for every question, the most central of as many
            clusters; `nearest`: the examples nearest to each question.
        examples: how many are shown.
        refusals: how many of these are refusals.
    """

    kind: Literal["few_shot"]
    selection: Literal["medoids", "nearest"] = "medoids"
    examples: Annotated[int, Field(ge=1, le=64)] = 4
    refusals: Annotated[int, Field(ge=0, le=64)] = 1

    @model_validator(mode="after")
    def _shows_more_than_refusals(self) -> Self:
        _refuse_refusals_only(self.examples, self.refusals)
        return self


class SearchRecipe(CommonKeys):
    """Instructions and examples searched on the validation split.

    Attributes:
        calls: how often the model may be asked in the search, kept answers counted too.
        instructions: the rules to try in place of the prompt's own; null is the built-in list. The
            prompt's own are always tried.
        example_sets: how many sets of examples are tried; the first are the medoids.
        examples: how many a set has.
        refusals: how many of these are refusals.
    """

    kind: Literal["prompt_optimised"]
    calls: Annotated[int, Field(ge=1)] = 200
    instructions: tuple[Instructions, ...] | None = None
    example_sets: Annotated[int, Field(ge=1, le=64)] = 3
    examples: Annotated[int, Field(ge=1, le=64)] = 3
    refusals: Annotated[int, Field(ge=0, le=64)] = 1

    @model_validator(mode="after")
    def _shows_more_than_refusals(self) -> Self:
        _refuse_refusals_only(self.examples, self.refusals)
        return self


AnyRecipe = Recipe | BaseRecipe | PromptRecipe | SearchRecipe
_MODELS: Mapping[str, type[AnyRecipe]] = {
    **dict.fromkeys(get_args(TrainedKind), Recipe),
    "base": BaseRecipe,
    "few_shot": PromptRecipe,
    "prompt_optimised": SearchRecipe,
}


def is_trained(recipe: AnyRecipe) -> bool:
    """Return whether making this recipe's student changes weights."""
    return isinstance(recipe, Recipe)


def is_contaminated(recipe: AnyRecipe) -> bool:
    """Return whether its student may see golden questions, and so never be promoted."""
    return isinstance(recipe, Recipe) and recipe.lane == "contaminated"


def load_recipe(path: Path) -> AnyRecipe:
    """Read one recipe file.

    Raises:
        InvalidInputError: the file is missing, is no YAML mapping, or a key or value is wrong; the
            message names each key, what was found and what is legal.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInputError(
            f"reading the recipe {path}",
            expected="a readable UTF-8 YAML file",
            found=str(error),
            next_step="mend the file, or name one that lies in config/recipes/",
        ) from error
    return parse_recipe(data, source=str(path))


def parse_recipe(data: Any, *, source: str) -> AnyRecipe:
    """Validate a recipe's keys and values; `source` is named in the error.

    Raises:
        InvalidInputError: as `load_recipe`.
    """
    if not isinstance(data, dict):
        raise InvalidInputError(
            f"reading the recipe {source}",
            expected=f"a mapping with keys among {', '.join(Recipe.model_fields)}",
            found=type(data).__name__,
            next_step="start from config/recipes/compact.yaml",
        )
    kind = data.get("kind", "alora")
    model = _MODELS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise InvalidInputError(
            f"reading the recipe {source}",
            expected=f"a kind among {', '.join(get_args(StudentKind))}",
            found=repr(kind),
            next_step=f"mend the key `kind` in {source}",
        )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InvalidInputError(
            f"reading the recipe {source}",
            expected=f"keys and values of a recipe of kind {kind}",
            found="; ".join(_describe(item, model, kind) for item in error.errors()),
            next_step=f"mend these keys in {source}",
        ) from None


def _refuse_refusals_only(examples: int, refusals: int) -> None:
    if refusals >= examples:
        raise ValueError(
            f"refusals ({refusals}) must be fewer than examples ({examples}): a model that is "
            "shown refusals alone refuses"
        )


def _describe(item: Any, model: type[BaseModel], kind: str) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key in kind {kind}; legal: {', '.join(model.model_fields)}"
    if item["type"] == "missing":
        return f"{key}: missing"
    message = item["msg"].removeprefix("Value error, ")
    return f"{key}: {message}; found {item['input']!r}" if key else message
