"""Publishing: what never becomes current, and what never gives way."""

from pathlib import Path

import pytest

from assets.releases.publishing import publish_release
from serving.hashing import folder_sha256
from serving.home import Home
from tests.serving.fakes import make_manifest


def publish(home: Home, name: str, **changes):
    adapter = home.root / "staged" / name
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(name.encode() * 50)
    students = make_manifest().model_dump()["students"]
    students["compact"]["adapter_sha256"] = folder_sha256(adapter)
    return publish_release(home, make_manifest(students=students, **changes), {"compact": adapter})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_a_contaminated_release_is_built_and_never_current(home):
    alone = publish(home, "leaked", lane="contaminated")
    assert (home.releases / alone.release_id).is_dir()
    assert not alone.is_current
    assert not (home.releases / "CURRENT").exists()
    clean = publish(home, "clean")
    assert clean.is_current
    beside = publish(home, "leaked again", lane="contaminated")
    assert not beside.is_current
    assert beside.current == clean.current
