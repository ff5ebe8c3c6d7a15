"""Finding an adapter again: only whole ones, and a damaged one is made anew."""

import json

import pytest

from assets.students import adapters
from assets.students.adapters import find_adapter, hash_adapter
from assets.students.student_folders import DAMAGED, PROVENANCE, is_whole, set_aside_if_damaged


def write_folder(parent, key: str, weights: bytes = b"weights"):
    made = parent / "made"
    made.mkdir(parents=True)
    (made / adapters.ADAPTER_WEIGHTS).write_bytes(weights)
    (made / adapters.ADAPTER_CONFIG).write_text("{}")
    (made / PROVENANCE).write_text(json.dumps({"training_key": key}))
    return made.rename(parent / f"tiny@{hash_adapter(made)}")


def test_the_folder_with_the_key_is_found(tmp_path):
    write_folder(tmp_path, "k1", b"one")
    second = write_folder(tmp_path, "k2", b"two")
    assert find_adapter(tmp_path, "tiny", "k2") == second
    assert find_adapter(tmp_path, "tiny", "k3") is None
    assert find_adapter(tmp_path, "other", "k2") is None
    assert find_adapter(tmp_path / "none", "tiny", "k2") is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (adapters.ADAPTER_WEIGHTS, "cut"),
        (adapters.ADAPTER_CONFIG, "[]"),
        (adapters.ADAPTER_WEIGHTS, None),
        (PROVENANCE, "{"),
        (PROVENANCE, "[]"),
        (PROVENANCE, "{}"),
    ],
)
def test_a_damaged_folder_is_passed_over_and_makes_room(tmp_path, name, content):
    folder = write_folder(tmp_path, "k1")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    assert find_adapter(tmp_path, "tiny", "k1") is None
    assert not is_whole(folder, hash_adapter)
    set_aside_if_damaged(folder, hash_adapter)
    assert not folder.exists()
    assert (tmp_path / DAMAGED / folder.name).is_dir()
    whole = write_folder(tmp_path, "k1")
    set_aside_if_damaged(whole, hash_adapter)
    assert find_adapter(tmp_path, "tiny", "k1") == whole
