"""A cache that never buys an answer twice, within a budget that holds.

Belongs here: which request is bought, reused or waited for. Does not belong here: which provider
answers (`providers`), how answers lie on disk (`answer_store`), what they cost (`spending`),
patience with a server (`pacing`), prompts.
"""

import asyncio
import json
import logging
import shutil
import sqlite3
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeAlias
from weakref import WeakKeyDictionary

from resources.answer_store import AnswerStore
from resources.pacing import Pace
from resources.spending import SpendMeter, estimate_most_usd
from serving.errors import InvalidInputError, UnderstudyError
from serving.hashing import content_hash
from serving.models.protocols import ChatModel, ChatRequest, Completion, Price

_LOG = logging.getLogger(__name__)
_Flights: TypeAlias = "dict[str, asyncio.Future[Completion | None]]"
"""The calls under way, by the key of their answer; None: the asker was cancelled."""


class AnswerNotKeptError(UnderstudyError):
    """An answer was bought and could not be written; no `ModelError`, which a run would survive."""


class AnswersUnreadableError(UnderstudyError):
    """The kept answers cannot be read now, so nothing is bought: it may be there already."""


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
        pace: how many calls at once, and how often a failed one is made again. None: as the caller
            asks, once.
    """

    def __init__(
        self,
        inner: ChatModel,
        folder: Path,
        *,
        budget_usd: float,
        identity: str = "",
        pace: Pace | None = None,
    ) -> None:
        self._inner = inner
        self._store = AnswerStore(folder)
        self._identity = identity
        self._pace = pace
        self._in_flight: WeakKeyDictionary[asyncio.AbstractEventLoop, _Flights] = (
            WeakKeyDictionary()
        )
        self.meter = SpendMeter(budget_usd=budget_usd)

    @property
    def name(self) -> str:
        """The inner model's pinned identity."""
        return self._inner.name

    @property
    def dtype(self) -> str:
        """The numbers the inner model computes with, where that is known."""
        return str(getattr(self._inner, "dtype", "unknown"))

    @property
    def identity(self) -> str:
        """What decides an answer beside the name and the request; empty: nothing does."""
        return self._identity

    @property
    def price(self) -> Price:
        """The inner model's price."""
        return self._inner.price

    async def complete(self, request: ChatRequest) -> Completion:
        """Return the kept answer, or buy one and keep it.

        Raises:
            BudgetExceededError: this call could spend past the budget; it was not made.
            AnswerNotKeptError: the answer was bought, and the disk did not take it.
            AnswersUnreadableError: the store is locked, or may not be read.
            InvalidInputError: the kept answer is damaged.
        """
        key = self._key(request)
        # Futures belong to the loop that made them: other loops do not wait for this one's calls.
        flights = self._in_flight.setdefault(asyncio.get_running_loop(), {})
        while (flight := flights.get(key)) is not None:
            # Shielded: who stops waiting must not cancel the answer of the others.
            if (shared := await asyncio.shield(flight)) is not None:
                self.meter.reused_count += 1
                return replace(shared, is_cached=True)
        if (kept := self._find(key)) is not None:
            self.meter.reused_count += 1
            await self._note_asked(request, key)
            return kept
        flight = flights[key] = asyncio.get_running_loop().create_future()
        try:
            completion = await self._buy(request, key)
        except BaseException as error:
            _land_failure(flight, error)
            raise
        else:
            flight.set_result(completion)
            return completion
        finally:
            del flights[key]

    def find(self, request: ChatRequest) -> Completion | None:
        """Return the kept answer to a request, or None; nothing is bought.

        Raises:
            AnswersUnreadableError, InvalidInputError: as `complete`.
        """
        return self._find(self._key(request))

    def close(self) -> None:
        """Close the store; the next call opens it again."""
        self._store.close()

    async def _buy(self, request: ChatRequest, key: str) -> Completion:
        estimate = estimate_most_usd(request, self.price)

        async def attempt() -> Completion:
            # Each attempt reserves anew: a failed one may stand on the bill beside the next.
            async with self.meter.reserve(estimate, name=self.name):
                completion = await self._inner.complete(request)
                self.meter.count_bought(completion.cost_usd)
            return completion

        if self._pace is None:
            completion = await attempt()
        else:
            completion = await self._pace.insist(attempt, name=self.name)
        try:
            # Escaped, since a token can be half of a character, which UTF-8 cannot say.
            text = json.dumps(asdict(completion))
            await self._store.keep(key, text, asked=_read_asked(request))
        except (sqlite3.Error, OSError) as error:
            raise self._not_kept(completion, error) from error
        return completion

    async def _note_asked(self, request: ChatRequest, key: str) -> None:
        """Let a reused answer be forgotten by its question; a disk that is full loses no answer."""
        try:
            await self._store.note_asked(key, asked=_read_asked(request))
        except (sqlite3.Error, OSError) as error:
            _LOG.warning("what a kept answer of %s was asked was not noted: %s", self.name, error)

    def _find(self, key: str) -> Completion | None:
        """Read a kept answer; it costs what it would cost today, as a new one would."""
        try:
            text = self._store.find(key)
            if text is None:
                return None
            kept = Completion(**json.loads(text))
        except (sqlite3.OperationalError, OSError) as error:
            raise AnswersUnreadableError(
                f"reading the kept answers of {self.name}",
                expected=f"a file that can be read at {self._store.path}",
                found=f"{error} ({_describe_free_space(self._store.path)})",
                next_step="mend the permissions, make room or end the process that holds the file, "
                "and run again: nothing was bought, and the kept answers are still there",
            ) from error
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise InvalidInputError(
                f"reading a kept answer of {self.name}",
                expected="the JSON of one answer",
                found=f"{type(error).__name__}: {error} in {self._store.locate(key)}",
                next_step="remove that answer (a file, or the row of that key): it is bought "
                "again. A store that SQLite calls malformed: `sqlite3 answers.sqlite .recover`",
            ) from error
        cost_usd = self.price.cost_usd(kept.prompt_tokens, kept.completion_tokens)
        return replace(kept, cost_usd=cost_usd, is_cached=True)

    def _key(self, request: ChatRequest) -> str:
        key = request.content_key(self.name)
        return content_hash(self._identity, key, digits=32) if self._identity else key

    def _not_kept(self, completion: Completion, error: Exception) -> AnswerNotKeptError:
        return AnswerNotKeptError(
            f"keeping an answer of {self.name} that was bought for {completion.cost_usd:.4f} "
            "US dollars",
            expected=f"to write {self._store.path}",
            found=f"{error} ({_describe_free_space(self._store.path)})",
            next_step="make room or mend the permissions, and run again: this answer is bought "
            "once more, those before it are kept",
        )


def _land_failure(flight: "asyncio.Future[Completion | None]", error: BaseException) -> None:
    """Fail those who wait as well, unless only the asker was cancelled: then one of them asks."""
    if isinstance(error, Exception):
        flight.set_exception(error)
        flight.exception()  # read once, so that a failure nobody waits for is not logged as lost
    else:
        flight.set_result(None)


def _read_asked(request: ChatRequest) -> str:
    return request.messages[-1]["content"]


def _describe_free_space(path: Path) -> str:
    try:
        existing = next(parent for parent in path.parents if parent.exists())
        return f"{shutil.disk_usage(existing).free} bytes free"
    except (OSError, StopIteration):
        return "free space unknown"
