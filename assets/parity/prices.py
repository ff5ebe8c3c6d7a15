"""Prices as the config states them: one that was left out is not the same as one of zero.

A model without a stated price would look free in every table. Belongs here: telling missing prices
from stated zeros, in words. Does not belong here: what anything costs (`costs`, `economics`).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from serving.models.protocols import ServedBy

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


def find_unpriced(prices: Mapping[str, StatedPrice], student: str) -> frozenset[ServedBy]:
    """Return the models whose calls cost nobody knows what: their token price is not stated."""
    sections: dict[ServedBy, str] = {"teacher": TEACHER, "student": name_section(student)}
    return frozenset(
        model
        for model, section in sections.items()
        if prices.get(section, StatedPrice()).is_missing
    )


def find_free(prices: Mapping[str, StatedPrice], student: str) -> frozenset[ServedBy]:
    """Return the models whose calls cost nothing, since the config says so."""
    sections: dict[ServedBy, str] = {"teacher": TEACHER, "student": name_section(student)}
    return frozenset(
        model for model, section in sections.items() if prices.get(section, StatedPrice()).is_zero
    )


def explain_outdated(models: Collection[ServedBy], *, is_paid_by_hour: bool) -> str | None:
    """Return why stored answers say nothing of money; None where all were made at a known price.

    Args:
        models: those with answers that cost 0 and are not stated to be free.
        is_paid_by_hour: whether the student costs its machine's hours, and no tokens.
    """
    counted = [model for model in models if model == TEACHER or not is_paid_by_hour]
    if not counted:
        return None
    return (
        f"answers of the {' and the '.join(counted)} were stored at a cost of 0, before the config "
        "stated a price: build parity/arm_answers again"
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
