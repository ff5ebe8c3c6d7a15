"""A signed release of two students: verified, loaded in the order its manifest names, asked."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving.errors import CircuitOpenError, DeadlineExceededError, UpstreamError
from serving.hashing import folder_sha256
from serving.models.prompted_student import PROMPT_FILE, StudentPrompt
from serving.models.protocols import ChatRequest, Embedder
from serving.models.remote import hash_remote_model
from serving.releases.bundle import (
    VerifiedRelease,
    build_bundle,
    ensure_signing_key,
    load_current,
    load_public_key,
    publish,
)
from serving.releases.parts import list_skills, load_students
from serving.settings import ServerSettings
from tests.serving.fakes import GOOD, make_engine, make_manifest
from tests.serving.upstreams import FaultyUpstream, serve_upstream

REQUEST = ChatRequest(messages=({"role": "user", "content": "Where?"},))
NO_EMBEDDER: Any = None


def release_two(
    home: Path,
    urls: dict[str, str],
    *,
    calibrated: Mapping[str, dict[str, Any]] | None = None,
    **changes: Any,
) -> tuple[ServerSettings, VerifiedRelease]:
    """Publish a release whose students are prompts around models behind `urls`."""
    settings = ServerSettings(home=home)
    base = make_manifest().model_dump()["students"]["compact"]
    students, folders = {}, {}
    for name, url in urls.items():
        folder = folders[name] = home / "staged" / name
        folder.mkdir(parents=True)
        prompt = StudentPrompt(layout="plain", instructions=name)
        (folder / PROMPT_FILE).write_text(prompt.model_dump_json(), encoding="utf-8")
        students[name] = base | {
            "kind": "base",
            "adapter": f"{name}@{'1' * 12}",
            "adapter_sha256": folder_sha256(folder),
            "base_model": "m",
            "base_hash": hash_remote_model("openai", "m", url),
            "engine": "openai",
            "base_url": url,
            "activation": None,
        }
        if calibrated and name in calibrated:
            own = {"adapter_sha256": students[name]["adapter_sha256"]}
            students[name]["calibration"] = calibrated[name] | own
    changes = {"tiers": ("compact", "midweight")} | changes
    manifest = make_manifest(students=students, **changes)
    release = build_bundle(settings.releases_folder, manifest, folders)
    key = ensure_signing_key(settings.keys_folder)
    publish(settings.releases_folder, release, expected_parent=None, signing_key=key)
    public = load_public_key(settings.keys_folder)
    return settings, load_current(settings.releases_folder, public)


async def test_each_student_has_its_own_name_model_and_breaker(tmp_path: Path) -> None:
    small, large = FaultyUpstream(), FaultyUpstream()
    embedder: Embedder = NO_EMBEDDER  # neither prompt chooses examples
    async with serve_upstream(small) as one, serve_upstream(large) as two:
        settings, release = release_two(tmp_path, {"midweight": two, "compact": one})
        loaded = load_students(release, settings, embedder)
        models = [student.tier.model for student in loaded]
        assert [m.name for m in models] == ["compact@111111111111", "midweight@111111111111"]
        assert [(await m.complete(REQUEST)).text for m in models] == [GOOD, GOOD]
        assert (small.calls["ok"], large.calls["ok"]) == (1, 1)
        small.fault = "reset"
        for _ in range(5):
            with pytest.raises(UpstreamError):
                await models[0].complete(REQUEST)
        with pytest.raises(CircuitOpenError):
            await models[0].complete(REQUEST)
        assert (await models[1].complete(REQUEST)).text == GOOD
        for student in loaded:
            await student.close()


async def test_a_skill_has_a_student_of_its_own_on_the_same_base(tmp_path: Path) -> None:
    """It is loaded after those of the tiers, and has all of the students' time."""
    skills = {"glazing": {"student": "midweight", "pages": ["guides/glazing"]}}
    upstream = FaultyUpstream()
    async with serve_upstream(upstream) as url:
        urls = {"midweight": url, "compact": url}
        settings, release = release_two(tmp_path, urls, tiers=("compact",), skills=skills)
        loaded = load_students(release, settings, NO_EMBEDDER)
        (skill,) = list_skills(release.manifest, loaded)
        assert [student.name for student in loaded] == ["compact", "midweight"]
        assert (skill.name, skill.pages) == ("glazing", ("guides/glazing",))
        assert skill.tier.model is loaded[1].tier.model
        assert skill.tier.model._timeout_seconds == settings.student_seconds
        assert (await skill.tier.model.complete(REQUEST)).text == GOOD
        for student in loaded:
            await student.close()


async def test_students_that_hang_leave_the_teacher_its_share_of_the_deadline(
    tmp_path: Path,
) -> None:
    """Both are given up after half of what the students have together, not at the deadline."""
    hanging = FaultyUpstream("hang")
    async with serve_upstream(hanging) as url:
        settings, release = release_two(tmp_path, {"compact": url, "midweight": url})
        quick = replace(settings, request_deadline_seconds=2.0, student_share=0.2)
        loaded = load_students(release, quick, NO_EMBEDDER)
        for student in loaded:
            with pytest.raises(DeadlineExceededError, match=r"within 0\.2 s"):
                await student.tier.model.complete(REQUEST)
            await student.close()


@pytest.mark.parametrize(("intercept", "calls"), [(3.0, (1, 0)), (-3.0, (1, 1))])
async def test_the_cheaper_tier_answers_first_and_keeps_what_it_is_sure_of(
    tmp_path: Path, intercept: float, calls: tuple[int, int]
) -> None:
    """Signed, loaded, asked: the second student is called only where the first is not sure."""
    small, large = FaultyUpstream(), FaultyUpstream()
    certified = {
        "adapter_sha256": "", "engine": "openai", "dtype": "unknown", "method": "constant",
        "case_count": 40, "intercept": intercept,
        "thresholds": [{"risk_limit_ratio": 0.05, "threshold": 0.5}],
    }  # fmt: skip
    async with serve_upstream(small) as one, serve_upstream(large) as two:
        urls = {"midweight": two, "compact": one}
        settings, release = release_two(tmp_path, urls, calibrated={"compact": certified})
        loaded = load_students(release, settings, NO_EMBEDDER)
        tiers = [student.tier for student in loaded]
        engine = make_engine(
            manifest=release.manifest, student=tiers[1].model, smaller=tuple(tiers[:1])
        )
        answered = await engine.pipeline.answer("Where?")
        assert (small.calls["ok"], large.calls["ok"]) == calls
        assert answered.model == tiers[calls[1]].model.name
        assert (answered.served_by, answered.route.reason) == ("student", "default")
        for student in loaded:
            await student.close()
