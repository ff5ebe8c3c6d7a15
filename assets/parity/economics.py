"""Economics: what distilling costs, what it saves, when it has paid for itself; "never" included.

Every result is a range: volume, utilisation and the measured saving are none of them known exactly.
Belongs here: pure arithmetic on measured costs and declared terms. Does not belong here: measuring
(`arm_answers`), whether the student is good enough (`releases/gate`), drawing (`economics_chart`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import polars as pl

from assets import tables
from assets.statistics import clustered_bootstrap
from serving.errors import InvalidInputError

HOURS_PER_MONTH = 365.25 * 24 / 12
WEEKS_PER_MONTH = 365.25 / 12 / 7
TEACHER, STUDENT, ROUTED = "teacher", "student", "routed"

Strategy = Literal["no_change", "collecting", "fallback_teacher", "distilled"]
Quality = Literal["proven", "failed", "unproven"]


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


@dataclass(frozen=True, kw_only=True)
class MeasuredCosts:
    """What one arm that may ask the student cost per question, beside the teacher alone.

    Attributes:
        arm: `routed` or a variant of it, or `student`.
        teacher_usd: a question answered by the teacher alone, on average.
        teacher_part_usd: what the arm paid the teacher per question, fallbacks included.
        student_calls_ratio: student calls per question, those that fell back included.
        fallback_ratio: questions for which the student was paid and the teacher too.
        teacher_share_ratio: questions whose answer is the teacher's.
        student_usd: a call of the student at its token price, on average of the calls made.
        student_seconds: a call of the student alone on its machine, on average; None: not timed.
        saving_range_usd: 95 % limits of `teacher_usd` less the arm's cost, at token prices.
        n: questions.
    """

    arm: str
    teacher_usd: float
    teacher_part_usd: float
    student_calls_ratio: float
    fallback_ratio: float
    teacher_share_ratio: float
    student_usd: float
    student_seconds: float | None
    saving_range_usd: tuple[float, float]
    n: int

    @property
    def saving_usd(self) -> float:
        """The measured saving per question at token prices."""
        return (
            self.teacher_usd - self.teacher_part_usd - self.student_calls_ratio * self.student_usd
        )


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


def measure_costs(arm_answers: pl.DataFrame, arm: str) -> MeasuredCosts:
    """Read what an arm cost beside the teacher, question by question, from `arm_answers`.

    The student's calls of a routed arm cost what the same calls cost in the arm `student`.

    Raises:
        InvalidInputError: no question was answered in the arms teacher, student and `arm` alike.
    """
    cases = _pair_cases(arm_answers, arm)
    if cases.is_empty():
        raise InvalidInputError(
            f"computing the economics of the arm {arm!r}",
            expected="questions answered without error by teacher, student and that arm",
            found="none",
            next_step="materialize parity/arm_answers again: rows that failed are asked anew",
        )
    called = (cases["served_by"] == STUDENT) | cases["used_fallback"]
    savings = (cases["cost_usd_teacher"] - cases["cost_usd"]).to_list()
    limits = clustered_bootstrap(savings, cases["case_id"].to_list())
    every_call = cases["cost_usd_student"]
    student_paid = _mean(every_call * called)
    return MeasuredCosts(
        arm=arm,
        teacher_usd=_mean(cases["cost_usd_teacher"]),
        teacher_part_usd=max(0.0, _mean(cases["cost_usd"]) - student_paid),
        student_calls_ratio=_mean(called),
        fallback_ratio=_mean(cases["used_fallback"]),
        teacher_share_ratio=_mean(cases["served_by"] == TEACHER),
        student_usd=student_paid / _mean(called) if called.any() else _mean(every_call),
        student_seconds=_time_student(arm_answers),
        saving_range_usd=(limits.lower, limits.upper),
        n=cases.height,
    )


def blend_costs(measured: MeasuredCosts, *, teacher_share_ratio: float) -> MeasuredCosts:
    """Return what the same models cost if the router sent the teacher this share of questions.

    Every question that reaches the teacher costs it the mean, so this is a projection: hard
    questions are longer than others.
    """
    direct = max(0.0, teacher_share_ratio - measured.fallback_ratio)
    blended = replace(
        measured,
        arm=f"{round(100 * (1 - teacher_share_ratio))}/{round(100 * teacher_share_ratio)}",
        teacher_part_usd=teacher_share_ratio * measured.teacher_usd,
        student_calls_ratio=1 - direct,
        teacher_share_ratio=teacher_share_ratio,
    )
    return replace(blended, saving_range_usd=(blended.saving_usd, blended.saving_usd))


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


def _price_student(
    calls: float, costs: MeasuredCosts, terms: EconomicsTerms, utilisation: float
) -> float:
    """Return what a month of student calls costs: by the token, or by the machine's hours."""
    if not terms.gpu_usd_per_hour:
        return calls * costs.student_usd
    if costs.student_seconds is None:
        raise InvalidInputError(
            f"pricing the student of the arm {costs.arm!r} by the hours of its machine",
            expected="answers of the arm student that were timed one by one",
            found="none",
            next_step="materialize parity/arm_answers, or set economics.gpu_usd_per_hour to 0",
        )
    busy_hours = calls * costs.student_seconds / 3600
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


def choose_strategy(
    *,
    teacher_usd_per_month: float,
    saving_usd_per_month: float,
    terms: EconomicsTerms,
    example_count: int,
    quality: Quality,
) -> tuple[Strategy, str]:
    """Return what to do and why. A student that is good and saves nothing is not deployed."""
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


def tabulate_economics(ranges: Iterable[tuple[MeasuredCosts, dict[str, Outlook]]]) -> pl.DataFrame:
    """Return the rows of `economics`: one per arm and scenario."""
    rows = []
    for costs, scenarios in ranges:
        for scenario, outlook in scenarios.items():
            rows.append(
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
            )
    return pl.DataFrame(rows, schema=tables.ECONOMICS)


def _pair_cases(arm_answers: pl.DataFrame, arm: str) -> pl.DataFrame:
    """Return the cases that teacher, student and the arm answered, with the cost in each."""
    answered = arm_answers.filter(pl.col("repeat") == 0, pl.col("error").is_null())
    chosen = answered.filter(pl.col("arm") == arm)
    for other in (TEACHER, STUDENT):
        paid = answered.filter(pl.col("arm") == other).select(
            "case_id", pl.col("cost_usd").alias(f"cost_usd_{other}")
        )
        chosen = chosen.join(paid, on="case_id")
    return chosen.sort("case_id")


def _time_student(arm_answers: pl.DataFrame) -> float | None:
    """Return the mean seconds of a student call: of later repeats, which wait for no batch.

    None where none was timed.
    """
    timed = arm_answers.filter(
        pl.col("arm") == STUDENT, pl.col("repeat") > 0, pl.col("error").is_null()
    )
    if timed.is_empty():
        return None
    return _mean(timed["latency_ms"] - timed["retrieval_ms"]) / 1000


def _mean(values: pl.Series) -> float:
    mean = float(values.cast(pl.Float64).mean() or 0.0)  # type: ignore[arg-type]
    if math.isnan(mean):
        raise ValueError(f"expected numbers in {values.name}, found NaN")
    return mean
