"""The factory's model against a server on a socket: throttled, broken, billed, interrupted."""

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from resources.chat_models import CachedChatModel
from resources.pacing import MAXIMUM_FAULTS, Pace
from serving.aio import map_bounded
from serving.errors import (
    BudgetExceededError,
    DeadlineExceededError,
    InvalidInputError,
    ModelError,
    RateLimitedError,
    UpstreamError,
    UpstreamRejectedError,
)
from serving.models.openai_chat import connect
from serving.models.protocols import ChatRequest, NoProgress, Price
from tests.chat_stub import (
    ANSWER,
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    ChatStub,
    Fault,
    make_body,
    serve,
)

PRICE = Price(input_usd_per_mtok=1000.0, output_usd_per_mtok=1000.0)
COST_USD = PRICE.cost_usd(PROMPT_TOKENS, COMPLETION_TOKENS)


def open_model(
    url: str,
    folder,
    *,
    concurrency: int = 8,
    budget_usd: float = 1e6,
    timeout_seconds: float = 5.0,
    deadline_seconds: float = 60.0,
) -> CachedChatModel:
    return CachedChatModel(
        connect(url, None, model="m-1", price=PRICE, timeout_seconds=timeout_seconds, retries=0),
        folder,
        budget_usd=budget_usd,
        pace=Pace(concurrency, deadline_seconds=deadline_seconds, draw=lambda: 0.05),
    )


def ask(text: str) -> ChatRequest:
    return ChatRequest(messages=({"role": "user", "content": text},), max_tokens=COMPLETION_TOKENS)


async def ask_all(model: CachedChatModel, count: int, concurrency: int = 8) -> list:
    async def complete(number: int):
        return await model.complete(ask(f"question {number} {'x' * 100}"))

    return await map_bounded(
        complete, range(count), concurrency=concurrency, progress=NoProgress(), description="asking"
    )


def http_date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (429, {"retry-after": "1"}),
        (429, {"retry-after-ms": "300"}),
        (429, {"retry-after": http_date(-60)}),
        (429, {}),
        (503, {"retry-after": "0.2"}),
        (529, {}),
    ],
)
def test_a_throttled_call_waits_and_is_answered(tmp_path, status, headers):
    # More refusals than a faulty call would be forgiven: the server says when to come back.
    refusals = [Fault(status=status, headers=headers)] * (MAXIMUM_FAULTS + 1)
    stub = ChatStub(faults={"why": refusals if headers != {"retry-after": "1"} else refusals[:1]})
    with serve(stub) as url:
        model = open_model(url, tmp_path)
        assert asyncio.run(model.complete(ask("why"))).text == ANSWER
    assert stub.billed == {"why": 1}
    assert model.meter.lost_usd == 0


def test_one_refusal_holds_all_callers_back(tmp_path):
    stub = ChatStub(latency_seconds=0.02)
    stub.faults = {f"question 5 {'x' * 100}": [Fault(status=429, headers={"retry-after": "1.5"})]}
    with serve(stub) as url:
        model = open_model(url, tmp_path, concurrency=4)
        answers = asyncio.run(ask_all(model, 200, concurrency=12))
    assert len(answers) == 200
    # While the door is closed nobody knocks but who was on the way; alone, each would go on asking.
    (closed,) = stub.failed_at
    assert sum(closed < arrival < closed + 1.4 for arrival in stub.arrivals) <= 8
    assert stub.most_under_way <= 4


def test_concurrency_settles_at_what_the_server_takes(tmp_path):
    stub = ChatStub(latency_seconds=0.02, capacity=4)
    with serve(stub) as url:
        model = open_model(url, tmp_path, concurrency=32)
        answers = asyncio.run(ask_all(model, 400, concurrency=32))
    assert len(answers) == 400
    assert set(stub.billed.values()) == {1}
    # Each caller for itself would be refused about as often as it is answered (28 of 32 at once).
    assert stub.refused < 150
    assert model._pace.limit <= 12


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500),
        Fault(status=502),
        Fault(status=503),
        Fault(status=504),
        Fault(status=408),
        Fault(status=409),
        Fault(body=make_body("half an answer"), is_cut=True),
        Fault(body='{"choices": ['),
        Fault(body="<html>welcome</html>"),
        Fault(delay_seconds=4),
    ],
)
def test_a_transient_fault_is_asked_again(tmp_path, fault):
    stub = ChatStub(faults={"why": [fault, fault]})
    with serve(stub) as url:
        timeout_seconds = fault.delay_seconds / 2 or 30.0
        model = open_model(url, tmp_path, timeout_seconds=timeout_seconds)
        assert asyncio.run(model.complete(ask("why"))).text == ANSWER
    assert stub.calls == {"why": 3}
    # What the server may have billed for nothing is held against the budget.
    assert model.meter.lost_count == stub.billed["why"] - 1


def test_a_server_that_stays_broken_is_given_up(tmp_path):
    stub = ChatStub(faults={"why": [Fault(status=500)] * 50})
    with serve(stub) as url, pytest.raises(UpstreamError, match="status 500"):
        asyncio.run(open_model(url, tmp_path).complete(ask("why")))
    assert stub.calls == {"why": MAXIMUM_FAULTS}


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault(status=status) for status in (400, 401, 403, 404, 413, 422)),
        Fault(status=429, body={"error": {"message": "pay", "code": "insufficient_quota"}}),
        Fault(body=make_body(None, finish_reason="content_filter")),
    ],
)
def test_a_permanent_fault_is_not_asked_again(tmp_path, fault):
    stub = ChatStub(faults={"why": [fault] * 9})
    with serve(stub) as url, pytest.raises(UpstreamRejectedError):
        asyncio.run(open_model(url, tmp_path).complete(ask("why")))
    assert stub.calls == {"why": 1}


def test_the_deadline_covers_all_attempts(tmp_path):
    stub = ChatStub(faults={"why": [Fault(status=429, headers={"retry-after-ms": "200"})] * 999})
    with serve(stub) as url, pytest.raises((DeadlineExceededError, RateLimitedError)):
        asyncio.run(open_model(url, tmp_path, deadline_seconds=3).complete(ask("why")))
    assert 1 < stub.calls["why"] <= 16


def test_who_is_told_to_come_back_after_the_deadline_gives_up_at_once(tmp_path):
    stub = ChatStub(faults={"why": [Fault(status=429, headers={"retry-after": "3600"})] * 9})
    with serve(stub) as url, pytest.raises(RateLimitedError, match="429"):
        asyncio.run(open_model(url, tmp_path, deadline_seconds=30).complete(ask("why")))
    assert stub.calls == {"why": 1}


def test_a_wait_past_the_deadline_closes_the_door_to_all_others(tmp_path):
    stub = ChatStub(faults={"first": [Fault(status=429, headers={"retry-after": "3600"})]})

    async def ask_in_turn(model: CachedChatModel) -> list:
        calls = (model.complete(ask(text)) for text in ("first", *map(str, range(50))))
        return await asyncio.gather(*calls, return_exceptions=True)

    with serve(stub) as url:
        model = open_model(url, tmp_path, concurrency=1, deadline_seconds=30)
        first, *others = asyncio.run(ask_in_turn(model))
    assert isinstance(first, RateLimitedError)
    # Nobody knocks at the closed door, and nobody waits in front of it for nothing.
    assert {type(other) for other in others} == {DeadlineExceededError}
    assert all("status 429" in str(other) for other in others)
    assert stub.calls == {"first": 1}
    assert model.meter.lost_usd == 0


@pytest.mark.parametrize("asked", ["0", http_date(-60)], ids=["zero", "past"])
def test_a_server_that_says_come_back_at_once_is_not_asked_without_a_pause(tmp_path, asked):
    stub = ChatStub(faults={"why": [Fault(status=429, headers={"retry-after": asked})] * 999})
    with serve(stub) as url, pytest.raises((DeadlineExceededError, RateLimitedError)):
        asyncio.run(open_model(url, tmp_path, deadline_seconds=5).complete(ask("why")))
    assert 1 < stub.calls["why"] <= 8  # waits of 0.05, 0.1, 0.2, 0.4, 0.8, 1.6 and 3.2 s


@pytest.mark.parametrize("top_logprobs", [0, 2])
def test_an_answer_that_arrived_and_cannot_be_used_is_held_against_the_budget(
    tmp_path, top_logprobs
):
    body = make_body("no logprobs" if top_logprobs else None, finish_reason="content_filter")
    question = "why " * 30  # so long that the stub's token counts are true
    stub = ChatStub(faults={question: [Fault(body=body)]})
    with serve(stub) as url:
        inner = connect(url, None, model="m-1", price=PRICE, retries=0, top_logprobs=top_logprobs)
        model = CachedChatModel(inner, tmp_path, budget_usd=1e6, pace=Pace(2, deadline_seconds=30))
        with pytest.raises(InvalidInputError if top_logprobs else UpstreamRejectedError):
            asyncio.run(model.complete(ask(question)))
    assert stub.billed == {question: 1}
    assert model.meter.lost_count == 1
    assert model.meter.lost_usd >= COST_USD


def test_waiting_for_a_turn_counts_towards_the_deadline(tmp_path):
    stub = ChatStub(latency_seconds=5.0)

    async def ask_two(model: CachedChatModel) -> list:
        calls = (model.complete(ask(text)) for text in ("first", "second"))
        return await asyncio.gather(*calls, return_exceptions=True)

    with serve(stub) as url:
        model = open_model(url, tmp_path, concurrency=1, deadline_seconds=2.0)
        results = asyncio.run(ask_two(model))
    # The first is cut off while the server answers it, the second while it waits for its turn.
    assert [type(result) for result in results] == [DeadlineExceededError, DeadlineExceededError]
    assert "second" not in stub.calls
    assert model.meter.lost_count == 1


def test_the_bill_stays_under_the_budget_whatever_fails(tmp_path):
    faults = (
        Fault(status=500),
        Fault(body=make_body("half an answer"), is_cut=True),
        Fault(body="{"),
        Fault(status=504),
    )
    stub = ChatStub(latency_seconds=0.005)
    stub.faults = {
        f"question {n} {'x' * 100}": list(faults[: n % 5]) for n in range(200) if n % 3 == 0
    }
    budget_usd = 60 * COST_USD
    with serve(stub) as url:
        model = open_model(url, tmp_path, budget_usd=budget_usd, concurrency=16)
        with pytest.raises(BudgetExceededError, match=r"spent on \d+ answers and .* left") as error:
            asyncio.run(ask_all(model, 200, concurrency=16))
        billed_usd = sum(stub.billed.values()) * COST_USD
        assert billed_usd <= model.meter.spent_usd + model.meter.lost_usd + 1e-9 <= budget_usd
        assert "raise the budget" in str(error.value)

        kept = model.meter.bought_count
        richer = open_model(url, tmp_path, budget_usd=1e6, concurrency=16)
        assert len(asyncio.run(ask_all(richer, 200, concurrency=16))) == 200
    assert (richer.meter.reused_count, richer.meter.bought_count) == (kept, 200 - kept)


def test_a_budget_is_used_up_by_real_costs_not_by_reservations(tmp_path):
    stub = ChatStub(latency_seconds=0.01)
    with serve(stub) as url:
        # All 32 callers together reserve far more than this; what they cost is less than half.
        model = open_model(url, tmp_path, budget_usd=40 * COST_USD, concurrency=32)
        with pytest.raises(BudgetExceededError):
            asyncio.run(ask_all(model, 100, concurrency=32))
    assert model.meter.bought_count >= 38
    assert sum(stub.billed.values()) == model.meter.bought_count


def test_a_retry_carries_the_key_of_the_first_call(tmp_path):
    stub = ChatStub(faults={"why": [Fault(status=500), Fault(status=409)]}, is_idempotent=True)
    with serve(stub) as url:
        for folder in ("a", "b"):  # the second is a run that lost its cache
            asyncio.run(open_model(url, tmp_path / folder).complete(ask("why")))
    assert len(stub.keys) == 1
    assert stub.calls == {"why": 4}
    assert stub.billed["why"] == 2  # the failed 500 and one answer


def test_every_failure_is_a_model_error(tmp_path):
    model = open_model("http://127.0.0.1:9/v1", tmp_path, deadline_seconds=2)
    with pytest.raises(ModelError, match="no connection"):
        asyncio.run(model.complete(ask("why")))
    assert model.meter.lost_usd == 0
