"""Chat models by provider, with a cache that never buys an answer twice and a budget that holds.

Belongs here: connecting, caching, metering. Does not belong here: prompts, what an answer is good
for.
"""

import asyncio
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakKeyDictionary

from serving.errors import BudgetExceededError, InvalidInputError, UnderstudyError
from serving.files import write_text_atomically
from serving.hashing import content_hash
from serving.models.openai_chat import connect, connect_in_process
from serving.models.protocols import ChatModel, ChatRequest, Completion, Embedder, Price

if TYPE_CHECKING:
    from fastapi import FastAPI

CHARS_PER_TOKEN = 3.0
"""A low estimate for English, so that a call's cost is over- rather than underestimated."""

_Flights: TypeAlias = "dict[Path, asyncio.Future[Completion | None]]"
"""The calls under way, by the file their answer goes to; None: the asker was cancelled."""


@dataclass
class SpendMeter:
    """What a run has paid, and the limit it must stay under (US dollars)."""

    budget_usd: float
    spent_usd: float = 0.0
    bought_count: int = 0
    reused_count: int = 0
    reserved_usd: float = field(default=0.0, repr=False)


class AnswerNotKeptError(UnderstudyError):
    """An answer was bought and could not be written; no `ModelError`, which a run would survive."""


class CachedChatModel:
    """A chat model whose answers are kept on disk by content key and whose spending is capped.

    An answer is on disk before it is returned, so an interrupt loses at most the calls in flight;
    equal requests in flight are one call.

    Args:
        inner: who answers what is not kept yet.
        folder: of the kept answers; several models may share it.
        budget_usd: what this object may spend.
        identity: what decides an answer beside the model's name and the request, such as where the
            model is served (`identify_provider`). Empty: the name says it all.
    """

    def __init__(
        self, inner: ChatModel, folder: Path, *, budget_usd: float, identity: str = ""
    ) -> None:
        self._inner = inner
        self._folder = folder
        self._identity = identity
        self._in_flight: WeakKeyDictionary[asyncio.AbstractEventLoop, _Flights] = (
            WeakKeyDictionary()
        )
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
            AnswerNotKeptError: the answer was bought, and the disk did not take it.
            InvalidInputError: the kept answer is damaged.
        """
        path = self._path(request)
        # Futures belong to the loop that made them: other loops do not wait for this one's calls.
        flights = self._in_flight.setdefault(asyncio.get_running_loop(), {})
        while (flight := flights.get(path)) is not None:
            # Shielded: who stops waiting must not cancel the answer of the others.
            if (shared := await asyncio.shield(flight)) is not None:
                self.meter.reused_count += 1
                return replace(shared, is_cached=True)
        if path.exists():
            self.meter.reused_count += 1
            return _read(path, self.price)
        flight = flights[path] = asyncio.get_running_loop().create_future()
        try:
            completion = await self._buy(request, path)
        except BaseException as error:
            _land_failure(flight, error)
            raise
        else:
            flight.set_result(completion)
            return completion
        finally:
            del flights[path]

    async def _buy(self, request: ChatRequest, path: Path) -> Completion:
        estimate = self._estimate_usd(request)
        self._check_budget(estimate)
        self.meter.reserved_usd += estimate
        try:
            completion = await self._inner.complete(request)
        finally:
            self.meter.reserved_usd -= estimate
        # Counted first: it is paid for, whatever the disk says next.
        self.meter.spent_usd += completion.cost_usd
        self.meter.bought_count += 1
        text = json.dumps(asdict(completion), ensure_ascii=False, indent=1)
        try:
            write_text_atomically(path, text)
        except OSError as error:
            raise AnswerNotKeptError(
                f"keeping an answer of {self.name} that was bought for {completion.cost_usd:.4f} "
                "US dollars",
                expected=f"to write {path}",
                found=f"{error.strerror or error} ({_describe_free_space(path)})",
                next_step="make room or mend the permissions, and run again: this answer is bought "
                "once more, those before it are kept",
            ) from error
        return completion

    def _check_budget(self, estimate: float) -> None:
        committed = self.meter.spent_usd + self.meter.reserved_usd
        if committed + estimate > self.meter.budget_usd:
            raise BudgetExceededError(
                f"asking {self.name}",
                expected=f"the run to stay under budget_usd {self.meter.budget_usd:.2f}",
                found=f"{self.meter.spent_usd:.4f} spent and up to {estimate:.4f} for this call",
                next_step="raise the budget in the config and run again: "
                "answers already bought are kept and not bought again",
            )

    def _path(self, request: ChatRequest) -> Path:
        key = request.content_key(self.name)
        if self._identity:
            key = content_hash(self._identity, key, digits=32)
        return self._folder / key[:2] / f"{key}.json"

    def _estimate_usd(self, request: ChatRequest) -> float:
        characters = sum(len(m["content"]) for m in request.messages)
        return self.price.cost_usd(int(characters / CHARS_PER_TOKEN), request.max_tokens)


def _land_failure(flight: "asyncio.Future[Completion | None]", error: BaseException) -> None:
    """Fail those who wait as well, unless only the asker was cancelled: then one of them asks."""
    if isinstance(error, Exception):
        flight.set_exception(error)
        flight.exception()  # read once, so that a failure nobody waits for is not logged as lost
    else:
        flight.set_result(None)


def _read(path: Path, price: Price) -> Completion:
    """Read a kept answer; it costs what it would cost today, as a new one would."""
    try:
        kept = Completion(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InvalidInputError(
            f"reading the kept answer {path}",
            expected="the JSON of one answer",
            found=f"{type(error).__name__}: {error}",
            next_step="remove that file: the answer is bought again",
        ) from error
    cost_usd = price.cost_usd(kept.prompt_tokens, kept.completion_tokens)
    return replace(kept, cost_usd=cost_usd, is_cached=True)


def _describe_free_space(path: Path) -> str:
    try:
        existing = next(parent for parent in path.parents if parent.exists())
        return f"{shutil.disk_usage(existing).free} bytes free"
    except (OSError, StopIteration):
        return "free space unknown"


def identify_provider(
    *, provider: str, base_url: str | None, embedder: "Callable[[], Embedder]"
) -> str:
    """Return what decides an answer beside the model's name: who serves it, or what it is made of.

    Args:
        provider: `extractive` or `openai`, as in the configuration.
        base_url: of an OpenAI-compatible server; two servers may give one name to two models.
        embedder: asked only for `extractive`, whose answers are decided by vectors and by code.
    """
    if provider != "extractive":
        return f"{provider} {(base_url or '').rstrip('/')}"
    from serving.models.extractive import EXTRACTIVE_VERSION

    return f"{provider} {EXTRACTIVE_VERSION} {embedder().fingerprint}"


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
