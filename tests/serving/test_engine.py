from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving import engine as engine_module
from serving.engine import load_engine
from serving.errors import IndexMismatchError, ReleaseError
from serving.hashing import folder_sha256
from serving.models import embedder as embedder_module
from serving.releases.bundle import (
    VerifiedRelease,
    build_bundle,
    ensure_signing_key,
    publish,
)
from serving.releases.parts import choose_calibration
from serving.settings import ServerSettings
from tests.serving.fakes import make_engine, make_manifest
from tests.serving.pipeline.test_confidence import make_calibration


def _publish(home: Path, **changes: Any) -> ServerSettings:
    adapter = home / "staged"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    students = make_manifest().model_dump()["students"]
    students["compact"]["adapter_sha256"] = folder_sha256(adapter)
    manifest = make_manifest(**({"students": students} | changes))
    release_id = build_bundle(home / "releases", manifest, {"compact": adapter})
    key = ensure_signing_key(home / "keys")
    publish(home / "releases", release_id, expected_parent=None, signing_key=key)
    return ServerSettings(home=home)


async def test_without_a_key_or_a_release_nothing_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="release key"):
        await load_engine(ServerSettings(home=tmp_path))
    ensure_signing_key(tmp_path / "keys")
    with pytest.raises(ReleaseError, match="CURRENT"):
        await load_engine(ServerSettings(home=tmp_path))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"prompt": {"citation_ids": "local", "version": "older", "max_answer_tokens": 120}},
            "prompt version older",
        ),
        ({"validator": {"version": "0"}}, "validator version 0"),
    ],
)
async def test_a_release_for_other_code_is_refused(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ReleaseError, match=named):
        await load_engine(_publish(tmp_path, **changes))


async def test_weights_replaced_after_they_were_verified_are_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading the embedder takes seconds, in which who may write to the home could."""
    settings = _publish(tmp_path)
    found: list[bytes] = []

    def load_embedder_of(*_: Any) -> Any:
        for weights in settings.releases_folder.rglob("*.safetensors"):
            weights.write_bytes(b"others")
        return SimpleNamespace(dimension=2)

    def load_students(release: VerifiedRelease, *_: Any) -> Any:
        folder = release.adapter_folder("compact")
        found.append((folder / "adapter_model.safetensors").read_bytes())
        raise IndexMismatchError("loading", expected="enough", found="that", next_step="none")

    monkeypatch.setattr(engine_module, "load_embedder_of", load_embedder_of)
    monkeypatch.setattr(engine_module, "load_students", load_students)
    with pytest.raises(IndexMismatchError):
        await load_engine(settings)
    assert found == [b"weights"]


async def test_another_embedder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stranger:
        fingerprint = "ffff"

    monkeypatch.setattr(embedder_module, "load_embedder", lambda *_: Stranger())
    with pytest.raises(IndexMismatchError, match="e0e0"):
        await load_engine(_publish(tmp_path))


def test_the_snapshot_hash_follows_what_decides_an_answer() -> None:
    same = make_engine(manifest=make_manifest(distillation_loss_statement="other words"))
    other = make_engine(manifest=make_manifest(router={"min_retrieval_score": 0.7}))
    assert same.snapshot_hash == make_engine().snapshot_hash
    assert other.snapshot_hash != make_engine().snapshot_hash


async def test_a_pipeline_without_a_student_warms_the_teacher_up() -> None:
    engine = make_engine(phase="hitchhiker")
    await engine.warm_up()
    teacher, student = engine.pipeline.teacher, engine.pipeline.student
    assert [len(getattr(m, "requests", ())) for m in (teacher, student)] == [1, 0]


@pytest.mark.parametrize(("dtype", "is_used"), [("float32", True), ("bfloat16", False)])
def test_a_calibration_is_used_in_the_precision_it_was_fitted_in(
    dtype: str, is_used: bool, caplog: pytest.LogCaptureFixture
) -> None:
    students = make_manifest().model_dump()["students"]
    calibration = make_calibration(adapter_sha256="0" * 64)
    students["compact"]["calibration"] = asdict(calibration)
    manifest = make_manifest(students=students)
    found = choose_calibration(manifest.students["compact"], SimpleNamespace(dtype=dtype))
    assert found == (calibration if is_used else None)
    assert ("calibrated in float32" in caplog.text) != is_used
    plain_entry = make_manifest().students["compact"]
    assert choose_calibration(plain_entry, SimpleNamespace(dtype=dtype)) is None
    plain = make_engine().snapshot_hash
    assert make_engine(manifest=manifest).snapshot_hash != plain
