"""The strategy: what to do about a student, given what it saves and whether it is good enough.

Belongs here: that decision and its reason. Does not belong here: the sums (`economics`), the
quality (`releases/gate`).
"""

from typing import Literal

from assets.parity.economics import EconomicsTerms

Strategy = Literal["no_change", "collecting", "fallback_teacher", "distilled", "inconclusive"]
Quality = Literal["proven", "failed", "unproven"]


def choose_strategy(
    *,
    teacher_usd_per_month: float | None,
    saving_usd_per_month: float | None,
    terms: EconomicsTerms,
    example_count: int,
    quality: Quality,
) -> tuple[Strategy, str]:
    """Return what to do and why. A student that is good and saves nothing is not deployed.

    Where a price or a timing is missing (the sums are None) there is nothing to advise.
    """
    if teacher_usd_per_month is None or saving_usd_per_month is None:
        return "inconclusive", "a price or a timing is missing: nobody knows what the student saves"
    budget = terms.monthly_budget_usd
    if budget is not None and teacher_usd_per_month <= budget:
        return "no_change", (
            f"the teacher costs ${teacher_usd_per_month:,.0f} a month, within the budget of "
            f"${budget:,.0f}"
        )
    if saving_usd_per_month <= 0:
        return "no_change", (
            f"a student would cost ${-saving_usd_per_month:,.0f} a month more than it saves: do "
            "not deploy"
        )
    if example_count < terms.minimum_examples:
        return "collecting", (
            f"{example_count} labelled examples of at least {terms.minimum_examples}"
        )
    if quality != "proven":
        why = "failed its quality gate" if quality == "failed" else "has not proved its quality"
        return "fallback_teacher", f"the student {why}: the teacher answers everything"
    return "distilled", f"it saves ${saving_usd_per_month:,.0f} a month"
