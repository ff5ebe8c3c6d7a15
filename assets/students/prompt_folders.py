"""The folder of a student that is a prompt: identity, writing it whole, finding it again.

Belongs here: everything about its files. Does not belong here: what the prompt says (`few_shot`,
`prompt_search`), trusting a folder at load (`serving.models.prompted_student`), adapters.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from assets.students.recipe import AnyRecipe
from serving.files import atomic_folder
from serving.hashing import content_hash, file_sha256
from serving.models.prompted_student import PROMPT_FILE, VECTORS_FILE, VECTORS_NAME, StudentPrompt
from serving.models.protocols import Vectors

PROVENANCE, RECIPE_FILE, SEARCH_FILE = "provenance.json", "recipe.yaml", "search.parquet"
DAMAGED = ".damaged"


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
    _set_aside_if_damaged(target)
    with atomic_folder(target) as staging:
        (staging / PROMPT_FILE).write_bytes(text)
        if tensors is not None:
            (staging / VECTORS_FILE).write_bytes(tensors)
        if search_log is not None:
            search_log.write_parquet(staging / SEARCH_FILE, compression="zstd")
        (staging / RECIPE_FILE).write_text(recipe.to_yaml(), encoding="utf-8")
        record = {**provenance, "adapter_sha": sha}
        (staging / PROVENANCE).write_text(
            json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False), encoding="utf-8"
        )
    return target


def find_student(adapters_folder: Path, student: str, key: str) -> Path | None:
    """Return the whole folder whose provenance records this key, or None.

    A folder that is not what its name says is passed over: it is made anew.
    """
    for path in sorted(adapters_folder.glob(f"{student}@*/{PROMPT_FILE}")):
        if is_whole(path.parent) and _read_key(path.parent) == key:
            return path.parent
    return None


def is_whole(folder: Path) -> bool:
    """Return whether prompt, vectors and key are the ones the folder is named after."""
    try:
        return folder.name.rpartition("@")[2] == hash_student(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def hash_student(folder: Path) -> str:
    """Return the sha12 a folder's content gives; it must be the one in its name."""
    vectors = folder / VECTORS_FILE
    return _hash_parts(
        file_sha256(folder / PROMPT_FILE),
        file_sha256(vectors) if vectors.is_file() else None,
        _read_key(folder),
    )


def _read_key(folder: Path) -> str:
    return str(json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["training_key"])


def _set_aside_if_damaged(target: Path) -> None:
    """Move a damaged folder of this name to `.damaged/`: writing would keep it, as an equal one."""
    if target.is_dir() and not is_whole(target):
        aside = target.parent / DAMAGED / target.name
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        target.rename(aside)


def _hash_parts(prompt_sha256: str | None, vectors_sha256: str | None, key: str) -> str:
    """Join content and key: equal prompts of two makings keep two provenances."""
    return content_hash(prompt_sha256, vectors_sha256, key, digits=12)


def _sha256(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()
