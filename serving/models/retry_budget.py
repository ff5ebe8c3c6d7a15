"""A bound on retries: a server in trouble must not get twice the calls because it is in trouble.

Belongs here: the count. Does not belong here: which failures are asked again (`faults`, `asking`).
"""

RETRY_RATIO = 0.1
LARGEST_BALANCE = 10.0
"""Calm hours pay for at most this many retries at once."""


class RetryBudget:
    """Allows one retry for every ten calls, the first of them at once."""

    def __init__(self, ratio: float = RETRY_RATIO) -> None:
        self._ratio = ratio
        self._balance = 1.0 - ratio

    def count_call(self) -> None:
        """Count a call that is no retry."""
        self._balance = min(LARGEST_BALANCE, self._balance + self._ratio)

    def take(self) -> bool:
        """Return whether a retry may be made now, and count it."""
        # Sums of tenths fall short of 1 by rounding.
        if self._balance < 1.0 - 1e-9:
            return False
        self._balance -= 1.0
        return True
