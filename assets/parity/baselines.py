"""The untrained arms: what the student's base model answers as it is, and with examples shown.

Belongs here: opening those two models. Does not belong here: how a prompt of examples is written
(`assets/students/factory`), asking (`answering`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from assets.parity.arms import Arm
from assets.students.factory import FactoryParts, list_examples, make_student
from assets.students.provenance import gather_facts
from assets.students.recipe import PromptRecipe
from serving.models.prompted_student import OpenedBase
from serving.models.protocols import ChatModel, Embedder, Progress


class StudentSettings(Protocol):
    """What the configuration says of one student."""

    base_model: str
    revision: str
    max_answer_tokens: int


class StudentShelf(Protocol):
    """Loads students by what student_adapter says of them, and the bases that they are made of."""

    def load(self, adapter: dict[str, Any]) -> ChatModel:
        """Return the student, its answers cached by content key."""
        ...

    def find(self, student: str) -> StudentSettings:
        """Return a student's settings."""
        ...

    def open_base(self, student: str) -> OpenedBase:
        """Return its base model ready to answer, its answers cached."""
        ...

    def open_embedder(self) -> Embedder:
        """Return the product's embedder, by which examples are chosen."""
        ...


def open_untrained(
    arms: Sequence[Arm],
    *,
    adapter: dict[str, Any],
    labelled_examples: pl.DataFrame,
    index: dict[str, Any],
    students: StudentShelf,
    adapters_folder: Path,
    progress: Progress,
) -> dict[str, ChatModel]:
    """Return the model of each untrained arm: the base of the student that is judged."""
    if not arms:
        return {}
    name = adapter["student"]
    base = students.open_base(name)
    models: dict[str, ChatModel] = {}
    for arm in arms:
        if arm.name == "base":
            models[arm.name] = base.model
            continue
        recipe = PromptRecipe(kind="few_shot", student=name, selection="nearest")
        settings = students.find(name)
        shown = list_examples(labelled_examples, max_examples=recipe.max_examples, seed=recipe.seed)
        made = make_student(
            recipe,
            labelled_examples.join(shown.frame, on="example_id", how="semi"),
            parts=FactoryParts(
                base=base,
                open_embedder=students.open_embedder,
                max_answer_tokens=settings.max_answer_tokens,
                progress=progress,
            ),
            facts=gather_facts(shown.frame, labelled_examples, index, settings),
            adapters_folder=adapters_folder,
        )
        models[arm.name] = students.load(
            {
                "kind": recipe.kind,
                "student": name,
                "adapter": Path(made.adapter).name,
                "base_hash": base.identity,
            }
        )
    return models
