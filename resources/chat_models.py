"""Chat models by provider, with a cache that never buys an answer twice and a budget that holds.

Belongs here: connecting, caching, metering. Does not belong here: prompts, what an answer is good
for.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from serving.errors import BudgetExceededError
from serving.files import write_text_atomically
from serving.models.openai_chat import connect, connect_in_process
from serving.models.protocols import ChatModel, ChatRequest, Completion, Price

if TYPE_CHECKING:
    from fastapi import FastAPI

CHARS_PER_TOKEN = 3.0
"""A low estimate for English, so that a call's cost is over- rather than underestimated."""


@dataclass
class SpendMeter:
    """What a run has paid, and the limit it must stay under (US dollars)."""

    budget_usd: float
    spent_usd: float = 0.0
    bought_count: int = 0
    reused_count: int = 0
    reserved_usd: float = field(default=0.0, repr=False)


class CachedChatModel:
    """A chat model whose answers are kept on disk by content key and whose spending is capped.

    An answer is on disk before it is returned, so an interrupt loses at most the calls in flight.
    """

    def __init__(self, inner: ChatModel, folder: Path, *, budget_usd: float) -> None:
        self._inner = inner
        self._folder = folder
        self.meter = SpendMeter(budget_usd=budget_usd)

    @property
    def name(self) -> str:
        """The inner model's pinned identity."""
        return self._inner.name

    @property
    def price(self) -> Price:
        """The inner model's price."""
        return self._inner.price

    async def complete(self, request: ChatRequest) -> Completion:
        """Return the kept answer, or buy one and keep it.

        Raises:
            BudgetExceededError: this call could spend past the budget; it was not made.
        """
        path = self._path(request)
        if path.exists():
            self.meter.reused_count += 1
            return _read(path)
        estimate = self._estimate_usd(request)
        committed = self.meter.spent_usd + self.meter.reserved_usd
        if committed + estimate > self.meter.budget_usd:
            raise BudgetExceededError(
                f"asking {self.name}",
                expected=f"the run to stay under budget_usd {self.meter.budget_usd:.2f}",
                found=f"{self.meter.spent_usd:.4f} spent and up to {estimate:.4f} for this call",
                next_step="raise the budget in the config and run again: "
                "answers already bought are kept and not bought again",
            )
        self.meter.reserved_usd += estimate
        try:
            completion = await self._inner.complete(request)
        finally:
            self.meter.reserved_usd -= estimate
        write_text_atomically(path, json.dumps(asdict(completion), ensure_ascii=False, indent=1))
        self.meter.spent_usd += completion.cost_usd
        self.meter.bought_count += 1
        return completion

    def _path(self, request: ChatRequest) -> Path:
        key = request.content_key(self.name)
        return self._folder / key[:2] / f"{key}.json"

    def _estimate_usd(self, request: ChatRequest) -> float:
        characters = sum(len(m["content"]) for m in request.messages)
        return self.price.cost_usd(int(characters / CHARS_PER_TOKEN), request.max_tokens)


def _read(path: Path) -> Completion:
    stored = json.loads(path.read_text(encoding="utf-8"))
    return Completion(**{**stored, "is_cached": True})


def connect_chat_model(
    *,
    provider: str,
    model: str,
    base_url: str | None,
    api_key: str | None,
    price: Price,
    timeout_seconds: float,
    embedded_app: "Callable[[], FastAPI]",
) -> ChatModel:
    """Return the chat model a config section names.

    `extractive` is the embedded teacher behind its ASGI app, spoken to by the same `openai` client
    as any server; `openai` is any OpenAI-compatible server.
    """
    if provider == "extractive":
        return connect_in_process(
            embedded_app(), model=model, price=price, timeout_seconds=timeout_seconds
        )
    return connect(
        base_url=base_url or "",
        api_key=api_key,
        model=model,
        price=price,
        timeout_seconds=timeout_seconds,
    )
