"""The folder of a student that is a prompt: identity, writing it whole, finding it again.

Belongs here: everything about its files. Does not belong here: what the prompt says (`few_shot`,
`prompt_search`), trusting a folder at load (`serving.models.prompted_student`), adapters.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from assets.students.recipe import AnyRecipe
from assets.students.student_folders import (
    find_folder,
    read_key,
    set_aside_if_damaged,
    write_papers,
)
from serving.files import atomic_folder
from serving.hashing import content_hash, file_sha256
from serving.models.prompted_student import PROMPT_FILE, VECTORS_FILE, VECTORS_NAME, StudentPrompt
from serving.models.protocols import Vectors

SEARCH_FILE = "search.parquet"


def write_student(
    adapters_folder: Path,
    recipe: AnyRecipe,
    prompt: StudentPrompt,
    *,
    vectors: Vectors | None = None,
    search_log: pl.DataFrame | None = None,
    provenance: Mapping[str, Any],
) -> Path:
    """Write the student as one folder, whole or not at all, and return it.

    Args:
        adapters_folder: where `<student>@<sha12>` is put.
        recipe: what it was made by.
        prompt: what it is.
        vectors: of the prompt's examples, where the nearest are chosen for each question.
        search_log: every call of the search that found it, if one did.
        provenance: facts and hashes, `training_key` among them.
    """
    from safetensors.numpy import save

    text = prompt.model_dump_json(indent=1).encode()
    tensors = None if vectors is None else save({VECTORS_NAME: vectors})
    sha = _hash_parts(_sha256(text), _sha256(tensors), str(provenance["training_key"]))
    target = adapters_folder / f"{recipe.student}@{sha}"
    set_aside_if_damaged(target, hash_student)
    with atomic_folder(target) as staging:
        (staging / PROMPT_FILE).write_bytes(text)
        if tensors is not None:
            (staging / VECTORS_FILE).write_bytes(tensors)
        if search_log is not None:
            search_log.write_parquet(staging / SEARCH_FILE, compression="zstd")
        write_papers(staging, recipe, {**provenance, "adapter_sha": sha})
    return target


def read_searched(folder: Path) -> frozenset[str]:
    """Return the examples that the search for a student's prompt asked; none of a student without.

    What chose a prompt cannot judge it.
    """
    log = folder / SEARCH_FILE
    return frozenset(pl.read_parquet(log)["example_id"]) if log.is_file() else frozenset()


def find_student(adapters_folder: Path, student: str, key: str) -> Path | None:
    """Return the whole folder whose provenance records this key, or None."""
    return find_folder(adapters_folder, student, key, hash_student)


def hash_student(folder: Path) -> str:
    """Return the sha12 a folder's content gives; it must be the one in its name."""
    vectors = folder / VECTORS_FILE
    return _hash_parts(
        file_sha256(folder / PROMPT_FILE),
        file_sha256(vectors) if vectors.is_file() else None,
        read_key(folder),
    )


def _hash_parts(prompt_sha256: str | None, vectors_sha256: str | None, key: str) -> str:
    """Join content and key: equal prompts of two makings keep two provenances."""
    return content_hash(prompt_sha256, vectors_sha256, key, digits=12)


def _sha256(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()
