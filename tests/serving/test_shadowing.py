"""Chance, phases and shadows on a running server: what is sent, what is traced, what is counted."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from serving.errors import UpstreamError
from serving.pipeline.router import RouterPolicy
from serving.pipeline.skills import Skill
from serving.pipeline.tiers import Tier
from tests.serving.fakes import TEACHER_PRICE, CannedChatModel, make_engine, make_manifest
from tests.serving.running import run_app

DOWN = UpstreamError("asking", expected="200", found="503", next_step="wait")


async def test_an_imposters_answers_are_traces_of_their_own(tmp_path: Path) -> None:
    engine = make_engine(phase="imposter")
    async with run_app(engine, tmp_path, env="prod") as running:
        body = (await running.ask(conversation_id="c-1")).json()
        served, shadow = await running.wait_for_traces(2)
        release = (await running.client.get("/v1/release")).json()
        answered = 'understudy_shadows_total{outcome="answered"} 1.0'
        metrics = await running.wait_for_metric(answered)  # counted after the trace is written
    assert (body["served_by"], body["route_reason"]) == ("teacher", "phase")
    assert (served["trace_id"], served["phase"], release["phase"]) == (
        body["trace_id"],
        "imposter",
        "imposter",
    )
    assert (shadow["selection_mode"], shadow["parent_trace_id"]) == ("shadow", served["trace_id"])
    assert (shadow["served_by"], shadow["conversation_id"]) == ("student", "c-1")
    assert (shadow["trainable"], shadow["trainable_reason"]) == (False, "shadow")
    assert served["parent_trace_id"] is None
    assert [h["chunk_id"] for h in shadow["retrieved"]] == [
        h["chunk_id"] for h in served["retrieved"]
    ]
    assert served["cost_usd"] == pytest.approx(TEACHER_PRICE.cost_usd(100, 20))
    assert answered in metrics
    assert 'understudy_cost_usd_total{role="shadow"}' in metrics
    heartbeat = next(
        line for line in metrics.splitlines()
        if line.startswith("understudy_shadow_answered_at_seconds ")
    )  # fmt: skip
    assert float(heartbeat.split()[1]) > 1.7e9


async def test_the_answer_does_not_wait_for_its_shadow_and_shadows_do_not_queue(
    tmp_path: Path,
) -> None:
    student = CannedChatModel("s", delay_seconds=30)
    async with run_app(make_engine(phase="imposter", student=student), tmp_path) as running:
        for _ in range(5):
            assert (await running.ask()).status_code == 200
        await asyncio.sleep(0)
        metrics = await running.metrics()
    assert len(student.requests) == 1
    assert 'understudy_shadows_total{outcome="skipped_busy"} 4.0' in metrics
    assert len(running.traces()) == 5


@pytest.mark.parametrize(
    ("parts", "options", "outcome"),
    [
        ({"student": CannedChatModel("s", DOWN)}, {}, "failed"),
        ({"student": CannedChatModel("s", RuntimeError("x"))}, {}, "failed"),
        ({}, {"shadow_calls_per_day": 0}, "skipped_budget"),
    ],
)
async def test_a_shadow_that_does_not_answer_is_counted(
    tmp_path: Path, parts: dict[str, Any], options: dict[str, Any], outcome: str
) -> None:
    async with run_app(make_engine(phase="imposter", **parts), tmp_path, **options) as running:
        assert (await running.ask()).status_code == 200
        for _ in range(400):
            metrics = await running.metrics()
            if f'outcome="{outcome}"' in metrics:
                break
            await asyncio.sleep(0.005)
    assert f'understudy_shadows_total{{outcome="{outcome}"}} 1.0' in metrics
    assert len(running.traces()) == 1


@pytest.mark.parametrize(
    ("closed", "outcome"), [("general", "answered"), ("own", "skipped_breaker")]
)
async def test_a_shadow_looks_at_the_breaker_of_the_student_it_asks(
    tmp_path: Path, closed: str, outcome: str
) -> None:
    """Of a skill's question that is the skill's, whatever became of the general student."""
    students = {name: CannedChatModel(name) for name in ("general", "own")}
    students[closed].is_stopped = True  # type: ignore[attr-defined]
    skill = Skill(
        name="reading", tier=Tier(model=students["own"]), pages=("guides/environment-variables",)
    )
    engine = make_engine(phase="imposter", student=students["general"], skills=(skill,))
    async with run_app(engine, tmp_path) as running:
        assert (await running.ask()).json()["skill"] == "reading"
        for _ in range(400):
            metrics = await running.metrics()
            if "understudy_shadows_total{" in metrics:
                break
            await asyncio.sleep(0.005)
    assert f'understudy_shadows_total{{outcome="{outcome}"}} 1.0' in metrics
    assert [len(s.requests) for s in students.values()] == [0, int(outcome == "answered")]


async def test_in_switch_the_teacher_shadows_the_student_where_it_is_asked_for(
    tmp_path: Path,
) -> None:
    async with run_app(make_engine(), tmp_path, shadow_ratio=1.0) as running:
        await running.ask()
        served, shadow = await running.wait_for_traces(2)
    assert (served["served_by"], shadow["served_by"]) == ("student", "teacher")
    async with run_app(make_engine(), tmp_path / "other") as running:
        await running.ask()
        await asyncio.sleep(0.02)
    assert len(running.traces()) == 1


@pytest.mark.parametrize("env", ["prod", "dev"])
async def test_only_production_is_explored(tmp_path: Path, env: str) -> None:
    engine = make_engine(router=RouterPolicy(explore_ratio=1.0))
    async with run_app(engine, tmp_path, env=env) as running:
        body = (await running.ask()).json()
        (trace,) = running.traces()
    found = (body["served_by"], trace["route_reason"], trace["selection_mode"], trace["propensity"])
    expected = {
        "prod": ("teacher", "explore", "explore", 1.0),
        "dev": ("student", "default", "rule", 1.0),
    }
    assert found == expected[env]


async def test_a_canary_is_sticky_and_traced(tmp_path: Path) -> None:
    engine = make_engine(router=RouterPolicy(canary_ratio=0.5))
    sides: dict[str, set[str]] = {}
    async with run_app(engine, tmp_path, canary_salt="pepper") as running:
        for _ in range(2):
            for name in range(20):
                body = (await running.ask(conversation_id=f"c-{name}")).json()
                assert body["route_reason"] == "canary"
                sides.setdefault(f"c-{name}", set()).add(body["served_by"])
        traces = running.traces()
    assert all(len(side) == 1 for side in sides.values())
    assert set.union(*sides.values()) == {"student", "teacher"}
    assert all(t["canary_arm"] == t["served_by"] and t["propensity"] == 0.5 for t in traces)


async def test_the_teachers_calls_of_a_day_are_bounded(tmp_path: Path) -> None:
    engine = make_engine(router=RouterPolicy(min_retrieval_score=0.99))
    async with run_app(engine, tmp_path, teacher_calls_per_day=3) as running:
        found = [(await running.ask()).json() for _ in range(5)]
    assert [(b["served_by"], b["route_reason"]) for b in found] == [
        ("teacher", "low_retrieval")
    ] * 3 + [("student", "budget")] * 2


async def test_with_nobody_to_stand_in_a_spent_budget_is_a_problem(tmp_path: Path) -> None:
    engine = make_engine(phase="hitchhiker")
    async with run_app(engine, tmp_path, teacher_calls_per_day=1) as running:
        first, second = [await running.ask() for _ in range(2)]
    assert (first.status_code, second.status_code) == (200, 429)
    assert second.json()["type"].endswith(":over-quota")
    assert int(second.headers["retry-after"]) > 3600, "it is a day's budget"


@pytest.mark.parametrize("phase", ["switch", "dreamer"])
def test_a_phase_that_routes_must_be_earned(phase: str) -> None:
    with pytest.raises(ValueError, match=f"phase {phase} needs the verdict PROMOTE"):
        make_manifest(phase=phase, gate={"verdict": "HOLD"})
    make_manifest(phase="imposter", gate={"verdict": "HOLD"})
