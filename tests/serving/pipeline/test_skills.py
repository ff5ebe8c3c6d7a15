"""Skills: a question for one goes to its own student, by name or by the page of its best chunk."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from serving.errors import InvalidInputError
from serving.pipeline.circumstances import Circumstances
from serving.pipeline.skills import Skill, choose_skill
from serving.pipeline.tiers import Tier
from tests.serving.fakes import (
    HITS,
    INVALID,
    Answer,
    CannedChatModel,
    CannedRetriever,
    make_engine,
    make_manifest,
)
from tests.serving.running import run_app

DEPLOYING = CannedRetriever(hits=HITS[::-1])  # the best chunk is on guides/deploy
OWN = "deploying@111111111111"
GOOD_DEPLOY = "Deploy with the build command. [1]"


def make_skill(answer: Answer = GOOD_DEPLOY, **changes) -> Skill:
    tier = Tier(model=CannedChatModel(OWN, answer))
    return Skill(**{"name": "deploying", "tier": tier, "pages": ("guides/deploy",)} | changes)


def make_release(**skill):
    students = make_manifest().model_dump()["students"]
    students["deploying"] = students["compact"] | {"adapter": OWN, "adapter_sha256": "1" * 64}
    entry = {"student": "deploying", "pages": ["guides/deploy"]} | skill
    return make_manifest(students=students, skills={"deploying": entry})


def make_pipeline(skill: Skill | None = None, **changes):
    options = {"retriever": DEPLOYING, "skills": (skill or make_skill(),)} | changes
    return make_engine(**options).pipeline


async def test_the_page_of_the_best_chunk_chooses_the_skill():
    answered = await make_pipeline().answer("How do I deploy?")
    assert (answered.skill, answered.model, answered.route.reason) == ("deploying", OWN, "default")
    elsewhere = await make_pipeline(retriever=CannedRetriever()).answer("Where?")
    assert (elsewhere.skill, elsewhere.model) == (None, "compact@3f9c0a1b2c4d")


async def test_a_caller_may_name_the_skill():
    named = make_pipeline(make_skill(pages=()))
    answered = await named.answer("How do I deploy?", skill="deploying")
    assert (answered.skill, answered.model) == ("deploying", OWN)
    with pytest.raises(InvalidInputError, match="one of deploying"):
        await named.answer("How do I deploy?", skill="cooking")


def test_the_longest_prefix_wins_by_whole_parts():
    skills = [
        make_skill(name=name, pages=(page,))
        for name, page in (
            ("guides", "guides"),
            ("deploy", "/guides/deploy/"),
            ("dep", "guides/dep"),
        )
    ]
    chosen = choose_skill(None, HITS[::-1], skills)
    assert chosen is not None
    assert chosen.name == "deploy"
    assert choose_skill(None, (), skills) is None


async def test_a_skill_of_high_stakes_is_the_teachers():
    pipeline = make_pipeline(make_skill(is_high_stakes=True))
    answered = await pipeline.answer("How do I deploy?")
    assert (answered.skill, answered.served_by) == ("deploying", "teacher")
    assert answered.route.reason == "high_stakes"


async def test_an_invalid_answer_of_a_skill_falls_back_to_the_teacher_alone():
    answered = await make_pipeline(make_skill(INVALID)).answer("How do I deploy?")
    assert [a.role for a in answered.attempts] == ["student", "teacher"]
    assert answered.attempts[0].model == OWN
    assert answered.skill == "deploying"


async def test_the_shadow_of_a_skill_is_the_skills_student():
    pipeline = make_pipeline(phase="imposter")
    answered = await pipeline.answer("How do I deploy?", around=Circumstances())
    again = await pipeline.ask_again_as(answered, "student")
    assert (answered.served_by, again.model, again.skill) == ("teacher", OWN, "deploying")


async def test_the_skill_is_in_the_body_the_trace_the_release_and_the_metrics(tmp_path: Path):
    manifest = make_release()
    engine = make_engine(manifest=manifest, retriever=DEPLOYING, skills=(make_skill(),))
    async with run_app(engine, tmp_path) as running:
        body = (await running.ask(skill="deploying")).json()
        unknown = await running.ask(skill="cooking")
        release = (await running.client.get("/v1/release")).json()
        metrics = await running.metrics()
        (trace,) = running.traces()
    assert (body["skill"], body["model"], trace["skill"]) == ("deploying", OWN, "deploying")
    assert trace["attempts"][0]["adapter_sha"] == "1" * 64
    assert unknown.status_code == 422
    assert unknown.json()["expected"] == "a skill of this release: deploying"
    assert release["skills"]["deploying"] == {
        "student": "deploying", "pages": ["guides/deploy"], "high_stakes": False,
    }  # fmt: skip
    assert 'understudy_skill_answers_total{served_by="student",skill="deploying"} 1.0' in metrics
    assert f'understudy_breaker_open{{model="{OWN}"}}' not in metrics  # canned: it has no breaker


@pytest.mark.parametrize(
    ("skill", "match"),
    [
        ({"student": "nobody"}, "no student|tiers must name"),
        ({"pages": ["guides", "/guides/"]}, "named once"),
        ({"pages": ["/"]}, "none is empty"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(skill, match):
    with pytest.raises(ValidationError, match=match):
        make_release(**skill)


def test_a_skill_stands_on_the_base_of_the_students():
    students = make_release().model_dump()["students"]
    students["deploying"]["base_hash"] = "another"
    with pytest.raises(ValidationError, match="another base"):
        make_manifest(students=students, skills={"deploying": {"student": "deploying"}})


def test_what_a_skill_is_asked_for_is_part_of_the_snapshot():
    one, two = (make_engine(manifest=make_release(**c)) for c in ({}, {"pages": ["guides"]}))
    assert one.snapshot_hash != two.snapshot_hash


@pytest.mark.parametrize("field", ["local_engine", "engine"])
def test_the_engine_of_a_student_is_part_of_the_snapshot(field):
    students = make_manifest().model_dump()["students"]
    other = {"local_engine": {"local_engine": "openvino_int8"}, "engine": {
        "engine": "openai", "kind": "base", "base_url": "http://127.0.0.1:1/v1",
    }}[field]  # fmt: skip
    changed = make_manifest(students={"compact": students["compact"] | other})
    engines = (make_engine(manifest=m) for m in (make_manifest(), changed))
    assert len({engine.snapshot_hash for engine in engines}) == 2
