"""Economics: what distilling costs, what it saves, when it has paid for itself; "never" included.

Every result is a range: volume, utilisation and the measured saving are none of them known exactly.
Without a stated price there is no result. Belongs here: pure arithmetic on measured costs and
declared terms. Does not belong here: measuring (`costs`), whether a price was stated (`prices`),
what to do about it (`strategy`), drawing (`economics_chart`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import polars as pl

from assets import tables
from assets.parity.costs import MeasuredCosts
from assets.parity.prices import StatedPrice
from serving.errors import InvalidInputError

HOURS_PER_MONTH = 365.25 * 24 / 12
WEEKS_PER_MONTH = 365.25 / 12 / 7
SCENARIOS = ("pessimistic", "expected", "optimistic")
PRICED_APART = (
    "Parity prices the student's calls by the token; here they cost the hours of its machine "
    "(`economics.gpu_usd_per_hour`), idle ones included. So one arm has two costs per 1,000."
)
"""What a reader is told where the two parts of the report price the student differently."""


@dataclass(frozen=True, kw_only=True)
class EconomicsTerms:
    """What no run measures, declared in the config.

    Attributes:
        asks_per_month: projected questions.
        volume_factors: the range of that projection, as multiples of it.
        gpu_usd_per_hour: of one machine that runs the student, GPU or not; 0: the student is paid
            by the token, at the price of the config.
        gpu_utilisation_ratio: share of the hours paid in which it computes.
        gpu_utilisation_range: the range of that.
        minimum_machines: paid however few questions come; 0 where a machine is paid by use.
        infrastructure_usd_per_month: everything else that runs because there is a student.
        setup_usd: paid once, and not by this software: people, migration.
        training_usd_per_hour: of the machine that trains.
        retrains_per_month: each costs training once more, and a part of the answers.
        relabelled_ratio: the share of what was paid for answers that a retrain pays again.
        horizon_months: over which the return is counted.
        monthly_budget_usd: a teacher within it needs no student; None: there is no such budget.
        minimum_examples: below, a student is not trained in earnest.
        prices: as the config states them, by the section that does: `teacher`, `students.<name>`.
    """

    asks_per_month: int = 100_000
    volume_factors: tuple[float, float] = (0.5, 2.0)
    gpu_usd_per_hour: float = 0.0
    gpu_utilisation_ratio: float = 0.3
    gpu_utilisation_range: tuple[float, float] = (0.1, 0.6)
    minimum_machines: int = 0
    infrastructure_usd_per_month: float = 0.0
    setup_usd: float = 0.0
    training_usd_per_hour: float = 0.0
    retrains_per_month: float = 1.0
    relabelled_ratio: float = 0.5
    horizon_months: int = 12
    monthly_budget_usd: float | None = None
    minimum_examples: int = 100
    prices: Mapping[str, StatedPrice] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OneOffCosts:
    """What was paid before the first question was saved: US dollars."""

    bought_usd: float
    """Answers of teacher and judge: generation, labels, grading, evaluation."""
    training_usd: float
    setup_usd: float

    @property
    def total_usd(self) -> float:
        """The sum."""
        return self.bought_usd + self.training_usd + self.setup_usd


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """A month with and without the student, under one set of assumptions.

    `payback_weeks` and `break_even_calls` are None where it never pays back.
    """

    asks_per_month: float
    utilisation_ratio: float
    teacher_usd_per_month: float
    teacher_part_usd_per_month: float
    student_usd_per_month: float
    double_paid_usd_per_month: float
    """Of `student_usd_per_month`: calls whose answer was thrown away."""
    upkeep_usd_per_month: float
    saving_usd_per_month: float
    one_off_usd: float
    payback_weeks: float | None
    break_even_calls: float | None
    roi_ratio: float | None
    """((cost_T - cost_S) N - one-off) / one-off over the horizon; None without one-off costs."""
    is_worth_investing: bool
    """Break-even comes within one week of the projected volume."""


def project(
    costs: MeasuredCosts,
    one_off: OneOffCosts,
    terms: EconomicsTerms,
    *,
    volume_factor: float = 1.0,
    utilisation_ratio: float | None = None,
    saving_shift_usd: float = 0.0,
) -> Outlook:
    """Return the month under these assumptions; by default the declared ones.

    Args:
        costs: of the arm.
        one_off: paid before.
        terms: declared.
        volume_factor: multiple of the projected questions.
        utilisation_ratio: of the machines; by default the declared one.
        saving_shift_usd: added to the measured saving per question: its sampling error.
    """
    utilisation = terms.gpu_utilisation_ratio if utilisation_ratio is None else utilisation_ratio
    asks = terms.asks_per_month * volume_factor
    calls = asks * costs.student_calls_ratio
    student = _price_student(calls, costs, terms, utilisation)
    relabelling = terms.relabelled_ratio * one_off.bought_usd
    upkeep = terms.infrastructure_usd_per_month + terms.retrains_per_month * (
        one_off.training_usd + relabelling
    )
    teacher, part = asks * costs.teacher_usd, asks * (costs.teacher_part_usd - saving_shift_usd)
    saving = teacher - part - student - upkeep
    per_ask = saving / asks
    break_even = one_off.total_usd / per_ask if per_ask > 0 else None
    horizon = saving * terms.horizon_months - one_off.total_usd
    return Outlook(
        asks_per_month=asks,
        utilisation_ratio=utilisation,
        teacher_usd_per_month=teacher,
        teacher_part_usd_per_month=part,
        student_usd_per_month=student,
        double_paid_usd_per_month=student * costs.fallback_ratio / costs.student_calls_ratio
        if costs.student_calls_ratio
        else 0.0,
        upkeep_usd_per_month=upkeep,
        saving_usd_per_month=saving,
        one_off_usd=one_off.total_usd,
        payback_weeks=None if break_even is None else break_even / asks * WEEKS_PER_MONTH,
        break_even_calls=break_even,
        roi_ratio=horizon / one_off.total_usd if one_off.total_usd else None,
        is_worth_investing=break_even is not None and break_even < asks / WEEKS_PER_MONTH,
    )


def explain_costs(terms: EconomicsTerms) -> tuple[str, ...]:
    """Return why an arm costs something else here than under Parity; nothing where it does not."""
    return (PRICED_APART,) if terms.gpu_usd_per_hour else ()


def find_untimed_call(costs: Iterable[MeasuredCosts], terms: EconomicsTerms) -> str | None:
    """Return why the hours of the student's machine are not known; None where they are.

    A student that refuses nearly everything by a rule may have made no call among the timed ones.
    """
    is_needed = terms.gpu_usd_per_hour and any(
        one.student_calls_ratio and one.student_seconds is None for one in costs
    )
    return (
        "no timed answer of the arm `student` was written by its model, so nobody knows how long a "
        "call takes: set economics.gpu_usd_per_hour to 0 to price it by the token"
        if is_needed
        else None
    )


def _price_student(
    calls: float, costs: MeasuredCosts, terms: EconomicsTerms, utilisation: float
) -> float:
    """Return what a month of student calls costs: by the token, or by the machine's hours."""
    if not terms.gpu_usd_per_hour:
        return calls * (costs.student_usd or 0.0)  # None: no call was ever made, so none is paid
    if costs.student_seconds is None and calls:
        raise InvalidInputError(
            f"pricing the student of the arm {costs.arm!r} by the hours of its machine",
            expected="answers of the arm student that were timed one by one",
            found="none",
            next_step="materialize parity/arm_answers, or set economics.gpu_usd_per_hour to 0",
        )
    busy_hours = calls * (costs.student_seconds or 0.0) / 3600
    paid_hours = max(busy_hours / utilisation, terms.minimum_machines * HOURS_PER_MONTH)
    return paid_hours * terms.gpu_usd_per_hour


def find_range(
    costs: MeasuredCosts, one_off: OneOffCosts, terms: EconomicsTerms
) -> dict[str, Outlook]:
    """Return the `pessimistic`, `expected` and `optimistic` months.

    The two ends are the least and the most saved at the corners of the three ranges.
    """
    lower, upper = costs.saving_range_usd
    corners = [
        project(
            costs,
            one_off,
            terms,
            volume_factor=volume,
            utilisation_ratio=utilisation,
            saving_shift_usd=saving - costs.saving_usd,
        )
        for volume, utilisation, saving in product(
            terms.volume_factors, terms.gpu_utilisation_range, (lower, upper)
        )
    ]
    return {
        "pessimistic": min(corners, key=lambda corner: corner.saving_usd_per_month),
        "expected": project(costs, one_off, terms),
        "optimistic": max(corners, key=lambda corner: corner.saving_usd_per_month),
    }


def sweep_sensitivity(
    costs: MeasuredCosts,
    one_off: OneOffCosts,
    terms: EconomicsTerms,
    *,
    volumes: Sequence[float],
    utilisations: Sequence[float],
) -> list[list[float]]:
    """Return [utilisations][volumes]: what a month saves, by asks per month and utilisation."""
    return [
        [
            project(
                costs,
                one_off,
                terms,
                volume_factor=volume / terms.asks_per_month,
                utilisation_ratio=utilisation,
            ).saving_usd_per_month
            for volume in volumes
        ]
        for utilisation in utilisations
    ]


def tabulate_economics(
    ranges: Iterable[tuple[MeasuredCosts, Mapping[str, Outlook]]],
) -> pl.DataFrame:
    """Return the rows of `economics`: one per arm and scenario."""
    rows = [
        {
            "arm": costs.arm,
            "scenario": scenario,
            **vars(outlook),
            "teacher_usd_per_1k": 1000 * costs.teacher_usd,
            "routed_usd_per_1k": 1000
            * (outlook.teacher_part_usd_per_month + outlook.student_usd_per_month)
            / outlook.asks_per_month,
            "teacher_share_ratio": costs.teacher_share_ratio,
            "fallback_ratio": costs.fallback_ratio,
            "case_count": costs.n,
        }
        for costs, scenarios in ranges
        for scenario, outlook in scenarios.items()
    ]
    return pl.DataFrame(rows, schema=tables.ECONOMICS)


def tabulate_unpriced(costs: Iterable[MeasuredCosts], reason: str) -> pl.DataFrame:
    """Return the rows of `economics` where a price or a timing is missing: no money, and why."""
    rows = [
        {
            "arm": one.arm,
            "scenario": scenario,
            "teacher_share_ratio": one.teacher_share_ratio,
            "fallback_ratio": one.fallback_ratio,
            "case_count": one.n,
            "inconclusive_reason": reason,
        }
        for one in costs
        for scenario in SCENARIOS
    ]
    return pl.DataFrame(rows, schema=tables.ECONOMICS)
