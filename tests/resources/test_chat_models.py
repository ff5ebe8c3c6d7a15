"""The answer cache: bought once, kept before it is used, never past the budget."""

import asyncio
import json

import pytest

from resources.chat_models import CachedChatModel
from serving.errors import BudgetExceededError, UpstreamError
from serving.models.protocols import ChatRequest, Completion, Price


class CountingModel:
    """Answers with the question's length and counts its calls."""

    name = "counting-1"
    price = Price(input_usd_per_mtok=1000.0, output_usd_per_mtok=1000.0)

    def __init__(self, failures: int = 0) -> None:
        self.calls = 0
        self.failures = failures

    async def complete(self, request: ChatRequest) -> Completion:
        self.calls += 1
        if self.calls <= self.failures:
            raise UpstreamError("asking", expected="200", found="503", next_step="wait")
        return Completion(
            text=request.messages[-1]["content"].upper(),
            model=self.name,
            prompt_tokens=10,
            completion_tokens=5,
            finish_reason="stop",
            latency_ms=12.0,
            cost_usd=self.price.cost_usd(10, 5),
        )


def ask(text: str, **changes: object) -> ChatRequest:
    return ChatRequest(messages=({"role": "user", "content": text},), max_tokens=5, **changes)


def test_an_answer_is_bought_once_also_by_another_process(tmp_path):
    inner = CountingModel()
    first = asyncio.run(CachedChatModel(inner, tmp_path, budget_usd=1).complete(ask("why")))
    again = asyncio.run(CachedChatModel(inner, tmp_path, budget_usd=1).complete(ask("why")))
    assert inner.calls == 1
    assert (first.text, first.is_cached) == ("WHY", False)
    assert (again.text, again.is_cached, again.latency_ms) == ("WHY", True, 12.0)


@pytest.mark.parametrize("change", [{"temperature": 0.9}, {"seed": 3}])
def test_other_sampling_is_another_answer(tmp_path, change):
    inner = CountingModel()
    model = CachedChatModel(inner, tmp_path, budget_usd=1)
    asyncio.run(model.complete(ask("why")))
    asyncio.run(model.complete(ask("why", **change)))
    assert inner.calls == 2


def test_the_budget_stops_before_it_is_overspent_and_keeps_what_was_bought(tmp_path):
    inner = CountingModel()
    model = CachedChatModel(inner, tmp_path, budget_usd=0.02)
    asyncio.run(model.complete(ask("one")))  # costs 0.015
    with pytest.raises(BudgetExceededError, match=r"0\.02"):
        asyncio.run(model.complete(ask("two")))
    assert inner.calls == 1
    assert model.meter.spent_usd <= 0.02
    assert asyncio.run(model.complete(ask("one"))).is_cached


def test_concurrent_calls_cannot_overspend_together(tmp_path):
    inner = CountingModel()
    model = CachedChatModel(inner, tmp_path, budget_usd=0.02)

    async def ask_all() -> list[object]:
        calls = (model.complete(ask(f"question {n}")) for n in range(8))
        return await asyncio.gather(*calls, return_exceptions=True)

    results = asyncio.run(ask_all())
    assert sum(isinstance(r, BudgetExceededError) for r in results) == 8 - inner.calls
    assert model.meter.spent_usd <= 0.02


def test_a_failed_call_is_not_kept_and_not_charged(tmp_path):
    inner = CountingModel(failures=1)
    model = CachedChatModel(inner, tmp_path, budget_usd=1)
    with pytest.raises(UpstreamError):
        asyncio.run(model.complete(ask("why")))
    assert list(tmp_path.rglob("*.json")) == []
    assert asyncio.run(model.complete(ask("why"))).text == "WHY"


def test_the_kept_answer_is_readable_json_without_the_question(tmp_path):
    asyncio.run(CachedChatModel(CountingModel(), tmp_path, budget_usd=1).complete(ask("why")))
    (path,) = tmp_path.rglob("*.json")
    assert json.loads(path.read_text(encoding="utf-8"))["model"] == "counting-1"
