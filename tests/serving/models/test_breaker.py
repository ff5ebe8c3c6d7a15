"""A breaker opens when it should, lets one probe through, and never trips on what a client sent."""

import asyncio
from dataclasses import replace

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import (
    CircuitOpenError,
    DeadlineExceededError,
    ModelError,
    RateLimitedError,
    UpstreamError,
    UpstreamRejectedError,
)
from serving.models.breaker import BreakerPolicy, CircuitBreaker
from serving.models.guarded import GuardedChatModel
from serving.models.openai_chat import connect_in_process
from serving.models.protocols import ChatModel, ChatRequest, Price
from serving.models.retry_budget import RetryBudget
from serving.models.student_rules import RefusalRule, RuledStudent, StudentRules
from tests.serving.fakes import CannedChatModel

REQUEST = ChatRequest(messages=({"role": "user", "content": "Where?"},))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def fail(kind: type[ModelError] = UpstreamError) -> ModelError:
    return kind("asking", expected="200", found="503", next_step="wait")


def guard(model: ChatModel, clock: Clock, **options) -> GuardedChatModel:
    breaker = CircuitBreaker(clock=clock)
    return GuardedChatModel(model, breaker=breaker, **({"timeout_seconds": 5} | options))


async def ask(model: GuardedChatModel, times: int, expected: type[Exception]) -> None:
    for _ in range(times):
        with pytest.raises(expected):
            await model.complete(REQUEST)


def call(breaker: CircuitBreaker, *, has_failed: bool) -> bool:
    entered = breaker.enter()
    if entered is None:
        return False
    breaker.leave(entered, has_failed=has_failed)
    return True


async def test_five_failures_in_a_row_open_it_and_one_probe_closes_it():
    clock = Clock()
    inner = CannedChatModel("m", fail())
    model = guard(inner, clock)
    await ask(model, 5, UpstreamError)
    assert model.is_stopped
    with pytest.raises(CircuitOpenError) as refused:
        await model.complete(REQUEST)
    assert (len(inner.requests), refused.value.retry_after_seconds) == (5, 5)
    clock.now += 4.9
    await ask(model, 3, CircuitOpenError)
    clock.now += 0.2
    inner.answer = "Back. [1]"
    assert (await model.complete(REQUEST)).text == "Back. [1]"
    assert (model.breaker.state, len(inner.requests)) == ("closed", 6)


async def test_a_failed_probe_opens_it_again_and_no_second_one_goes_along():
    clock = Clock()
    inner = CannedChatModel("m", fail())
    model = guard(inner, clock)
    await ask(model, 5, UpstreamError)
    clock.now += 5
    inner.delay_seconds = 0.05
    outcomes = await asyncio.gather(
        *(model.complete(REQUEST) for _ in range(10)), return_exceptions=True
    )
    assert sorted(type(o).__name__ for o in outcomes) == ["CircuitOpenError"] * 9 + [
        "UpstreamError"
    ]
    assert (len(inner.requests), model.breaker.opened_count) == (6, 2)


async def test_a_refusal_by_rule_says_nothing_of_the_model_behind_it():
    clock = Clock()
    rules = StudentRules(refusal=RefusalRule(intercept=1.0, weight=-2.0))
    inner = CannedChatModel("m", fail())
    model = guard(RuledStudent(inner, rules), clock)
    out_of_scope = replace(REQUEST, best_score=0.1)
    await ask(model, 4, UpstreamError)
    assert (await model.complete(out_of_scope)).text == "REFUSE"
    await ask(model, 1, UpstreamError)
    assert (model.breaker.state, len(inner.requests)) == ("open", 5)
    clock.now += 5
    assert (await model.complete(out_of_scope)).text == "REFUSE"
    assert model.breaker.state == "probing"
    await ask(model, 1, UpstreamError)
    assert (model.breaker.state, model.breaker.opened_count) == ("open", 2)


def test_half_of_twenty_in_ten_seconds_open_it():
    clock = Clock()
    breaker = CircuitBreaker(clock=clock)
    for number in range(19):
        call(breaker, has_failed=number % 2 == 0)
        clock.now += 0.4
    assert breaker.state == "closed"
    call(breaker, has_failed=True)
    assert breaker.state == "open"


def test_what_is_older_than_the_window_is_forgotten():
    clock = Clock()
    breaker = CircuitBreaker(clock=clock)
    for number in range(200):
        call(breaker, has_failed=number % 2 == 0)
        clock.now += 0.6  # 17 calls in 10 seconds
    assert (breaker.state, breaker.opened_count) == ("closed", 0)


@pytest.mark.parametrize("kind", [UpstreamRejectedError, RateLimitedError])
async def test_what_the_request_is_refused_for_never_trips_it(kind):
    model = guard(CannedChatModel("m", fail(kind)), Clock())
    await ask(model, 60, kind)
    assert model.breaker.opened_count == 0


@pytest.mark.parametrize("status", [408, 409, 425, 429])
async def test_a_status_of_the_request_never_trips_it(status):
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def refuse():
        return JSONResponse({"error": {"message": "no"}}, status_code=status)

    upstream = connect_in_process(app, model="m", price=Price())
    model = guard(upstream, Clock())
    await ask(model, 6, UpstreamError)
    assert model.breaker.opened_count == 0


async def test_a_model_that_hangs_is_cut_off_and_trips_it():
    inner = CannedChatModel("m", delay_seconds=30)
    model = guard(inner, Clock(), timeout_seconds=0.01)
    await ask(model, 5, DeadlineExceededError)
    await ask(model, 1, CircuitOpenError)


async def test_the_callers_deadline_counts_against_a_model_that_outlasts_it():
    model = guard(CannedChatModel("m", delay_seconds=30), Clock())
    for _ in range(5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await model.complete(REQUEST)
    assert model.is_stopped


@given(
    outcomes=st.lists(st.tuples(st.booleans(), st.floats(0, 3)), max_size=80),
    policy=st.builds(BreakerPolicy, consecutive_failures=st.integers(1, 6)),
)
def test_it_never_lets_a_call_through_while_it_is_open(outcomes, policy):
    clock = Clock()
    breaker = CircuitBreaker(policy, clock=clock)
    opened_at = None
    for has_failed, pause in outcomes:
        clock.now += pause
        before = breaker.opened_count
        was_let_in = call(breaker, has_failed=has_failed)
        if opened_at is not None and clock.now < opened_at + policy.open_seconds:
            assert not was_let_in
        if breaker.opened_count > before:
            opened_at = clock.now
        assert (breaker.state == "open") == (breaker.retry_after_seconds > 0)


async def test_an_answer_in_process_says_whether_loading_was_part_of_it():
    model = guard(CannedChatModel("m"), Clock(), load_ms=812.0)
    first, second = [await model.complete(REQUEST) for _ in range(2)]
    assert (first.cold_start, first.adapter_load_ms) == (True, 812.0)
    assert (second.cold_start, second.adapter_load_ms) == (False, 0.0)
    remote = await guard(CannedChatModel("m"), Clock()).complete(REQUEST)
    assert (remote.cold_start, remote.adapter_load_ms) == (None, None)


@given(st.integers(1, 400))
def test_retries_are_a_tenth_of_the_calls(calls):
    budget = RetryBudget()
    retried = 0
    for _ in range(calls):
        budget.count_call()
        retried += budget.take()
    assert retried == -(-calls // 10)


def test_calm_pays_for_ten_retries_at_once_and_no_more():
    budget = RetryBudget()
    for _ in range(1000):
        budget.count_call()
    assert [budget.take() for _ in range(11)] == [True] * 10 + [False]
