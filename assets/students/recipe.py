"""A training recipe: one YAML file under `config/recipes/`, one partition of the student assets.

Belongs here: the keys, their legal values, errors that name them. Does not belong here: how a value
is used (`training`, `training_set`).
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.models.chat_tokens import Activation

TRAINING_VERSION = "training-3"
"""Raised whenever a change in `training`, `loss` or `batches` can change an adapter. It stands
here, where declarations can read it without loading torch."""

DType = Literal["auto", "bfloat16", "float32"]
Positive = Annotated[int, Field(gt=0)]
Module = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")]


class Recipe(BaseModel):
    """Everything about a training run that a person chooses. The defaults are the demo's.

    Attributes:
        student: which `students.*` entry of the config is trained.
        description: why this recipe exists, for readers of the reports.
        activation: `question`: the adapter acts from the user's question on; `all`: ordinary LoRA.
        alpha: weight of hard cross-entropy; `1 - alpha` goes to the soft KL; 1.0 is hard only.
        citation_boost: multiplies alpha on citation tokens, capped at 1; 1 is off.
        temperature: T of the soft targets.
        top_k: how many of a teacher's stored logprobs are used.
        max_steps: stop after this many optimizer steps; null is all epochs.
        max_examples: size of the seeded sample of the train split; null is all of it.
        dtype: `auto` is bfloat16 where the hardware multiplies it natively, else float32.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    student: str = Field(min_length=1)
    description: str = ""
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
    max_steps: Positive | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 7
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.3
    citation_boost: Annotated[float, Field(ge=1)] = 2.0
    temperature: Annotated[float, Field(gt=0, le=20)] = 2.0
    top_k: Annotated[int, Field(ge=1, le=100)] = 20
    max_examples: Positive | None = 400
    dtype: DType = "auto"

    @property
    def fingerprint(self) -> str:
        """Identity of everything that can change the adapter; the description cannot."""
        return content_hash(self.model_dump(mode="json", exclude={"description"}))

    def to_yaml(self) -> str:
        """Return the recipe as the file that `load_recipe` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_recipe(path: Path) -> Recipe:
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


def parse_recipe(data: Any, *, source: str) -> Recipe:
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
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise InvalidInputError(
            f"reading the recipe {source}",
            expected="keys and values of a training recipe",
            found="; ".join(_describe(item) for item in error.errors()),
            next_step=f"mend these keys in {source}",
        ) from None


def _describe(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key; legal: {', '.join(Recipe.model_fields)}"
    if item["type"] == "missing":
        return f"{key}: missing"
    return f"{key}: {item['msg']}; found {item['input']!r}"
