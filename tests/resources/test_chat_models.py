"""The answer cache: bought once, kept before it is used, never past the budget."""

import asyncio
import json

import pytest

from resources import chat_models
from resources.chat_models import AnswerNotKeptError, CachedChatModel, identify_provider
from serving.errors import BudgetExceededError, InvalidInputError, UpstreamError
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


class SlowModel(CountingModel):
    """Lets others run meanwhile, as a call over a socket does."""

    async def complete(self, request: ChatRequest) -> Completion:
        await asyncio.sleep(0.001)
        return await super().complete(request)


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


def test_a_kept_answer_costs_what_it_would_cost_today(tmp_path):
    inner = CountingModel()
    asyncio.run(CachedChatModel(inner, tmp_path, budget_usd=1).complete(ask("why")))
    inner.price = Price(input_usd_per_mtok=1.0, output_usd_per_mtok=2.0)
    again = asyncio.run(CachedChatModel(inner, tmp_path, budget_usd=1).complete(ask("why")))
    assert (again.is_cached, again.cost_usd) == (True, inner.price.cost_usd(10, 5))


def test_one_name_at_two_servers_is_two_models(tmp_path):
    inner = CountingModel()
    for identity in ("", "openai http://a/v1", "openai http://b/v1"):
        for _ in range(2):
            model = CachedChatModel(inner, tmp_path, budget_usd=1, identity=identity)
            assert asyncio.run(model.complete(ask("why"))).model == "counting-1"
    assert inner.calls == 3


def test_a_provider_is_its_address_or_what_it_is_made_of(monkeypatch):
    class Embedder:
        fingerprint = "e1"

    def identify(provider: str, base_url: str | None = None) -> str:
        return identify_provider(provider=provider, base_url=base_url, embedder=Embedder)

    assert identify("openai", "http://a/v1") == identify("openai", "http://a/v1/")
    assert identify("openai", "http://a/v1") != identify("openai", "http://b/v1")
    before = identify("extractive")
    monkeypatch.setattr(Embedder, "fingerprint", "e2")
    other_embedder = identify("extractive")
    monkeypatch.setattr("serving.models.extractive.EXTRACTIVE_VERSION", "next")
    assert len({before, other_embedder, identify("extractive")}) == 3


def test_equal_requests_in_flight_are_bought_once(tmp_path):
    inner = SlowModel()
    model = CachedChatModel(inner, tmp_path, budget_usd=1)

    async def ask_all() -> list[Completion]:
        return await asyncio.gather(*(model.complete(ask("why")) for _ in range(5)))

    answers = asyncio.run(ask_all())
    assert inner.calls == 1
    assert sorted(answer.is_cached for answer in answers) == [False, True, True, True, True]
    assert (model.meter.bought_count, model.meter.reused_count) == (1, 4)


def test_equal_requests_in_flight_fail_together_and_may_be_asked_again(tmp_path):
    inner = SlowModel(failures=1)
    model = CachedChatModel(inner, tmp_path, budget_usd=1)

    async def ask_all() -> list[object]:
        calls = (model.complete(ask("why")) for _ in range(3))
        return await asyncio.gather(*calls, return_exceptions=True)

    assert all(isinstance(result, UpstreamError) for result in asyncio.run(ask_all()))
    assert inner.calls == 1
    assert asyncio.run(model.complete(ask("why"))).text == "WHY"


def test_when_the_asker_is_cancelled_one_of_those_who_wait_asks(tmp_path):
    inner = SlowModel()
    model = CachedChatModel(inner, tmp_path, budget_usd=1)

    async def cancel_the_first() -> list[object]:
        calls = [asyncio.create_task(model.complete(ask("why"))) for _ in range(3)]
        await asyncio.sleep(0)
        calls[0].cancel()
        return await asyncio.gather(*calls, return_exceptions=True)

    first, *others = asyncio.run(cancel_the_first())
    assert isinstance(first, asyncio.CancelledError)
    assert [answer.text for answer in others] == ["WHY", "WHY"]
    assert inner.calls == 1


def test_an_answer_that_cannot_be_kept_is_counted_and_says_so(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chat_models, "write_text_atomically", fail)
    model = CachedChatModel(CountingModel(), tmp_path / "new", budget_usd=1)
    with pytest.raises(AnswerNotKeptError, match=r"bought.*\.json.*No space.*\d+ bytes free"):
        asyncio.run(model.complete(ask("why")))
    assert (model.meter.spent_usd, model.meter.bought_count) == (0.015, 1)


def test_a_damaged_kept_answer_says_which_file_to_remove(tmp_path):
    model = CachedChatModel(CountingModel(), tmp_path, budget_usd=1)
    asyncio.run(model.complete(ask("why")))
    (path,) = tmp_path.rglob("*.json")
    path.write_text("{", encoding="utf-8")
    with pytest.raises(InvalidInputError, match=path.name):
        asyncio.run(model.complete(ask("why")))
