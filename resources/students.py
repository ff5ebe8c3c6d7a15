"""Students: base models, tokenizers and made students by name, and the recipes that make them.

Belongs here: resolving, loading and caching. Does not belong here: training, what a recipe means,
what a prompt does to a request (`serving.models.prompted_student`).
"""

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.chat_models import CachedChatModel
from serving.errors import InvalidInputError
from serving.home import Home
from serving.models.decoding_signs import SIGNS_VERSION
from serving.models.embedded import ResolvedModel, resolve_model
from serving.models.engines import LocalEngine
from serving.models.prompted_student import (
    TRAINED_KINDS,
    OpenedBase,
    PromptedStudent,
    load_prompted_student,
)
from serving.models.protocols import ChatModel, Embedder, Price, Progress
from serving.models.remote import hash_remote_model
from serving.models.student_rules import follow_rules
from serving.pipeline.assembly import estimate_tokens

if TYPE_CHECKING:
    from serving.models.local_student import LocalStudent

MAXIMUM_BATCH = 16  # decoding on a CPU waits for memory: a larger batch costs little more
MODELS_HELD = 3
"""A student, a smaller one before it and their base: what is read of prompts and compiled takes
some 2 GB a model, and one process makes the students of many recipes."""


@dataclass(frozen=True, kw_only=True)
class StudentSettings:
    """What the configuration says of one student.

    `provider` is `local`, run by `local_engine`, or who serves the base model at `base_url`.
    """

    base_model: str
    revision: str
    context_tokens: int
    max_answer_tokens: int
    price: Price
    provider: str = "local"
    local_engine: LocalEngine = "transformers"
    base_url: str | None = None


@dataclass(frozen=True, kw_only=True)
class Students:
    """The configured students and the recipe files.

    Args:
        settings: by name.
        recipes_folder: of the YAML files.
        home: where models, adapters and kept answers lie.
        progress: told how far preparing a model is.
        connect: connects the base of a student behind a server, cached and budgeted.
        open_embedder: of the product, by which examples are chosen.
    """

    settings: Mapping[str, StudentSettings]
    recipes_folder: Path
    home: Home
    progress: Progress = field(repr=False)
    connect: Callable[[str], ChatModel] = field(repr=False)
    open_embedder: Callable[[], Embedder] = field(repr=False)

    def recipe_path(self, recipe: str) -> Path:
        """Return the file of a recipe."""
        return self.recipes_folder / f"{recipe}.yaml"

    def find(self, student: str) -> StudentSettings:
        """Return a student's settings.

        Raises:
            InvalidInputError: the configuration has no such student.
        """
        if student not in self.settings:
            raise InvalidInputError(
                f"looking up the student {student!r} that a recipe names",
                expected=f"one of {sorted(self.settings)}",
                found=repr(student),
                next_step="add it under `students` in the config, or mend the recipe's `student`",
            )
        return self.settings[student]

    def base(self, student: str) -> ResolvedModel:
        """Return the verified folder of a student's base model, preparing it once.

        Raises:
            InvalidInputError: the student is unknown, or its base is behind a server.
        """
        settings = self.find(student)
        if settings.provider != "local":
            raise InvalidInputError(
                f"opening the base model of the student {student!r}",
                expected="a student with provider local, whose weights and tokenizer are here",
                found=f"provider {settings.provider}",
                next_step="name a local student, or use a recipe of kind few_shot, "
                "prompt_optimised or base",
            )
        return resolve_model(
            settings.base_model, settings.revision, self.home.models, self.progress
        )

    def tokenizer(self, student: str) -> Any:
        """Return the tokenizer of a student's base model."""
        from serving.models.causal_lm import load_tokenizer

        return load_tokenizer(self.base(student).path)

    def open_base(self, student: str) -> OpenedBase:
        """Return a student's base model ready to answer, its answers kept."""
        settings = self.find(student)
        if settings.provider != "local":
            return OpenedBase(
                model=self.connect(student),
                identity=hash_remote_model(
                    settings.provider, settings.base_model, settings.base_url
                ),
                count_tokens=estimate_tokens,
                context_tokens=settings.context_tokens,
            )
        from serving.models.causal_lm import hash_base_model

        folder = self.base(student).path
        identity = hash_base_model(folder)
        model = _load_base(
            folder,
            f"{settings.base_model}@{settings.revision}",
            settings.price,
            settings.context_tokens,
            settings.local_engine,
            self.home.models,
        )
        return OpenedBase(
            model=self._keep_answers(model, identity),
            identity=identity,
            count_tokens=model.count_prompt_tokens,
            context_tokens=settings.context_tokens,
            dtype=model.dtype,
        )

    def load(self, adapter: dict[str, Any]) -> ChatModel:
        """Return the student of a student_adapter row, its answers kept by request and machine."""
        if adapter["kind"] not in TRAINED_KINDS:
            return self._load_prompted(adapter)
        settings = self.find(adapter["student"])
        model = _load_student(
            self.base(adapter["student"]).path,
            self.home.adapters / adapter["adapter"],
            adapter["adapter"],
            settings.price,
            adapter["activation"],
            settings.context_tokens,
            settings.local_engine,
            self.home.models,
        )
        ruled: ChatModel = follow_rules(
            self._keep_answers(model), self.home.adapters / adapter["adapter"]
        )
        return ruled

    def _load_prompted(self, adapter: dict[str, Any]) -> PromptedStudent:
        return load_prompted_student(
            self.home.adapters / adapter["adapter"],
            self.open_base(adapter["student"]),
            name=adapter["adapter"],
            base_identity=adapter["base_hash"],
            open_embedder=self.open_embedder,
        )

    def _keep_answers(self, model: ChatModel, identity: str = "") -> CachedChatModel:
        return CachedChatModel(
            model,
            self.home.answer_cache,
            budget_usd=float("inf"),
            identity=" ".join(
                # precision follows the hardware, and logprobs follow precision
                filter(
                    None,
                    (describe_hardware(), getattr(model, "dtype", ""), SIGNS_VERSION, identity),
                )
            ),
        )


def describe_hardware() -> str:
    """Return what decides how fast a student answers: kept answers carry the latency of a machine.

    A cache that was copied to another machine must not lend it the latencies of the first.
    """
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return f"{platform.machine()} {os.cpu_count()} {device}"


def _load_base(
    folder: Path,
    name: str,
    price: Price,
    context_tokens: int,
    local_engine: LocalEngine,
    models_folder: Path,
) -> "LocalStudent":
    return _load_student(
        folder, None, name, price, "question", context_tokens, local_engine, models_folder
    )


@lru_cache(maxsize=MODELS_HELD)
def _load_student(
    base: Path,
    adapter: Path | None,
    name: str,
    price: Price,
    activation: Any,
    context_tokens: int,
    local_engine: LocalEngine,
    models_folder: Path,
) -> "LocalStudent":
    from serving.models.local_student import LocalStudent

    return LocalStudent.load(
        base,
        adapter,
        name=name,
        price=price,
        activation=activation,
        context_tokens=context_tokens,
        maximum_batch=MAXIMUM_BATCH,
        local_engine=local_engine,
        models_folder=models_folder,
    )
