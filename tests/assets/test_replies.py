"""Asking again when a reply cannot be read."""

import asyncio

import pytest

from assets.replies import MAXIMUM_DRAWS, ask_until_read
from serving.errors import InvalidInputError
from serving.models.protocols import ChatRequest
from tests.serving.fakes import CannedChatModel

REQUEST = ChatRequest(messages=({"role": "user", "content": "why"},), seed=7)


def read(text: str) -> str:
    if text == "broken":
        raise InvalidInputError("reading", expected="words", found=text, next_step="ask again")
    return text.upper()


@pytest.mark.parametrize(
    ("broken_seeds", "found", "asked"),
    [((), "FINE", [7]), ((7,), "FINE", [7, 8]), ((7, 8, 9), None, [7, 8, 9])],
)
def test_other_draws_follow_until_one_is_read(broken_seeds, found, asked):
    model = CannedChatModel("m", lambda r: "broken" if r.seed in broken_seeds else "fine")
    assert asyncio.run(ask_until_read(model, REQUEST, read)) == found
    assert [request.seed for request in model.requests] == asked
    assert len(asked) <= MAXIMUM_DRAWS
