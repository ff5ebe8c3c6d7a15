import hashlib
import json
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from serving.errors import ReleaseError
from serving.hashing import folder_sha256
from serving.pipeline.confidence import RiskThreshold
from serving.releases.bundle import (
    CHECKSUMS,
    CURRENT,
    MANIFEST,
    build_bundle,
    copy_current,
    load_current,
    publish,
    verify_bundle,
)
from serving.releases.manifest import ReleaseManifest, hash_stored
from tests.serving.fakes import make_manifest
from tests.serving.pipeline.test_confidence import make_calibration
from tests.serving.torture import count, report

KEY = Ed25519PrivateKey.generate()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "staged"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights" * 100)
    (folder / "adapter_config.json").write_text('{"r": 16}')
    (folder / "recipe.yaml").write_text("rank: 16\n")
    return folder


def _manifest(adapter: Path, **changes: Any) -> ReleaseManifest:
    students = make_manifest().model_dump()["students"]
    students["compact"]["adapter_sha256"] = folder_sha256(adapter)
    return make_manifest(**({"students": students} | changes))


def _build(releases: Path, adapter: Path, **changes: Any) -> str:
    return build_bundle(releases, _manifest(adapter, **changes), {"compact": adapter})


@pytest.fixture
def releases(tmp_path: Path, adapter: Path) -> Path:
    """A folder with one published release."""
    folder = tmp_path / "releases"
    release_id = _build(folder, adapter)
    publish(folder, release_id, expected_parent=None, signing_key=KEY)
    return folder


def _bundle(releases: Path) -> Path:
    return load_current(releases, KEY.public_key()).folder


def test_a_published_release_is_loaded_back(releases: Path, adapter: Path) -> None:
    release = load_current(releases, KEY.public_key())
    assert release.manifest == _manifest(adapter)
    assert release.folder.name == release.manifest.release_id == release.manifest.content_id()
    assert (release.sequence, release.parent) == (1, None)
    copied = release.adapter_folder("compact")
    assert {p.name for p in copied.iterdir()} == {p.name for p in adapter.iterdir()}
    assert folder_sha256(copied) == folder_sha256(adapter)


def test_what_is_loaded_is_a_copy_nobody_else_can_change(releases: Path) -> None:
    with copy_current(releases, KEY.public_key()) as release:
        (weights,) = _bundle(releases).rglob("*.safetensors")
        weights.write_bytes(b"replaced after it was verified")
        copied = release.adapter_folder("compact")
        assert folder_sha256(copied) == release.manifest.students["compact"].adapter_sha256
        private = release.folder.parent
        assert private.stat().st_mode & 0o777 == 0o700
        assert not private.is_relative_to(releases)
    assert not private.exists()
    with (
        pytest.raises(ReleaseError, match=r"safetensors with sha256"),
        copy_current(releases, KEY.public_key()),
    ):
        pass


def test_a_file_replaced_while_it_is_copied_is_noticed(
    releases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copyfile

    def replace_and_copy(source: Path, target: Path) -> None:
        if source.suffix == ".safetensors":
            source.write_bytes(b"replaced between the hash and the copy")
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", replace_and_copy)
    with (
        pytest.raises(ReleaseError, match=r"safetensors with sha256"),
        copy_current(releases, KEY.public_key()),
    ):
        pass


def test_no_room_for_a_copy_is_said(releases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fill)
    with pytest.raises(ReleaseError, match="TMPDIR"), copy_current(releases, KEY.public_key()):
        pass


def test_no_folder_for_a_copy_is_said(releases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(releases / "gone"))
    with pytest.raises(ReleaseError, match="TMPDIR"), copy_current(releases, KEY.public_key()):
        pass


def test_a_refused_copy_is_told_by_the_folder_of_the_release(
    releases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The private folder is gone by then, and a path of its own would make each retry news."""
    copy = shutil.copyfile

    def damage(source: Path, target: Path) -> None:
        copy(source, target)
        target.write_bytes(b"damaged on the way")

    monkeypatch.setattr(shutil, "copyfile", damage)
    told = set()
    for _ in range(2):
        with pytest.raises(ReleaseError) as caught, copy_current(releases, KEY.public_key()):
            pass
        told.add(str(caught.value))
    (text,) = told
    assert str(_bundle(releases)) in text
    assert "understudy-release-" not in text


def test_the_checksums_are_what_sha256sum_reads(releases: Path) -> None:
    folder = _bundle(releases)
    lines = (folder / CHECKSUMS).read_text().splitlines()
    for line in lines:
        digest, path = line.split("  ")
        assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == digest
    assert len(lines) == 4


def test_equal_content_is_the_same_release_whenever_built(releases: Path, adapter: Path) -> None:
    later = {"created_at": datetime(2030, 1, 1, tzinfo=UTC), "sequence": 7, "parent": "a" * 12}
    assert _build(releases, adapter, **later) == _bundle(releases).name
    assert _build(releases, adapter, retrieval={"k": 4}) != _bundle(releases).name


def test_numbers_json_cannot_say_do_not_change_the_identity(tmp_path: Path, adapter: Path) -> None:
    gate = {"verdict": "PROMOTE", "gates": [{"value": float("nan")}]}
    release_id = _build(tmp_path / "releases", adapter, gate=gate)
    assert verify_bundle(tmp_path / "releases" / release_id).release_id == release_id


def test_a_change_of_any_byte_of_any_file_is_noticed(releases: Path) -> None:
    folder = _bundle(releases)
    for path in sorted(p for p in [*folder.rglob("*"), releases / CURRENT] if p.is_file()):
        whole = path.read_bytes()
        for mutated in (
            whole[:-2],
            whole + b" ",
            bytes([whole[0] ^ 1]) + whole[1:],
            whole[: len(whole) // 2] + b"#" + whole[len(whole) // 2 + 1 :],
            b"",
        ):
            path.write_bytes(mutated)
            is_harmless = path.name == CURRENT and mutated == whole + b" "
            if not is_harmless:
                with pytest.raises(ReleaseError):
                    load_current(releases, KEY.public_key())
        path.write_bytes(whole)
    load_current(releases, KEY.public_key())


def test_rewriting_the_checksums_too_does_not_help(releases: Path) -> None:
    """What the release id does not cover (created_at), the signature does."""
    folder = _bundle(releases)
    manifest = folder / MANIFEST
    before = hashlib.sha256(manifest.read_bytes()).hexdigest()
    manifest.write_text(manifest.read_text().replace("2026-11-21", "2026-11-22"))
    after = hashlib.sha256(manifest.read_bytes()).hexdigest()
    sums = folder / CHECKSUMS
    sums.write_text(sums.read_text().replace(before, after))
    verify_bundle(folder)
    with pytest.raises(ReleaseError, match=CHECKSUMS):
        load_current(releases, KEY.public_key())


@pytest.mark.parametrize(
    "name",
    [
        "extra.json",
        "adapters/extra.json",
        "adapters/compact@3f9c0a1b2c4d/deeper/extra.json",
        "adapters/compact@3f9c0a1b2c4d/weights.bin",
        "adapters/compact@3f9c0a1b2c4d/weights.pt",
        "adapters/compact@3f9c0a1b2c4d/weights.pkl",
        "adapters/compact@3f9c0a1b2c4d/weights.ckpt",
        "adapters/compact@3f9c0a1b2c4d/model.py",
        ".hidden",
    ],
)
def test_an_extra_file_is_refused(releases: Path, name: str) -> None:
    path = _bundle(releases) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    with pytest.raises(ReleaseError, match=path.name):
        load_current(releases, KEY.public_key())


@pytest.mark.parametrize("name", [MANIFEST, CHECKSUMS, "adapters/compact@3f9c0a1b2c4d/recipe.yaml"])
def test_a_missing_file_is_named(releases: Path, name: str) -> None:
    (_bundle(releases) / name).unlink()
    with pytest.raises(ReleaseError, match=Path(name).name):
        load_current(releases, KEY.public_key())


def test_links_are_refused_wherever_they_are(releases: Path, tmp_path: Path) -> None:
    folder = _bundle(releases)
    recipe = folder / "adapters/compact@3f9c0a1b2c4d/recipe.yaml"
    shutil.copy(recipe, tmp_path / "recipe.yaml")
    recipe.unlink()
    recipe.symlink_to(tmp_path / "recipe.yaml")
    with pytest.raises(ReleaseError, match="symbolic links"):
        load_current(releases, KEY.public_key())
    recipe.unlink()
    shutil.copy(tmp_path / "recipe.yaml", recipe)
    moved = folder.rename(tmp_path / folder.name)
    folder.symlink_to(moved)
    with pytest.raises(ReleaseError, match="a link"):
        load_current(releases, KEY.public_key())


@pytest.mark.parametrize("path", ["../../escape.json", "/etc/passwd", "a b.json", "x\\y.json"])
def test_checksums_cannot_point_outside(releases: Path, path: str) -> None:
    sums = _bundle(releases) / CHECKSUMS
    sums.write_text(sums.read_text() + f"{'0' * 64}  {path}\n")
    with pytest.raises(ReleaseError, match="relative path"):
        verify_bundle(sums.parent)


def test_another_key_is_refused(releases: Path) -> None:
    stranger = Ed25519PrivateKey.generate()
    with pytest.raises(ReleaseError, match="does not verify"):
        load_current(releases, stranger.public_key())
    current = _bundle(releases).name
    with pytest.raises(ReleaseError, match="does not verify"):
        publish(releases, current, expected_parent=current, signing_key=stranger)


def test_nothing_published_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="understudy run"):
        load_current(tmp_path, KEY.public_key())


def test_publishing_counts_up_and_rolls_back(releases: Path, adapter: Path) -> None:
    first = _bundle(releases).name
    second = _build(releases, adapter, retrieval={"k": 5})
    pointer = publish(releases, second, expected_parent=first, signing_key=KEY)
    assert (pointer.sequence, pointer.parent) == (2, first)
    same = publish(releases, second, expected_parent=second, signing_key=KEY)
    assert same == pointer
    back = publish(releases, first, expected_parent=second, signing_key=KEY)
    assert (back.sequence, back.parent) == (3, second)
    assert _bundle(releases).name == first


def test_of_concurrent_publishers_one_wins(releases: Path, adapter: Path) -> None:
    rivals = [_build(releases, adapter, retrieval={"k": k}) for k in range(10, 18)]
    rounds = count(3, 100)
    refused = 0
    with ThreadPoolExecutor(len(rivals)) as pool:
        for _ in range(rounds):
            current = _bundle(releases).name
            others = [rival for rival in rivals if rival != current]
            start = threading.Barrier(len(others))
            outcomes = list(pool.map(partial(_race, releases, current, start), others))
            winners = [o for o in outcomes if isinstance(o, str)]
            assert winners == [_bundle(releases).name]
            lost = [str(o) for o in outcomes if isinstance(o, ReleaseError)]
            assert all("another publisher" in text for text in lost)
            refused += len(lost)
    report(f"{rounds} races of {len(rivals)} publishers, {rounds} winners, {refused} told so")
    assert load_current(releases, KEY.public_key()).sequence == rounds + 1


def _race(
    releases: Path, current: str, start: threading.Barrier, release_id: str
) -> str | ReleaseError:
    start.wait()
    try:
        publish(releases, release_id, expected_parent=current, signing_key=KEY)
    except ReleaseError as error:
        return error
    return release_id


@pytest.mark.parametrize("release_id", ["../escape", "ABCDEFABCDEF", "", "0" * 12])
def test_only_a_release_that_is_there_is_published(releases: Path, release_id: str) -> None:
    current = _bundle(releases).name
    with pytest.raises(ReleaseError):
        publish(releases, release_id, expected_parent=current, signing_key=KEY)
    assert _bundle(releases).name == current


def test_a_broken_bundle_is_not_published(releases: Path, adapter: Path) -> None:
    current = _bundle(releases).name
    broken = _build(releases, adapter, retrieval={"k": 6})
    (releases / broken / MANIFEST).write_text("{}")
    with pytest.raises(ReleaseError):
        publish(releases, broken, expected_parent=current, signing_key=KEY)
    with pytest.raises(ReleaseError, match="remove it"):
        _build(releases, adapter, retrieval={"k": 6})


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pkl", "deeper/adapter.json"])
def test_building_refuses_what_loading_would_refuse(
    tmp_path: Path, adapter: Path, name: str
) -> None:
    (adapter / name).parent.mkdir(exist_ok=True)
    (adapter / name).write_bytes(b"x")
    with pytest.raises(ReleaseError):
        _build(tmp_path / "releases", adapter)
    assert not [p for p in (tmp_path / "releases").glob("*")]


def test_building_refuses_another_adapter_than_the_manifests(tmp_path: Path, adapter: Path) -> None:
    manifest = _manifest(adapter)
    (adapter / "recipe.yaml").write_text("rank: 8\n")
    with pytest.raises(ReleaseError, match="folder sha256"):
        build_bundle(tmp_path / "releases", manifest, {"compact": adapter})
    with pytest.raises(ReleaseError, match="compact"):
        build_bundle(tmp_path / "releases", manifest, {})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gate", {"verdict": "HOLD"}),
        ("students", {}),
        ("surprise", 1),
        ("index", {"uri": "../index/abc", "fingerprint": "abc"}),
        ("index", {"uri": "index/abc", "fingerprint": "def"}),
        ("teacher", {"provider": "openai", "model": "m"}),
        ("teacher", {"provider": "openai", "model": "m", "base_url": "https://u:pw@host/v1"}),
        ("teacher", {"provider": "openai", "model": "m", "base_url": "https://h/v1?key=s"}),
        ("teacher", {"provider": "extractive", "model": "m", "api_key": "sk-1"}),
        ("teacher", {"provider": "extractive", "model": "m", "api_key_env": "sk-not-a-name"}),
    ],
)
def test_a_manifest_that_must_not_be_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        make_manifest(**{field: value})


def test_a_release_that_is_not_promoted_can_be_published_for_the_teacher() -> None:
    manifest = make_manifest(phase="hitchhiker", gate={"verdict": "INCONCLUSIVE"})
    assert manifest.phase == "hitchhiker"
    assert set(manifest.prices) == {"teacher", "compact"}


def test_a_release_carries_the_calibration_of_its_own_adapter_alone(
    tmp_path: Path, adapter: Path
) -> None:
    limit = RiskThreshold(risk_limit_ratio=0.05, threshold=0.5, accepted_count=59)
    calibration = make_calibration(
        adapter_sha256=folder_sha256(adapter), thresholds=(limit,), knots=((0.0, 0.1), (1.0, 0.9))
    )
    students = _manifest(adapter).model_dump()["students"]
    students["compact"]["calibration"] = asdict(calibration)
    release_id = _build(tmp_path / "releases", adapter, students=students)
    assert release_id != _build(tmp_path / "releases", adapter)
    read = verify_bundle(tmp_path / "releases" / release_id).students["compact"].calibration
    assert read == calibration
    students["compact"]["calibration"]["adapter_sha256"] = "0" * 64
    with pytest.raises(ValidationError, match="calibration was fitted for adapter 000"):
        _build(tmp_path / "releases", adapter, students=students)


def test_a_release_of_an_older_server_keeps_its_id(releases: Path) -> None:
    """A manifest that lacks keys which were added since is the one that was signed."""
    folder = _bundle(releases)
    stored = json.loads((folder / MANIFEST).read_text())
    for student in stored["students"].values():
        assert student.pop("calibration") is None
    old = dict(stored)
    old["release_id"] = hash_stored(json.dumps(old))
    assert old["release_id"] != stored["release_id"]
    renamed = folder.with_name(old["release_id"])
    shutil.copytree(folder, renamed)
    (renamed / MANIFEST).write_text(json.dumps(old))
    sums = "".join(
        f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(renamed).as_posix()}\n"
        for p in sorted(renamed.rglob("*"))
        if p.is_file() and p.name != CHECKSUMS
    )
    (renamed / CHECKSUMS).write_text(sums)
    assert verify_bundle(renamed).release_id == old["release_id"]


def test_a_student_that_was_trained_on_its_exam_is_published_by_nobody(
    releases: Path, adapter: Path
) -> None:
    current = json.loads((releases / CURRENT).read_text())["release_id"]
    leaked = _build(releases, adapter, lane="contaminated")
    with pytest.raises(ReleaseError, match="trained on its own exam"):
        publish(releases, leaked, expected_parent=current, signing_key=KEY)
    assert json.loads((releases / CURRENT).read_text())["release_id"] == current
