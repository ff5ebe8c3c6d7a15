"""Skills: a question for one goes to its own student, by name or by the page of its best chunk."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from serving.access.keys import create_key
from serving.app import open_admission
from serving.errors import InvalidInputError, UpstreamError
from serving.exchange import Exchange, Inquiry
from serving.metrics import ServerMetrics
from serving.pipeline.circumstances import Circumstances
from serving.pipeline.confidence import RiskThreshold
from serving.pipeline.skills import Skill, choose_skill
from serving.pipeline.tiers import Tier
from serving.problems import ProblemError
from serving.releases.live import LiveRelease
from serving.schemas import AskRequest
from serving.settings import ServerSettings
from serving.tracing.record import Escalation, new_trace_id
from serving.tracing.segments import SegmentWriter
from tests.serving.fakes import (
    HITS,
    INVALID,
    Answer,
    CannedChatModel,
    CannedRetriever,
    make_engine,
    make_manifest,
)
from tests.serving.pipeline.test_confidence import make_calibration
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


async def test_naming_a_skill_of_high_stakes_is_an_escalation(tmp_path: Path):
    """It needs the scope and the quota, and its trace never becomes training data; pages do not."""
    skill = make_skill(is_high_stakes=True)
    by_page = make_engine(
        manifest=make_release(high_stakes=True), retriever=DEPLOYING, skills=(skill,)
    )
    keys = tmp_path / "keys"
    plain = create_key(keys, tenant="docs", env="prod").text
    rich = create_key(
        keys,
        tenant="docs",
        env="prod",
        scopes=["ask", "ask:prefer_quality"],
        teacher_calls_per_minute=1,
    ).text
    async with run_app(by_page, tmp_path, env="prod") as running:
        refused, first, second = [
            await running.client.post(
                "/ask",
                json={"question": "How do I deploy?", "skill": "deploying"},
                headers={"authorization": f"Bearer {key}"},
            )
            for key in (plain, rich, rich)
        ]
        unnamed = await running.client.post(
            "/ask",
            json={"question": "How do I deploy?"},
            headers={"authorization": f"Bearer {plain}"},
        )
        traces = running.traces()
    assert [r.status_code for r in (refused, first, second, unnamed)] == [403, 200, 429, 200]
    assert refused.json()["found"] == "a skill of high stakes without it"
    served = [(r.json()["served_by"], r.json()["route_reason"]) for r in (first, unnamed)]
    assert served == [("teacher", "high_stakes")] * 2
    assert [(t["escalation_granted"], t["trainable_reason"]) for t in traces] == [
        (True, "escalated"),
        (False, "eligible"),
    ]


async def test_a_skill_that_went_with_its_release_is_refused_by_name(tmp_path: Path):
    """The question was admitted to a release that had it, and is answered by one that has not."""
    settings = ServerSettings(home=tmp_path)
    other = make_engine(manifest=make_release(), retriever=DEPLOYING, skills=(make_skill(),))
    live = LiveRelease(
        other,
        releases_folder=settings.releases_folder,
        keys_folder=settings.keys_folder,
        load=None,
    )
    traces = SegmentWriter(settings.segments_folder)
    admission = open_admission(settings)
    exchange = Exchange(
        settings, traces=traces, metrics=ServerMetrics(traces, live), admission=admission
    )
    inquiry = Inquiry(
        body=AskRequest(question="How do I deploy?", skill="glazing"),
        trace_id=new_trace_id(),
        principal=admission.identify(None),
        escalation=Escalation(),
    )
    with pytest.raises(ProblemError) as refused:
        await exchange.answer(other, inquiry)
    await traces.close()
    assert (refused.value.name, refused.value.expected) == (
        "invalid-request",
        "a skill of this release: deploying",
    )
    assert refused.value.headers["X-Trace-Persisted"] == "true"


async def test_a_release_is_warm_when_its_general_student_has_answered(caplog):
    """The others are warmed too, save those that routing never asks; one of them may be dead."""
    names = ("small", "shared", "grave", "general")
    small, shared, grave, general = (CannedChatModel(name) for name in names)
    skills = (
        *(Skill(name=name, tier=Tier(model=shared)) for name in ("one", "two")),
        Skill(name="three", tier=Tier(model=grave), is_high_stakes=True),
    )
    certified = make_calibration(thresholds=(RiskThreshold(risk_limit_ratio=0.05, threshold=0.5),))
    engine = make_engine(
        student=general, skills=skills, smaller=(Tier(model=small, calibration=certified),)
    )
    await engine.warm_up()
    assert [len(m.requests) for m in (small, shared, grave, general)] == [1, 1, 0, 1]
    assert small.requests[0].best_score is None
    dead = UpstreamError("asking", expected="200", found="503", next_step="wait")
    shared.answer = small.answer = dead
    await engine.warm_up()
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [told.split()[0] for told in warned] == ["small", "shared"]
    assert "503" in warned[0]
    general.answer = dead
    with pytest.raises(UpstreamError):
        await engine.warm_up()


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
