"""A LoRA behind an OpenAI-compatible server: asked for by the adapter's own name, and no other."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serving.errors import UpstreamRejectedError
from serving.hashing import folder_sha256
from serving.models.student_rules import StudentRules
from serving.releases.bundle import (
    build_bundle,
    copy_current,
    ensure_signing_key,
    load_public_key,
    publish,
)
from serving.releases.manifest import StudentEntry
from serving.releases.parts import load_students
from serving.settings import ServerSettings
from tests.serving.fakes import GOOD, make_engine, make_manifest
from tests.serving.pipeline.test_confidence import make_calibration
from tests.serving.upstreams import FaultyUpstream, serve_upstream

ADAPTER = "compact@3f9c0a1b2c4d"


def _enter(**changes: Any) -> dict[str, Any]:
    """Return the manifest's entry of a LoRA behind a server."""
    entry = make_manifest().model_dump()["students"]["compact"]
    served = {"engine": "vllm", "base_url": "http://127.0.0.1:1/v1", "api_key_env": None}
    return entry | {"kind": "lora", "activation": "all"} | served | changes


def _publish(home: Path, url: str) -> ServerSettings:
    """Publish a release of an adapter that a server at `url` holds."""
    settings = ServerSettings(home=home)
    folder = home / "staged"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    StudentRules(sources=1).write(folder)
    sha = folder_sha256(folder)
    calibration = make_calibration(adapter_sha256=sha)
    entry = _enter(base_url=url, adapter_sha256=sha, calibration=calibration)
    release = build_bundle(
        settings.releases_folder, make_manifest(students={"compact": entry}), {"compact": folder}
    )
    key = ensure_signing_key(settings.keys_folder)
    publish(settings.releases_folder, release, expected_parent=None, signing_key=key)
    return settings


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_the_server_is_asked_for_the_adapter_by_its_content(
    tmp_path: Path, *, is_streamed: bool
) -> None:
    upstream = FaultyUpstream()
    async with serve_upstream(upstream) as url:
        settings = _publish(tmp_path, url)
        public = load_public_key(settings.keys_folder)
        with copy_current(settings.releases_folder, public) as release:
            (student,) = load_students(release, settings, None)  # type: ignore[arg-type]
        pipeline = make_engine(student=student.tier.model).pipeline  # type: ignore[arg-type]
        request = pipeline.prompt.write_request("Where?", await pipeline.retriever.retrieve("x"))
        shown: list[str] = []
        model = student.tier.model
        completion = await (
            model.stream(request, shown.append)  # type: ignore[attr-defined]
            if is_streamed
            else model.complete(request)
        )
        await student.close()
    assert upstream.models == [ADAPTER]
    assert (completion.text, completion.model, model.name) == (GOOD, ADAPTER, ADAPTER)
    assert "".join(shown) == GOOD * is_streamed
    # Other numbers than those a confidence was fitted to: none is claimed.
    assert student.tier.calibration is None


async def test_a_server_that_does_not_hold_the_adapter_keeps_the_release_out(
    tmp_path: Path,
) -> None:
    upstream = FaultyUpstream("404")
    async with serve_upstream(upstream) as url:
        settings = _publish(tmp_path, url)
        public = load_public_key(settings.keys_folder)
        with copy_current(settings.releases_folder, public) as release:
            (student,) = load_students(release, settings, None)  # type: ignore[arg-type]
        engine = make_engine(student=student.tier.model)  # type: ignore[arg-type]
        with pytest.raises(UpstreamRejectedError):
            await engine.warm_up()
        await student.close()
    assert set(upstream.models) == {ADAPTER}


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "alora"},
        {"kind": "qlora"},
        {"activation": "question"},
        {"kind": "alora", "activation": "question"},
        {"engine": "anthropic"},
        {"activation": None},
        {"base_url": None},
    ],
)
def test_what_a_server_cannot_apply_or_name_is_refused(changes: dict[str, Any]) -> None:
    StudentEntry.model_validate(_enter())
    StudentEntry.model_validate(_enter(engine="openai"))
    with pytest.raises(ValidationError, match=r"engine local|needs an activation|needs base_url"):
        StudentEntry.model_validate(_enter(**changes))
