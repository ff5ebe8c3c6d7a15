"""The folder `<student>@<sha12>` of a student of any kind: recorded, found by key, recognised.

Belongs here: what the folders of adapters and of prompts have in common. Does not belong here: the
files of one kind and the hash over them (`adapters`, `prompt_folders`).
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from assets.students.recipe import AnyRecipe
from serving.errors import ReleaseError

PROVENANCE, RECIPE_FILE = "provenance.json", "recipe.yaml"
DAMAGED = ".damaged"

HashContent = Callable[[Path], str]
"""Returns the sha12 that a folder's content gives; it must be the one in its name."""

# What reading a damaged folder can raise.
_BROKEN = (OSError, ValueError, KeyError, TypeError, ReleaseError)


def find_folder(
    adapters_folder: Path, student: str, key: str, hash_content: HashContent
) -> Path | None:
    """Return the whole folder of a student whose provenance records this key, or None.

    A folder that is not what its name says is passed over: it is made anew. The key is compared
    first: that is cheap beside hashing.
    """
    for path in sorted(adapters_folder.glob(f"{student}@*/{PROVENANCE}")):
        if _has_key(path.parent, key) and is_whole(path.parent, hash_content):
            return path.parent
    return None


def is_whole(folder: Path, hash_content: HashContent) -> bool:
    """Return whether a folder's content and key are the ones it is named after."""
    try:
        return folder.name.rpartition("@")[2] == hash_content(folder)
    except _BROKEN:
        return False


def set_aside_if_damaged(target: Path, hash_content: HashContent) -> None:
    """Move a damaged folder of this name to `.damaged/`: writing would keep it, as an equal one."""
    if target.is_dir() and not is_whole(target, hash_content):
        aside = target.parent / DAMAGED / target.name
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        target.rename(aside)


def write_papers(folder: Path, recipe: AnyRecipe, provenance: Mapping[str, Any]) -> None:
    """Write the recipe and the provenance of a student into its folder."""
    (folder / RECIPE_FILE).write_text(recipe.to_yaml(), encoding="utf-8")
    text = json.dumps(dict(provenance), indent=1, sort_keys=True, ensure_ascii=False)
    (folder / PROVENANCE).write_text(text, encoding="utf-8")


def read_key(folder: Path) -> str:
    """Return the recorded key.

    Raises:
        OSError, ValueError, KeyError, TypeError: the provenance is missing or broken.
    """
    return str(json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["training_key"])


def _has_key(folder: Path, key: str) -> bool:
    try:
        return read_key(folder) == key
    except _BROKEN:
        return False
