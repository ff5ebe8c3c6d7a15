"""Students: base models, tokenizers and adapted models by name, and the recipes that make them.

Belongs here: resolving, loading and caching. Does not belong here: training, what a recipe means.
"""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from resources.chat_models import CachedChatModel
from serving.errors import InvalidInputError
from serving.home import Home
from serving.models.embedded import ResolvedModel, resolve_model
from serving.models.protocols import ChatModel, Price, Progress

MAXIMUM_BATCH = 16  # decoding on a CPU waits for memory: a larger batch costs little more


@dataclass(frozen=True, kw_only=True)
class StudentSettings:
    """What the configuration says of one student."""

    base_model: str
    revision: str
    context_tokens: int
    max_answer_tokens: int
    price: Price


@dataclass(frozen=True, kw_only=True)
class Students:
    """The configured students and the recipe files."""

    settings: Mapping[str, StudentSettings]
    recipes_folder: Path
    home: Home
    progress: Progress = field(repr=False)

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
        """Return the verified folder of a student's base model, preparing it once."""
        settings = self.find(student)
        return resolve_model(
            settings.base_model, settings.revision, self.home.models, self.progress
        )

    def tokenizer(self, student: str) -> Any:
        """Return the tokenizer of a student's base model."""
        from serving.models.causal_lm import load_tokenizer

        return load_tokenizer(self.base(student).path)

    def load(self, adapter: dict[str, Any]) -> ChatModel:
        """Return the student of a student_adapter row, its answers kept by request and machine."""
        settings = self.find(adapter["student"])
        model = _load_student(
            self.base(adapter["student"]).path,
            self.home.adapters / adapter["adapter"],
            adapter["adapter"],
            settings.price,
            adapter["activation"],
            settings.context_tokens,
        )
        return CachedChatModel(
            model,
            self.home.answer_cache,
            budget_usd=float("inf"),
            identity=describe_hardware(),
        )


def describe_hardware() -> str:
    """Return what decides how fast a student answers: kept answers carry the latency of a machine.

    A cache that was copied to another machine must not lend it the latencies of the first.
    """
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return f"{platform.machine()} {os.cpu_count()} {device}"


@cache
def _load_student(
    base: Path, adapter: Path, name: str, price: Price, activation: Any, context_tokens: int
) -> ChatModel:
    from serving.models.local_student import LocalStudent

    return LocalStudent.load(
        base,
        adapter,
        name=name,
        price=price,
        activation=activation,
        context_tokens=context_tokens,
        maximum_batch=MAXIMUM_BATCH,
    )
