"""Replies that a program must read: ask again, with another draw, when one cannot be read.

A cache keeps every reply before it is read, so the same request would meet the same broken reply on
each rerun. Belongs here: the asking. Does not belong here: prompts and readers (`rewriting`,
`judging`), what is made of a reply that nobody could read.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from serving.errors import InvalidInputError
from serving.models.protocols import ChatModel, ChatRequest

MAXIMUM_DRAWS = 3

T = TypeVar("T")


async def ask_until_read(
    model: ChatModel, request: ChatRequest, read: Callable[[str], T]
) -> T | None:
    """Return what `read` makes of the reply, or None when no draw could be read.

    Args:
        model: who is asked.
        request: asked with its own seed first, then with the next ones.
        read: raises `InvalidInputError` for text it cannot read.
    """
    for draw in range(MAXIMUM_DRAWS):
        completion = await model.complete(replace(request, seed=request.seed + draw))
        with suppress(InvalidInputError):
            return read(completion.text)
    return None
