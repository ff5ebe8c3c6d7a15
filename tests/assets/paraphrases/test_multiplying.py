"""From medoids to paraphrases."""

import asyncio
import json

from assets.paraphrases.multiplying import paraphrase_medoids
from tests.serving.fakes import CannedChatModel


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def advance(self, description: str, done: int, total: int, note: str = "") -> None:  # noqa: ARG002
        self.notes.append(note)


def multiply(answer, notes: Notes | None = None):
    teacher = CannedChatModel("teacher-1", answer)
    rows = asyncio.run(
        paraphrase_medoids(
            [("s1", "Why one?"), ("s2", "Why two?")],
            known_texts=["Why one?", "Why two?", "why three"],
            teacher=teacher,
            count=2,
            temperature=0.9,
            concurrency=2,
            progress=notes or Notes(),
        )
    )
    return teacher, rows


def test_what_is_known_is_dropped_and_the_rest_keeps_its_parent():
    _, rows = multiply(lambda _: json.dumps({"paraphrases": ["Why THREE?", "How so?", "More?"]}))
    assert [(row.seed_id, row.text) for row in rows] == [("s1", "How so?")]


def test_a_medoid_without_a_readable_reply_yields_nothing_and_is_counted():
    def answer(request) -> str:
        is_first = "Why one?" in request.messages[-1]["content"]
        return "Sure! 1." if is_first else json.dumps({"paraphrases": ["How so?"]})

    notes = Notes()
    teacher, rows = multiply(answer, notes)
    assert [row.seed_id for row in rows] == ["s2"]
    assert len({request.seed for request in teacher.requests}) == 3
    assert notes.notes[-1] == "1 without a readable reply"
