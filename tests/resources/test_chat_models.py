"""The answer cache: bought once, kept before it is used, never past the budget."""

import asyncio
import json
import multiprocessing
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from resources import answer_store
from resources.answer_store import FILE_NAME, AnswerStore, forget_answers
from resources.chat_models import (
    AnswerNotKeptError,
    AnswersUnreadableError,
    CachedChatModel,
)
from resources.spending import estimate_most_usd
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


def read_store(folder: Path) -> dict[str, str]:
    """Kept answers by key, as SQLite itself reads them."""
    if not (folder / FILE_NAME).exists():
        return {}
    with closing(sqlite3.connect(folder / FILE_NAME)) as store:
        return dict(store.execute("select key, answer from answers"))


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
    model = CachedChatModel(inner, tmp_path, budget_usd=0.03)
    asyncio.run(model.complete(ask("one")))  # costs 0.015
    with pytest.raises(BudgetExceededError, match=r"0\.0150 spent on 1 answers.*0\.0150 left"):
        asyncio.run(model.complete(ask("two")))
    assert inner.calls == 1
    assert model.meter.spent_usd <= 0.03
    assert asyncio.run(model.complete(ask("one"))).is_cached


def test_concurrent_calls_cannot_overspend_together(tmp_path):
    inner = CountingModel()
    model = CachedChatModel(inner, tmp_path, budget_usd=0.08)

    async def ask_all() -> list[object]:
        calls = (model.complete(ask(f"question {n}")) for n in range(8))
        return await asyncio.gather(*calls, return_exceptions=True)

    results = asyncio.run(ask_all())
    assert inner.calls == 4
    assert sum(isinstance(r, BudgetExceededError) for r in results) == 8 - inner.calls
    assert model.meter.spent_usd <= 0.08
    assert model.meter.reserved_usd == 0


@pytest.mark.parametrize("text", ["why does it stop?", "為什麼它會停止", "🤷🏽 𐎠𐎭𐎠", ""])
def test_what_is_reserved_covers_the_most_a_call_can_cost(text):
    price = Price(input_usd_per_mtok=1e6, output_usd_per_mtok=0.0)  # a dollar a token
    assert estimate_most_usd(ask(text), price) >= len(text.encode()) + 4


def test_the_schema_of_an_answer_is_reserved_as_part_of_the_prompt():
    price = Price(input_usd_per_mtok=1e6, output_usd_per_mtok=0.0)  # a dollar a token
    schema = {"type": "object", "properties": {axis: {"type": "integer"} for axis in "abcdefgh"}}
    wanted = {"type": "json_schema", "json_schema": {"name": "rating", "schema": schema}}
    plain, with_schema = (
        estimate_most_usd(ask("why", response_format=form), price) for form in (None, wanted)
    )
    assert with_schema - plain >= len(json.dumps(schema).encode())


def test_a_failed_call_is_not_kept_and_not_charged(tmp_path):
    inner = CountingModel(failures=1)
    model = CachedChatModel(inner, tmp_path, budget_usd=1)
    with pytest.raises(UpstreamError):
        asyncio.run(model.complete(ask("why")))
    assert read_store(tmp_path) == {}
    assert model.meter.spent_usd + model.meter.lost_usd == 0
    assert asyncio.run(model.complete(ask("why"))).text == "WHY"


def test_the_kept_answer_is_readable_json_without_the_question(tmp_path):
    asyncio.run(CachedChatModel(CountingModel(), tmp_path, budget_usd=1).complete(ask("why")))
    (answer,) = read_store(tmp_path).values()
    assert json.loads(answer)["model"] == "counting-1"
    assert "why" not in answer


def test_an_answer_that_an_earlier_version_kept_as_a_file_is_found(tmp_path):
    inner = CountingModel()
    asyncio.run(CachedChatModel(inner, tmp_path / "new", budget_usd=1).complete(ask("why")))
    ((key, answer),) = read_store(tmp_path / "new").items()
    path = tmp_path / "old" / key[:2] / f"{key}.json"
    path.parent.mkdir(parents=True)
    path.write_text(answer, encoding="utf-8")
    again = asyncio.run(CachedChatModel(inner, tmp_path / "old", budget_usd=1).complete(ask("why")))
    assert (again.text, again.is_cached, inner.calls) == ("WHY", True, 1)


@pytest.mark.parametrize("earlier", ["delete from asked", "drop table asked"])
def test_an_answer_is_forgotten_by_a_question_that_was_noted_at_its_reuse(tmp_path, earlier):
    inner = CountingModel()
    asyncio.run(CachedChatModel(inner, tmp_path, budget_usd=1).complete(ask("why")))
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as store, store:
        store.execute(earlier)  # as an earlier version kept it
    again = CachedChatModel(inner, tmp_path, budget_usd=1)
    assert asyncio.run(again.complete(ask("why"))).is_cached
    again.close()
    assert forget_answers(tmp_path, asked={"why"}, quotes=()) == 1
    assert read_store(tmp_path) == {}


def test_an_answer_is_reused_also_where_its_question_cannot_be_noted(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(answer_store, "LOCK_SECONDS", 0.05)
    inner = CountingModel()
    asyncio.run(CachedChatModel(inner, tmp_path, budget_usd=1).complete(ask("why")))
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as other:
        with other:
            other.execute("delete from asked")
        other.execute("begin immediate")
        again = CachedChatModel(inner, tmp_path, budget_usd=1)
        assert asyncio.run(again.complete(ask("why"))).is_cached
    assert "locked" in caplog.text


def label_in_a_process(folder: Path, first: int) -> None:
    model = CachedChatModel(CountingModel(), folder, budget_usd=1e6)

    async def ask_all() -> None:
        await asyncio.gather(*(model.complete(ask(str(n))) for n in range(first, first + 50)))

    asyncio.run(ask_all())


def test_several_processes_keep_their_answers_in_one_store(tmp_path):
    context = multiprocessing.get_context("forkserver")
    processes = [
        context.Process(target=label_in_a_process, args=(tmp_path, first)) for first in (0, 25, 50)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(read_store(tmp_path)) == 100


def test_answers_that_arrive_together_are_written_together_and_none_is_lost(tmp_path):
    store = AnswerStore(tmp_path)

    async def keep_all() -> None:
        await asyncio.gather(
            *(store.keep(f"k{n}", f"answer {n}", asked=f"q{n}") for n in range(500))
        )

    asyncio.run(keep_all())
    assert read_store(tmp_path) == {f"k{n}": f"answer {n}" for n in range(500)}
    assert {store.find(f"k{n}") for n in range(500)} == {f"answer {n}" for n in range(500)}


def test_an_answer_is_written_also_when_nobody_waits_for_it_any_more(tmp_path):
    store = AnswerStore(tmp_path)

    async def keep_and_leave() -> None:
        task = asyncio.create_task(store.keep("k", "answer", asked="q"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.keep("later", "answer", asked="q")

    asyncio.run(keep_and_leave())
    assert set(read_store(tmp_path)) == {"k", "later"}


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
    monkeypatch.setattr(answer_store, "LOCK_SECONDS", 0.05)
    model = CachedChatModel(CountingModel(), tmp_path, budget_usd=1)
    asyncio.run(model.complete(ask("before")))
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as other:
        other.execute("begin immediate")  # another program holds the store for too long
        with pytest.raises(AnswerNotKeptError, match=r"bought.*sqlite.*locked.*\d+ bytes free"):
            asyncio.run(model.complete(ask("why")))
    assert (model.meter.spent_usd, model.meter.bought_count) == (0.03, 2)


def test_a_store_that_cannot_be_read_stops_before_anything_is_bought(tmp_path):
    (tmp_path / FILE_NAME).mkdir()
    model = CachedChatModel(CountingModel(), tmp_path, budget_usd=1)
    with pytest.raises(AnswersUnreadableError, match=f"{FILE_NAME}.*mend the permissions"):
        asyncio.run(model.complete(ask("why")))
    assert model.meter.bought_count == 0


def test_a_store_that_another_program_holds_is_not_called_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(answer_store, "LOCK_SECONDS", 0.05)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as other:
        other.execute("create table answers (key text primary key, answer text)")
        other.execute("begin exclusive")  # without a write-ahead log readers wait as well
        model = CachedChatModel(CountingModel(), tmp_path, budget_usd=1)
        with pytest.raises(AnswersUnreadableError, match="locked"):
            asyncio.run(model.complete(ask("why")))
    assert model.meter.bought_count == 0


def test_reading_writes_nothing(tmp_path):
    (tmp_path / FILE_NAME).touch()  # as another process leaves it for a moment
    assert AnswerStore(tmp_path).find("k") is None
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [(FILE_NAME, 0)]


def test_a_closed_store_opens_again(tmp_path):
    inner = CountingModel()
    model = CachedChatModel(inner, tmp_path, budget_usd=1)
    asyncio.run(model.complete(ask("why")))
    model.close()
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]  # the log is folded in
    assert asyncio.run(model.complete(ask("why"))).is_cached
    asyncio.run(model.complete(ask("how")))
    assert (inner.calls, len(read_store(tmp_path))) == (2, 2)
    model.close()


def test_a_damaged_kept_answer_says_which_one_to_remove(tmp_path):
    model = CachedChatModel(CountingModel(), tmp_path, budget_usd=1)
    asyncio.run(model.complete(ask("why")))
    (key,) = read_store(tmp_path)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as store, store:
        store.execute("update answers set answer = '{'")
    with pytest.raises(InvalidInputError, match=key):
        asyncio.run(model.complete(ask("why")))


def test_a_damaged_store_says_how_to_mend_it(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(b"no database" * 1000)
    model = CachedChatModel(CountingModel(), tmp_path, budget_usd=1)
    with pytest.raises(InvalidInputError, match="recover"):
        asyncio.run(model.complete(ask("why")))


def test_a_store_whose_table_is_still_being_made_holds_nothing_yet(tmp_path):
    from resources.answer_store import AnswerStore

    store = AnswerStore(tmp_path)
    store.path.parent.mkdir(parents=True, exist_ok=True)
    store.path.touch(mode=0o600)
    assert store.find("ab" * 16) is None
    asyncio.run(store.keep("ab" * 16, "text", asked="q"))
    assert store.find("ab" * 16) == "text"
    assert store.path.stat().st_mode & 0o777 == 0o600
    store.close()
