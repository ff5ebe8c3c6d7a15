"""A draft costs what its pieces cost, however many come."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import pytest

from serving.errors import UpstreamError
from serving.models.protocols import ChatRequest, Completion
from serving.pipeline import drafting
from serving.pipeline.drafting import LONGEST_DRAFT_CHARS, Draft
from serving.pipeline.prompt import PromptFormat, read_answer
from tests.serving.fakes import HITS, CannedChatModel, make_engine
from tests.serving.running import run_app


class Reader:
    def __init__(self) -> None:
        self.shown: list[str] = []

    def show(self, text: str) -> None:
        self.shown.append(text)

    def start_over(self) -> None:
        self.shown.clear()


@dataclass
class EndlessModel(CannedChatModel):
    """Writes small pieces until nobody takes them any more, or a test would never end."""

    piece: str = "word "
    given: int = 0

    async def stream(self, request: ChatRequest, on_text: Callable[[str], None]) -> Completion:
        for piece in repeat(self.piece, 10 * LONGEST_DRAFT_CHARS // len(self.piece)):
            self.given += len(piece)
            on_text(piece)
        return await self.complete(request)


@pytest.mark.parametrize("piece", ["word ", "[", " ", "."])
async def test_an_endless_stream_is_left_and_the_teacher_answers(
    tmp_path: Path, piece: str
) -> None:
    student = EndlessModel("s", piece=piece)
    engine = make_engine(student=student, teacher=CannedChatModel("t"))
    async with run_app(engine, tmp_path) as running:
        _, events = await running.stream()
        (trace,) = running.traces()
    assert LONGEST_DRAFT_CHARS < student.given <= LONGEST_DRAFT_CHARS + len(piece)
    name, answer = events[-1]
    assert (name, answer["served_by"], answer["verdict"]) == ("answer", "teacher", "valid")
    assert str(LONGEST_DRAFT_CHARS) in trace["attempts"][0]["error"]


def test_what_is_longer_than_any_answer_may_stand_on_the_bill() -> None:
    draft = Draft(HITS, PromptFormat(), Reader())
    draft.take("a" * LONGEST_DRAFT_CHARS)
    with pytest.raises(UpstreamError, match=str(LONGEST_DRAFT_CHARS)) as error:
        draft.take("a")
    assert error.value.may_be_billed


@pytest.mark.parametrize("piece", ["word ", " ", ".", ". "])
def test_the_start_alone_is_looked_at_for_a_refusal(
    monkeypatch: pytest.MonkeyPatch, piece: str
) -> None:
    looked_at: list[int] = []

    class Word(str):
        __slots__ = ()

        def startswith(self, start: str) -> bool:  # type: ignore[override]
            looked_at.append(len(start))
            return str(self).startswith(start)

    monkeypatch.setattr(drafting, "REFUSAL_WORD", Word(drafting.REFUSAL_WORD))
    reader = Reader()
    draft = Draft(HITS, PromptFormat(), reader)
    for _ in range(1000):
        draft.take(piece)
    draft.finish()
    assert "".join(reader.shown) == piece * 1000
    assert max(looked_at) <= 2 * len(drafting.REFUSAL_WORD)


@pytest.mark.parametrize("text", ["  REFUSE..." + " " * 9, "REFUSE ..", "\n\nrefuse.", "..REFUSE"])
def test_a_refusal_is_what_the_finished_answer_says_it_is(text: str) -> None:
    reader = Reader()
    draft = Draft(HITS, PromptFormat(), reader)
    for character in text:
        draft.take(character)
    draft.finish()
    assert (reader.shown == []) == read_answer(text, HITS, PromptFormat()).refused
