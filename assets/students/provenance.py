"""Where an adapter comes from: the facts only the pipeline knows, and the row that names it.

Belongs here: gathering from tables. Does not belong here: the adapter's files (`adapters`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from assets.students.recipe import AnyRecipe, Recipe, is_contaminated
from serving.hashing import folder_sha256
from serving.models.prompted_student import PROMPT_FILE, TRAINED_KINDS, VECTORS_FILE
from serving.models.student_rules import RULES_FILE

COMMON_FILES = frozenset({"provenance.json", "recipe.yaml"})
ADAPTER_FILES = frozenset(
    {"adapter_config.json", "adapter_model.safetensors", "training_curve.parquet"}
)
OPTIONAL_FILES = frozenset({VECTORS_FILE, "search.parquet"})
"""In the folder of a prompt: where the nearest examples are shown, where it was searched."""
OPTIONAL_ADAPTER_FILES = frozenset({RULES_FILE})


class PinnedBase(Protocol):
    """A base model as the configuration pins it."""

    base_model: str
    revision: str


def gather_facts(
    training_set: pl.DataFrame,
    labelled_examples: pl.DataFrame,
    index: Mapping[str, Any],
    base: PinnedBase,
) -> dict[str, Any]:
    """Return what an adapter's provenance needs beyond what training itself records."""
    used = labelled_examples.join(training_set.select("example_id"), on="example_id", how="semi")

    def distinct(column: str) -> list[str]:
        return sorted(used[column].unique().to_list())

    return {
        "base_model": base.base_model,
        "base_revision": base.revision,
        "example_counts": dict(training_set["split"].value_counts().sort("split").iter_rows()),
        "teacher_ids": distinct("teacher_id"),
        "example_counts_by_teacher": dict(
            used["teacher_id"].value_counts().sort("teacher_id").iter_rows()
        ),
        "teacher_licenses": distinct("teacher_license"),
        "prompt_version": ",".join(distinct("prompt_version")),
        "index_fingerprint": index["index_fingerprint"],
        "embedder_fingerprint": index["embedder_fingerprint"],
    }


def read_provenance(folder: Path) -> dict[str, Any]:
    """Return what lies beside a student's weights: where they come from."""
    provenance: dict[str, Any] = json.loads(
        (folder / "provenance.json").read_text(encoding="utf-8")
    )
    return provenance


def tabulate_adapter(
    recipe_name: str, folder: Path, recipe: AnyRecipe, base: PinnedBase, training_set: pl.DataFrame
) -> dict[str, Any]:
    """Return the student_adapter row of a student's folder."""
    provenance = read_provenance(folder)
    counts = dict(training_set["split"].value_counts().iter_rows())
    return {
        "recipe": recipe_name,
        "kind": recipe.kind,
        "student": recipe.student,
        "adapter": folder.name,
        "adapter_sha256": folder_sha256(folder),
        "base_model": base.base_model,
        "base_revision": base.revision,
        "base_hash": provenance["base_hash"],
        "activation": recipe.activation if isinstance(recipe, Recipe) else None,
        "training_key": provenance["training_key"],
        "lane": "contaminated" if is_contaminated(recipe) else "clean",
        "training_seconds": provenance.get("training_seconds"),
        "train_count": counts.get("train", 0),
        "validation_count": counts.get("validation", 0),
        "final_validation_loss": provenance.get("best_validation_loss"),
    }


def find_foreign_files(folder: Path, kind: str, expected_sha256: str) -> list[str]:
    """Return what is wrong with a student's folder; nothing when it is the recorded one."""
    is_adapter = kind in TRAINED_KINDS
    expected = COMMON_FILES | (ADAPTER_FILES if is_adapter else {PROMPT_FILE})
    optional = OPTIONAL_ADAPTER_FILES if is_adapter else OPTIONAL_FILES
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    problems = [f"missing {name}" for name in sorted(expected - found)]
    problems += [f"unexpected {name}" for name in sorted(found - expected - optional)]
    if not problems and folder_sha256(folder) != expected_sha256:
        problems.append("its content is not what was recorded")
    return problems
