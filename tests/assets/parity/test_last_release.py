"""The last release as a baseline: a real signed bundle, read by whoever measures the next one."""

from pathlib import Path

import pytest

from assets.parity.last_release import find_last_student
from serving.errors import ReleaseError
from serving.hashing import folder_sha256
from serving.home import Home
from serving.releases.bundle import CURRENT, build_bundle, publish
from serving.releases.signing import ensure_signing_key
from tests.serving.fakes import make_manifest

CANDIDATE = {"adapter_sha256": "f" * 64}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "staged"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def release(home: Home, adapter: Path, *, skilled: Path | None = None, **changes) -> str:
    """Release one student, or with `skilled` another one before it that serves a skill alone."""
    compact = make_manifest().model_dump()["students"]["compact"]
    folders = {"compact": adapter} if skilled is None else {"api": skilled, "compact": adapter}
    students = {
        name: compact
        | {"adapter_sha256": folder_sha256(folder)}
        | ({} if name == "compact" else {"adapter": f"{name}@3f9c0a1b2c4d"})
        for name, folder in folders.items()
    }
    manifest = make_manifest(students=students, **changes)
    release_id = build_bundle(home.releases, manifest, folders)
    publish(
        home.releases,
        release_id,
        expected_parent=None,
        signing_key=ensure_signing_key(home.keys),
    )
    return release_id


def test_before_the_first_release_there_is_no_such_baseline(tmp_path):
    assert find_last_student(Home(tmp_path / "home"), CANDIDATE) is None


def test_the_student_that_answers_users_is_named_so_that_it_can_be_loaded(tmp_path, adapter):
    home = Home(tmp_path / "home")
    release(home, adapter)
    last = find_last_student(home, CANDIDATE)
    assert last is not None
    assert last.adapter == {
        "kind": "alora", "student": "compact", "adapter": "compact@3f9c0a1b2c4d",
        "activation": "question", "base_hash": "beef",
    }  # fmt: skip
    assert last.calibration is None


def test_a_skill_is_not_taken_for_the_student_that_users_know(tmp_path, adapter):
    home, skilled = Home(tmp_path / "home"), tmp_path / "skilled"
    skilled.mkdir()
    (skilled / "adapter_model.safetensors").write_bytes(b"others")
    release(home, adapter, skilled=skilled, skills={"api": {"student": "api"}}, tiers=("compact",))
    last = find_last_student(home, CANDIDATE)
    assert last is not None
    assert last.adapter["student"] == "compact"
    assert find_last_student(home, {"adapter_sha256": folder_sha256(adapter)}) is None


def test_a_candidate_is_not_compared_with_itself(tmp_path, adapter):
    home = Home(tmp_path / "home")
    release(home, adapter)
    assert find_last_student(home, {"adapter_sha256": folder_sha256(adapter)}) is None


def test_where_the_teacher_answers_everything_no_student_is_the_baseline(tmp_path, adapter):
    home = Home(tmp_path / "home")
    release(home, adapter, phase="hitchhiker", gate={"verdict": "HOLD"})
    assert find_last_student(home, CANDIDATE) is None


def test_a_pointer_that_nobody_signed_is_refused(tmp_path, adapter):
    home = Home(tmp_path / "home")
    release(home, adapter)
    pointer = home.releases / CURRENT
    pointer.write_text(pointer.read_text().replace('"sequence":1', '"sequence":2').replace(
        '"sequence": 1', '"sequence": 2'))  # fmt: skip
    with pytest.raises(ReleaseError):
        find_last_student(home, CANDIDATE)
