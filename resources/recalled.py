"""A model some of whose answers are known already: production has paid for them.

Belongs here: looking before asking. Does not belong here: which answers are known
(`assets/labels/production`), keeping them (`chat_models`).
"""

from collections.abc import Callable, Mapping
from functools import cached_property

from serving.models.protocols import ChatModel, ChatRequest, Completion, Price


class RecallingChatModel:
    """Answers from what is known by content key, and asks the inner model for the rest.

    Args:
        inner: who answers what is not known.
        recall: gives the known answers; called once, at the first question.
    """

    def __init__(self, inner: ChatModel, recall: Callable[[], Mapping[str, Completion]]) -> None:
        self._inner = inner
        self._recall = recall

    @property
    def name(self) -> str:
        """The inner model's pinned identity."""
        return self._inner.name

    @property
    def price(self) -> Price:
        """The inner model's price."""
        return self._inner.price

    async def complete(self, request: ChatRequest) -> Completion:
        """Return the known answer, which costs nothing here, or the inner model's."""
        known = self._known.get(request.content_key(self.name))
        return await self._inner.complete(request) if known is None else known

    @cached_property
    def _known(self) -> Mapping[str, Completion]:
        return self._recall()
