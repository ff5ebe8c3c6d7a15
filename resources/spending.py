"""What a model costs a run, and the limit that holds before money is spent.

Belongs here: reserving, counting, refusing. Does not belong here: prices (`protocols.Price`), which
answers are kept (`chat_models`).
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from serving.errors import BudgetExceededError
from serving.models.protocols import ChatRequest, Price

TOKENS_PER_MESSAGE = 16
"""Room for what a chat template puts around a message: role and end markers, 3 to 7 tokens each."""

TOKENS_PER_SCHEMA = 512
"""Room for what a provider tells its model about a schema: none says how long that is."""


@dataclass
class SpendMeter:
    """What a run has paid, and the limit it must stay under (US dollars).

    A call reserves the most it can cost before it is made. One that failed after the server may
    have begun to answer stays counted at that: `lost_usd` is held against the budget like money
    spent, since it may stand on the bill.
    """

    budget_usd: float
    spent_usd: float = 0.0
    lost_usd: float = 0.0
    bought_count: int = 0
    reused_count: int = 0
    lost_count: int = 0
    reserved_usd: float = field(default=0.0, repr=False)
    _calls: int = field(default=0, repr=False)
    _settled: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @property
    def remaining_usd(self) -> float:
        """What is left, once all that is or may be on the bill is paid."""
        return self.budget_usd - self.spent_usd - self.lost_usd

    @asynccontextmanager
    async def reserve(self, estimate_usd: float, *, name: str) -> AsyncIterator[None]:
        """Hold back what a call can cost at most, while it is made.

        When the calls under way leave no room, the first of them to end is awaited: its real cost
        is mostly far less, so the budget is used up to less than one call's most.

        Raises:
            BudgetExceededError: the call could spend past the budget.
        """
        while self.remaining_usd - self.reserved_usd < estimate_usd:
            if not self._calls:
                raise self._budget_exceeded(estimate_usd, name)
            await self._settled.wait()
        self._calls += 1
        self.reserved_usd += estimate_usd
        try:
            yield
        except BaseException as failure:
            # Without a verdict (a cancelled call, a bug) the request was out: it may be billed.
            if getattr(failure, "may_be_billed", True):
                self.lost_usd += estimate_usd
                self.lost_count += 1
            raise
        finally:
            self._calls -= 1
            self.reserved_usd = self.reserved_usd - estimate_usd if self._calls else 0.0
            self._settled.set()
            self._settled = asyncio.Event()

    def count_bought(self, cost_usd: float) -> None:
        """Count an answer that was paid for."""
        self.spent_usd += cost_usd
        self.bought_count += 1

    def describe(self) -> str:
        """Return what was spent of the budget, bought and reused, as one short line."""
        lost = f", {self.lost_usd:.2f} in {self.lost_count} lost calls" if self.lost_count else ""
        return (
            f"${self.spent_usd:.2f} of {self.budget_usd:.2f}{lost} · "
            f"{self.bought_count} bought, {self.reused_count} reused"
        )

    def _budget_exceeded(self, estimate_usd: float, name: str) -> BudgetExceededError:
        lost = (
            f" and {self.lost_usd:.4f} held back for {self.lost_count} failed calls that may be "
            "billed"
            if self.lost_count
            else ""
        )
        return BudgetExceededError(
            f"asking {name}",
            expected=f"the run to stay under budget_usd {self.budget_usd:.2f}",
            found=f"{self.spent_usd:.4f} spent on {self.bought_count} answers{lost}, "
            f"{max(0.0, self.remaining_usd):.4f} left and up to {estimate_usd:.4f} for this call",
            next_step="raise the budget in the config and run again: "
            "answers already bought are kept and not bought again",
        )


def estimate_most_usd(request: ChatRequest, price: Price) -> float:
    """Return the most a call can cost: a byte-level tokenizer makes no more tokens than bytes.

    English has about four bytes a token, other scripts down to one; a limit that must hold in all
    of them takes one. A schema that the answer has to keep to is billed as part of the prompt.
    """
    prompt_tokens = sum(
        len(message["content"].encode()) + TOKENS_PER_MESSAGE for message in request.messages
    )
    if request.response_format is not None:
        prompt_tokens += len(json.dumps(request.response_format)) + TOKENS_PER_SCHEMA
    return price.cost_usd(prompt_tokens, request.max_tokens)
