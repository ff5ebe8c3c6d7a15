"""What is erased is in no byte of a store, whoever kept it; where it cannot be, that is said."""

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from resources import erasing
from resources.answer_store import FILE_NAME, forget_answers
from resources.chat_models import CachedChatModel
from resources.embeddings import VectorStore, forget_vectors
from resources.erasing import NotErasedError
from serving.models.protocols import ChatRequest, Completion, Price

SHORT = "Who is Zoe?"
OTHER = "Who is Ann?"


class Student:
    """Answers without a word of the question."""

    price = Price()

    def __init__(self, name: str, answer: str = "canary-answer") -> None:
        self.name = name
        self.answer = answer

    async def complete(self, _request: ChatRequest) -> Completion:
        return Completion(
            text=self.answer, model=self.name, prompt_tokens=1, completion_tokens=1,
            finish_reason="stop", latency_ms=1.0,
        )  # fmt: skip


def ask(question: str, sources: str = "none", seed: int = 0) -> ChatRequest:
    system = {"role": "system", "content": f"Sources: {sources}"}
    return ChatRequest(messages=(system, {"role": "user", "content": question}), seed=seed)


def keep(folder: Path, model: Student, *requests: ChatRequest, identity: str = "") -> None:
    cached = CachedChatModel(model, folder, budget_usd=1, identity=identity)
    for request in requests:
        asyncio.run(cached.complete(request))
    cached.close()


def read_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def count_kept(folder: Path) -> tuple[int, int]:
    with closing(sqlite3.connect(folder / FILE_NAME)) as store:
        answers, asked = (
            store.execute(f"select count(*) from {table}").fetchone()[0]  # noqa: S608 - fixed
            for table in ("answers", "asked")
        )
    return answers, asked


def test_a_short_question_is_forgotten_of_every_model_server_and_prompt(tmp_path):
    keep(tmp_path, Student("teacher"), ask(SHORT), ask(SHORT, "an older page"), identity="eu")
    keep(tmp_path, Student("teacher"), ask(SHORT), identity="us")
    keep(tmp_path, Student("compact@3f9c"), ask(SHORT, seed=4))
    keep(tmp_path, Student("teacher", "stays"), ask(OTHER))
    assert count_kept(tmp_path) == (5, 5)
    assert b"canary" in read_bytes(tmp_path)
    assert forget_answers(tmp_path, asked=[SHORT], quotes=[]) == 4
    assert count_kept(tmp_path) == (1, 1)
    assert b"canary" not in read_bytes(tmp_path)
    assert forget_answers(tmp_path, asked=[SHORT], quotes=[]) == 0


@pytest.mark.parametrize("quote", ['is "Zoë" in C:\\home', "a plain one"])
def test_an_answer_that_quotes_is_forgotten_however_it_is_escaped(tmp_path, quote):
    for number, answer in enumerate((f"It asks: {quote}!", json.dumps([quote]), "stays")):
        keep(tmp_path, Student(f"judge-{number}", answer), ask(f"Judge {number}"))
    assert forget_answers(tmp_path, asked=[], quotes=[quote]) == 2
    assert count_kept(tmp_path) == (1, 1)


def test_a_store_made_before_questions_were_noted_is_searched_for_quotes(tmp_path):
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as store, store:
        store.execute("create table answers (key text primary key, answer text, kept_at text)")
        store.execute("insert into answers values ('k', 'It asks: canary', null)")
    assert forget_answers(tmp_path, asked=[SHORT], quotes=["canary"]) == 1


@pytest.mark.parametrize("store", ["answers", "vectors"])
def test_a_reader_that_holds_the_log_is_told_of_and_the_next_time_mends_it(
    tmp_path, monkeypatch, store
):
    monkeypatch.setattr(erasing, "LOCK_SECONDS", 0.05)
    if store == "answers":
        keep(tmp_path, Student("teacher"), ask(SHORT))
        file, canary = tmp_path / FILE_NAME, b"canary-answer"
        forget = lambda: forget_answers(tmp_path, asked=[SHORT], quotes=[])  # noqa: E731
    else:
        file, canary = tmp_path / "e0.sqlite", np.float32([0.6, 0.8]).tobytes()
        kept = VectorStore(file, dimension=2)
        kept.write({SHORT: np.float32([0.6, 0.8])})
        kept.close()
        forget = lambda: forget_vectors(tmp_path, [SHORT])  # noqa: E731
    with closing(sqlite3.connect(file)) as reader:
        reader.execute("begin")
        assert reader.execute(f"select count(*) from {store}").fetchone() == (1,)  # noqa: S608
        with pytest.raises(NotErasedError, match=f"{file.name}.*still holds"):
            forget()
        assert canary in read_bytes(tmp_path)
    assert forget() == 0
    assert canary not in read_bytes(tmp_path)


def test_nothing_is_forgotten_of_stores_that_are_not_there_or_still_empty(tmp_path):
    assert forget_answers(tmp_path, asked=[SHORT], quotes=[SHORT]) == 0
    assert forget_vectors(tmp_path, [SHORT]) == 0
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "e0.sqlite").touch()  # as another process leaves it for a moment
    assert forget_vectors(tmp_path, [SHORT]) == 0


def test_a_damaged_store_is_named(tmp_path):
    (tmp_path / "e0.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(NotErasedError, match=r"e0\.sqlite.*not a database"):
        forget_vectors(tmp_path, [SHORT])
