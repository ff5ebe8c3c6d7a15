"""Skills: configured by name, released only where the gate promoted their students, then served."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import polars as pl
import pytest

from assets.releases.gates import GatePolicy
from assets.releases.skills import (
    SkillTerms,
    choose_skills,
    describe_terms,
    fingerprint_skills,
    refuse_unfit_skills,
)
from assets.traces.tainting import find_published
from orchestration.releases_cli import _name_students, find_releases
from orchestration.status import read_release
from orchestration.status_cli import _describe_release
from serving.app import create_app
from serving.engine import load_engine
from serving.errors import InvalidInputError, ReleaseError
from serving.home import Home
from serving.releases.bundle import ensure_signing_key, load_current, load_public_key, publish
from serving.releases.manifest import ReleaseManifest
from serving.settings import ServerSettings
from serving.tracing.segments import SegmentWriter
from tests.assets.releases.skilled_site import FAILING, SkilledSite
from tests.tiny_student import make_base

GLAZING = SkillTerms(recipe="glaze")
RUN_AGAIN = "`understudy run --recipe glaze`, then `understudy run --recipe compact`"
LEAVE_OUT = "take the skill out of releases.skills"
LANES = {"compact": "clean", "glaze": "clean", "leaked": "contaminated"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> SkilledSite:
    made = SkilledSite(tmp_path_factory.mktemp("skilled"))
    made.judge("compact", seed=1)
    return made


needs_glaze = pytest.mark.usefixtures("glaze")


@pytest.fixture
def glaze(site: SkilledSite) -> str:
    return site.judge("glaze", seed=2)


def read_manifest(row: dict[str, Any]) -> ReleaseManifest:
    text = (Path(row["folder"]) / "manifest.json").read_text(encoding="utf-8")
    return ReleaseManifest.model_validate_json(text)


def test_a_skill_names_a_clean_recipe_that_makes_no_general_student():
    refuse_unfit_skills({"s": GLAZING}, LANES, default_recipe="compact")
    refuse_unfit_skills({}, {}, default_recipe="compact")
    for recipe, told in (("glze", "no recipe"), ("compact", "the default"), ("leaked", "contamin")):
        with pytest.raises(InvalidInputError, match=rf"the skill s.*recipes glaze.*{told}"):
            refuse_unfit_skills({"s": SkillTerms(recipe=recipe)}, LANES, default_recipe="compact")


def test_the_default_recipes_release_alone_holds_skills():
    """So no experiment waits for the verdict on a skill's student."""
    skills = {"glazing": GLAZING}
    assert choose_skills(skills, recipe="compact", default_recipe="compact") == skills
    for other in ("glaze", "leaked", "an_experiment"):
        assert choose_skills(skills, recipe=other, default_recipe="compact") == {}


def test_a_report_names_the_skills_only_where_there_are_any():
    assert describe_terms({}) == {}
    told = describe_terms({"glazing": replace(GLAZING, pages=("guides/glazing",)), "x": GLAZING})
    assert told["skills"] == (
        "glazing (recipe glaze; guides/glazing); x (recipe glaze; where a caller names it)"
    )


def test_without_skills_a_bundle_says_nothing_of_them_nor_of_whom_the_gate_judged(site):
    row = site.release("compact")
    manifest = read_manifest(row)
    assert (row["skills"], manifest.skills, manifest.tiers) == ([], {}, ())
    assert list(manifest.students) == ["tiny"]
    columns = set(manifest.gate.gates[0])
    assert "gate" in columns
    assert not columns & {"adapter_sha256", "pipeline_fingerprint"}
    assert site.release("compact")["release_id"] == row["release_id"]


def test_the_bundle_names_every_skill_its_adapter_and_the_verdict_on_it(site, glaze):
    plain = site.release("compact")
    row = site.release("compact", glazing=GLAZING, firing=replace(GLAZING, pages=("firing",)))
    manifest = read_manifest(row)
    sha256 = site.read("students/student_adapter", "glaze")["adapter_sha256"].item()
    assert row["release_id"] != plain["release_id"]
    assert row["skills"] == [
        {"skill": name, "recipe": "glaze", "adapter": glaze, "adapter_sha256": sha256}
        for name in ("glazing", "firing")
    ]
    assert set(manifest.students) == {"tiny", glaze}
    assert manifest.tier_names == ("tiny",)
    assert {name: s.student for name, s in manifest.skills.items()} == {
        "glazing": glaze, "firing": glaze,
    }  # fmt: skip
    assert manifest.skills["firing"].pages == ("firing",)
    *_, last = manifest.gate.gates
    assert (last["gate"], last["verdict"], last["position"]) == ("skill firing", "PROMOTE", 13)
    evidence = json.loads(str(last["evidence"]))
    assert (evidence["adapter_sha256"], len(evidence["gates"])) == (sha256, 11)


def test_status_list_and_deletion_marks_know_the_skills_student(site, glaze):
    row = site.release("compact", glazing=GLAZING)
    general = site.read("students/student_adapter", "compact")["adapter"].item()
    assert row["is_current"]
    assert find_published(site.home) == sorted([general, glaze])
    release = read_release(site.home)
    assert (release.students, release.skills) == (("tiny",), {"glazing": glaze})
    assert f"student tiny, skills glazing ({glaze})" in _describe_release(release)
    listed = next(r for r in find_releases(site.home) if r.release_id == row["release_id"])
    assert (listed.students, listed.skills) == ((general, glaze), {"glazing": glaze})
    assert _name_students(listed) == [general, f"glazing={glaze}"]


@needs_glaze
def test_a_rollback_brings_the_skill_back_or_takes_it_away_with_its_release(site):
    key = ensure_signing_key(site.home.keys)
    ids = [site.release("compact", **skills)["release_id"] for skills in ({"a": GLAZING}, {})]
    for target, parent in (ids, reversed(ids)):
        publish(site.home.releases, target, expected_parent=parent, signing_key=key)
        release = load_current(site.home.releases, load_public_key(site.home.keys))
        assert list(release.manifest.skills) == (["a"] if target == ids[0] else [])


@needs_glaze
def test_the_recipe_of_a_skill_is_never_published_by_itself(site):
    current = site.release("compact", glazing=GLAZING)
    row = site.release("glaze", glazing=GLAZING)
    manifest = read_manifest(row)
    assert (row["verdict"], row["is_current"], manifest.skills) == ("PROMOTE", False, {})
    assert read_release(site.home).release_id == current["release_id"]


@pytest.mark.parametrize(
    ("judged", "told", "next_step"),
    [
        ({"report": FAILING}, r"PROMOTE of tiny@.*HOLD: .*refusal recall", LEAVE_OUT),
        ({"lane": "contaminated"}, "clean lane.*lane contaminated", "name a recipe of the clean"),
        ({"adapter_sha256": "0" * 64}, f"verdict on tiny@.*with hash {'0' * 64}", RUN_AGAIN),
        ({"pipeline_fingerprint": "other"}, "pipeline that is released.*index", RUN_AGAIN),
        ({"policy": GatePolicy(margin_ratio=0.3)}, "by another margin_ratio", RUN_AGAIN),
    ],
)
def test_a_student_that_did_not_earn_it_stops_the_release(site, judged, told, next_step):
    before = site.release("compact")["release_id"]
    site.judge("glaze", seed=2, **judged)
    pattern = rf"(?s)compact with the skill glazing.*{told}.*{next_step}"
    with pytest.raises(ReleaseError, match=pattern):
        site.release("compact", glazing=GLAZING)
    assert read_release(site.home).release_id == before


def test_a_skill_that_was_never_judged_stops_the_release_and_says_what_to_run(site):
    with pytest.raises(ReleaseError) as error:
        site.release("compact", firing=SkillTerms(recipe="fire"))
    assert "with the skill firing" in str(error.value)
    assert "none of the recipe fire" in str(error.value)
    assert "`understudy run --recipe fire`, then `understudy run --recipe compact`" in str(
        error.value
    )


def test_a_skill_needs_an_adapter_of_its_own_on_the_same_base(site, tmp_path):
    site.judge("glaze", seed=1)
    with pytest.raises(ReleaseError, match=r"adapter of its own.*for no skill"):
        site.release("compact", glazing=GLAZING)
    other = make_base(tmp_path / "other", seed=9)
    site.judge("glaze", seed=2, base=other)
    with pytest.raises(ReleaseError, match=r"on the base of tiny@.*`students` entry"):
        site.release("compact", glazing=GLAZING)


@needs_glaze
def test_a_table_that_is_gone_or_of_another_version_is_no_verdict(site):
    path = site.home.table("releases/gate_verdict", "glaze")
    frame = pl.read_parquet(path)
    for write in (
        lambda: frame.drop("pipeline_fingerprint").write_parquet(path),
        lambda: path.write_bytes(b"PAR1 damaged"),
        path.unlink,
    ):
        write()
        with pytest.raises(ReleaseError, match="none of the recipe glaze"):
            site.release("compact", glazing=GLAZING)


def test_a_new_verdict_on_a_skill_makes_the_bundle_stale_and_nothing_else_does(site, glaze):
    skills = {"glazing": GLAZING}
    first = fingerprint_skills(site.home, skills)
    assert site.judge("glaze", seed=2) == glaze
    site.judge("unrelated", seed=4)
    assert fingerprint_skills(site.home, skills) == first
    assert fingerprint_skills(site.home, {"more": SkillTerms(recipe="fire")}) != first
    site.judge("glaze", seed=2, report=FAILING)
    assert fingerprint_skills(site.home, skills) != first
    assert fingerprint_skills(Home(site.home.root / "empty"), {}) == fingerprint_skills(
        site.home, {}
    )


async def test_who_names_the_skill_is_answered_by_its_student(site, glaze, tmp_path):
    """Released by the factory, loaded by the server's own loader, asked over HTTP."""
    row = await asyncio.to_thread(site.release, "compact", glazing=GLAZING)
    general = site.read("students/student_adapter", "compact")["adapter"].item()
    settings = ServerSettings(home=site.home.root)
    app = create_app(
        engine=await load_engine(settings),
        settings=settings,
        writer=SegmentWriter(tmp_path / "segments"),
    )
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.005)
        question = {"question": "Where do I put the key?"}
        unnamed = (await client.post("/ask", json=question)).json()
        named = (await client.post("/ask", json=question | {"skill": "glazing"})).json()
        unknown = await client.post("/ask", json=question | {"skill": "cooking"})
        told = (await client.get("/v1/release")).json()
    assert (unnamed["served_by"], unnamed["model"], unnamed["skill"]) == ("student", general, None)
    assert (named["served_by"], named["model"], named["skill"]) == ("student", glaze, "glazing")
    assert named["answer"] != unnamed["answer"]
    assert named["release"] == row["release_id"]
    assert unknown.status_code == 422
    assert told["skills"]["glazing"]["student"] == glaze
