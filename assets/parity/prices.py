"""Prices as the config states them: one that was left out is not the same as one of zero.

A model without a stated price would look free in every table. Belongs here: telling missing prices
from stated zeros, in words. Does not belong here: what anything costs (`costs`, `economics`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

TEACHER = "teacher"


@dataclass(frozen=True, kw_only=True)
class StatedPrice:
    """US dollars per million tokens; None: the config does not say."""

    input_usd_per_mtok: float | None = None
    output_usd_per_mtok: float | None = None

    @property
    def is_missing(self) -> bool:
        """Whether a half of it is not stated: what is not stated is not known to be free."""
        return self.input_usd_per_mtok is None or self.output_usd_per_mtok is None

    @property
    def is_zero(self) -> bool:
        """Whether somebody said that the model costs nothing."""
        return self.input_usd_per_mtok == self.output_usd_per_mtok == 0


def find_missing_price(
    prices: Mapping[str, StatedPrice], student: str, *, is_paid_by_hour: bool
) -> str | None:
    """Return why nothing can be said of money; None where every price that counts is stated.

    Args:
        prices: by section of the config: `teacher`, `students.<name>`.
        student: the name of the student.
        is_paid_by_hour: whether the student costs its machine's hours, and no tokens.
    """
    counted = [TEACHER] if is_paid_by_hour else [TEACHER, name_section(student)]
    missing = [name for name in counted if prices.get(name, StatedPrice()).is_missing]
    if not missing:
        return None
    keys = " and ".join(f"`{name}.price`" for name in missing)
    return (
        f"the config does not state {keys} (input and output): what is not priced is not known to "
        "be free; state it, 0 if it is"
    )


def state_zeros(prices: Mapping[str, StatedPrice], student: str) -> tuple[str, ...]:
    """Return a sentence for each of the two models whose price is stated as 0."""
    return tuple(
        f"{label} price is stated as 0 in `{name}.price`: its calls count as free."
        for label, name in (("The teacher's", TEACHER), ("The student's", name_section(student)))
        if name in prices and prices[name].is_zero
    )


def name_section(student: str) -> str:
    """Return the section of the config that states a student's price."""
    return f"students.{student}"
