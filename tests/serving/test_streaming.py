"""Readers who ask for events get the draft, its correction and the verdict, and the same trace."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import UpstreamError
from serving.models.protocols import ChatRequest, Completion
from serving.pipeline.drafting import Draft
from serving.pipeline.prompt import PromptFormat, read_answer
from serving.streaming import wants_stream
from tests.serving.fakes import GOOD, HITS, INVALID, CannedChatModel, make_engine
from tests.serving.running import (
    QUESTION,
    Running,
    listen,
    read_events,
    run_app,
    wait_until_ready,
)

DOWN = UpstreamError("asking", expected="200", found="503", next_step="wait")


@dataclass
class TypingModel(CannedChatModel):
    """A canned model that hands its text on a few characters at a time."""

    pause: Callable[[int], Any] | None = None
    breaks_after: int | None = None

    async def stream(self, request: ChatRequest, on_text: Callable[[str], None]) -> Completion:
        done = await self.complete(request)
        for number, start in enumerate(range(0, len(done.text), 3)):
            if number == self.breaks_after:
                raise DOWN
            on_text(done.text[start : start + 3])
            if self.pause is not None:
                await self.pause(number)
        return done


def drafted(events: list[tuple[str, Any]]) -> str:
    text = ""
    for name, data in events:
        text = "" if name == "correction" else text + data.get("text", "") * (name == "draft")
    return text


async def test_a_draft_grows_into_the_answer(tmp_path: Path) -> None:
    engine = make_engine(student=TypingModel("s"))
    async with run_app(engine, tmp_path) as running:
        response, events = await running.stream()
        (trace,) = running.traces()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-trace-id"] == trace["trace_id"]
    assert [name for name, _ in events[:-1]] == ["draft"] * (len(events) - 1)
    assert len(events) > 5
    name, answer = events[-1]
    assert (name, answer["verdict"], answer["trace_persisted"]) == ("answer", "valid", True)
    assert drafted(events) == answer["answer"] == trace["answer"]
    assert (answer["served_by"], answer["trace_id"]) == ("student", trace["trace_id"])


async def test_the_final_event_comes_after_the_trace_is_on_disk(tmp_path: Path) -> None:
    stored: list[int] = []
    engine = make_engine(student=TypingModel("s"))
    async with run_app(engine, tmp_path) as running:
        _, events = await running.stream()
        stored.append(len(running.traces()))
    assert (events[-1][1]["trace_persisted"], stored) == (True, [1])


@pytest.mark.parametrize(
    ("student", "teacher", "served_by", "refused"),
    [
        (TypingModel("s", INVALID), TypingModel("t"), "teacher", False),
        (TypingModel("s", INVALID), CannedChatModel("t"), "teacher", False),
        (TypingModel("s", breaks_after=3), TypingModel("t"), "teacher", False),
        (TypingModel("s", INVALID), TypingModel("t", INVALID), "teacher", True),
        (TypingModel("s", INVALID), CannedChatModel("t", DOWN), "student", True),
    ],
)
async def test_a_draft_that_is_replaced_is_taken_back(
    tmp_path: Path, student: Any, teacher: Any, served_by: str, refused: bool
) -> None:
    engine = make_engine(student=student, teacher=teacher, phase="switch")
    async with run_app(engine, tmp_path) as running:
        _, events = await running.stream()
    name, answer = events[-1]
    names = [name for name, _ in events]
    assert (name, answer["served_by"], answer["refused"]) == ("answer", served_by, refused)
    assert "correction" in names
    if isinstance(teacher, TypingModel) and not refused:
        assert drafted(events) == answer["answer"]
    else:
        assert drafted(events) == ""


async def test_a_problem_ends_the_stream_as_an_event(tmp_path: Path) -> None:
    engine = make_engine(student=CannedChatModel("s"), teacher=CannedChatModel("t", DOWN))
    async with run_app(engine, tmp_path, allow_prefer_quality=True) as running:
        response, events = await running.stream(prefer_quality=True)
        (trace,) = running.traces()
    ((name, problem),) = events
    assert (response.status_code, name) == (200, "problem")
    assert problem["type"] == "urn:understudy:problem:upstream-failed"
    assert (problem["instance"], problem["trace_persisted"]) == (trace["trace_id"], True)


async def test_what_admission_refuses_is_a_status_not_an_event(tmp_path: Path) -> None:
    async with run_app(make_engine(), tmp_path) as running:
        response, _ = await running.stream(prefer_quality=True)
    assert response.status_code == 403


async def test_streams_take_places_and_give_them_back(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def hold(number: int) -> None:
        if number == 2:
            await gate.wait()

    student = TypingModel("s", pause=hold)
    async with run_app(make_engine(student=student), tmp_path, max_concurrency=2) as running:
        streams = [asyncio.create_task(running.stream()) for _ in range(2)]
        while len(student.requests) < 3:  # the warm-up's, and both
            await asyncio.sleep(0.005)
        refused = await running.ask()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        gate.set()
        for stream in streams:
            assert (await stream)[1][-1][0] == "answer"
        assert (await running.ask()).status_code == 200


async def test_over_a_socket_words_arrive_while_the_rest_is_written(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def hold(number: int) -> None:
        if number == 0 and len(student.requests) > 1:
            await gate.wait()

    student = TypingModel("s", pause=hold)
    async with (
        listen(make_engine(student=student), tmp_path) as port,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        await wait_until_ready(client)
        headers = {"accept": "text/event-stream"}
        async with client.stream("POST", "/ask", json=QUESTION, headers=headers) as response:
            parts = response.aiter_text()
            text = await anext(parts)
            # The model is held until the first words were read here.
            assert read_events(text)[0][0] == "draft"
            gate.set()
            async for part in parts:
                text += part
    name, answer = read_events(text)[-1]
    assert (name, answer["trace_persisted"]) == ("answer", True)
    assert drafted(read_events(text)) == answer["answer"]


async def test_a_reader_who_leaves_is_traced_and_gives_the_place_back(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def hold(number: int) -> None:
        if number == 0 and len(student.requests) > 1:
            await gate.wait()

    student = TypingModel("s", pause=hold)
    engine = make_engine(student=student)
    async with (
        listen(engine, tmp_path, max_concurrency=1) as port,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        await wait_until_ready(client)
        headers = {"accept": "text/event-stream"}
        async with client.stream("POST", "/ask", json=QUESTION, headers=headers) as response:
            await anext(response.aiter_text())
        gate.set()
        for _ in range(400):
            answer = await client.post("/ask", json=QUESTION)
            if answer.status_code == 200:
                break
            await asyncio.sleep(0.005)
    traces = Running(client, tmp_path).traces()
    assert [t["outcome"] for t in traces] == ["answered"] * 2
    assert traces[1]["trace_id"] == answer.json()["trace_id"]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, False),
        ("*/*", False),
        ("application/json", False),
        ("text/event-stream", True),
        ("text/event-stream, application/json", True),
        ("application/json, text/event-stream;q=0.5", False),
        ("Text/Event-Stream ; q=0", False),
        ("text/event-stream;q=x", False),
    ],
)
def test_events_are_sent_to_whom_they_are_no_worse_than_json(
    accept: str | None, expected: bool
) -> None:
    assert wants_stream(accept) == expected


class Reader:
    def __init__(self) -> None:
        self.shown: list[str] = []

    def show(self, text: str) -> None:
        self.shown.append(text)

    def start_over(self) -> None:
        self.shown.clear()


@given(
    text=st.lists(
        st.sampled_from(["REFUSE", ".", "[1]", "[2]", "[9]", "[docs:a/1]", " ", "\n", "Quote", "["])
    ).map("".join),
    cuts=st.lists(st.integers(0, 80), max_size=10),
)
def test_a_draft_is_the_answer_however_it_is_cut(text: str, cuts: list[int]) -> None:
    reader, prompt = Reader(), PromptFormat()
    draft = Draft(HITS, prompt, reader)
    edges = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    for start, end in pairwise(edges):
        draft.take(text[start:end])
    draft.finish()
    final = read_answer(text, HITS, prompt)
    assert "".join(reader.shown).strip() == final.text
    assert not any("[1]" in piece for piece in reader.shown)


def test_nothing_of_a_refusal_is_shown_and_nothing_of_half_a_citation() -> None:
    reader = Reader()
    draft = Draft(HITS, PromptFormat(), reader)
    for piece in ("RE", "FU", "SE"):
        draft.take(piece)
    draft.finish()
    assert reader.shown == []
    draft = Draft(HITS, PromptFormat(), reader)
    draft.take("It is so [")
    assert reader.shown == ["It is so "]
    draft.take("1] indeed")
    assert "".join(reader.shown) == f"It is so [{HITS[0].chunk_id}] indeed"
    assert GOOD.endswith("[1]")
