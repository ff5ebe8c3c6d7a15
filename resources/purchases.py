"""What was ever paid for model answers: the kept ones, summed.

An answer is never bought twice, so what is kept is what was bought. Belongs here: the sum. Does not
belong here: keeping answers (`answer_store`), a run's budget (`spending`).
"""

from collections.abc import Sequence
from pathlib import Path

from resources.answer_store import AnswerStore


class Purchases:
    """The bought answers of a home, of the models that ask money for them.

    Args:
        folder: of the kept answers.
        models: whose answers count: a local student's carry a price and cost nothing.
    """

    def __init__(self, folder: Path, models: Sequence[str]) -> None:
        self._store = AnswerStore(folder)
        self._models = tuple(models)

    def total_usd(self) -> float:
        """Return the price of every answer kept of these models, in US dollars."""
        try:
            return self._store.sum_field("cost_usd", {"model": self._models})
        finally:
            self._store.close()
