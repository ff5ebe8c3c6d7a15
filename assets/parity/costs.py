"""Measured costs: what an arm paid per question, read from the answers it gave.

Belongs here: reading `arm_answers` question by question. Does not belong here: months, volumes and
machines (`economics`), whether a price was stated at all (`prices`).
"""

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from assets.parity.arms import BASELINE, STUDENT, list_students
from assets.statistics import clustered_bootstrap
from serving.errors import InvalidInputError

_HAS_TOKENS = (pl.col("prompt_tokens") + pl.col("completion_tokens") > 0).fill_null(value=False)


@dataclass(frozen=True, kw_only=True)
class MeasuredCosts:
    """What one arm that may ask the student cost per question, beside the teacher alone.

    Attributes:
        arm: `routed` or a variant of it, or `student`.
        teacher_usd: a question answered by the teacher alone, on average.
        teacher_part_usd: what the arm paid the teacher per question, fallbacks included.
        student_calls_ratio: calls of the student's model per question, those that fell back
            included; of two students in turn, calls of both. What a student refuses by a rule
            calls no model.
        fallback_ratio: questions for which a student was paid and the teacher too.
        teacher_share_ratio: questions whose answer is the teacher's.
        student_usd: a call at the student's token price, on average of the calls that the arm
            made, or of all calls of the arm `student` where it made none; None: no call was seen.
        student_seconds: a call of the student alone on its machine, on average of the calls that
            were timed; of two students, as often as each was called. None: one was not timed.
        saving_range_usd: 95 % limits of `teacher_usd` less the arm's cost, at token prices.
        n: questions.
    """

    arm: str
    teacher_usd: float
    teacher_part_usd: float
    student_calls_ratio: float
    fallback_ratio: float
    teacher_share_ratio: float
    student_usd: float | None
    student_seconds: float | None
    saving_range_usd: tuple[float, float]
    n: int

    @property
    def saving_usd(self) -> float:
        """The measured saving per question at token prices."""
        student = self.student_calls_ratio * (self.student_usd or 0.0)  # no call seen: none made
        return self.teacher_usd - self.teacher_part_usd - student


def measure_costs(arm_answers: pl.DataFrame, arm: str) -> MeasuredCosts:
    """Read what an arm cost beside the teacher, question by question, from `arm_answers`.

    The students' calls of a routed arm cost what the same calls cost where each answers alone.

    Raises:
        InvalidInputError: no question was answered in the arms teacher, student and `arm` alike.
    """
    students = list_students(arm, arm_answers["arm"].unique())
    cases = _pair_cases(arm_answers, arm, students)
    if cases.is_empty():
        raise InvalidInputError(
            f"computing the economics of the arm {arm!r}",
            expected="questions answered without error by teacher, student and that arm",
            found="none",
            next_step="materialize parity/arm_answers again: rows that failed are asked anew",
        )
    calls = _find_calls(cases, arm_answers, students)
    paid = [cases.filter(is_called)[f"cost_usd_{name}"] for name, is_called in calls.items()]
    if not sum(map(len, paid)):
        paid = [cases.filter(f"has_call_{STUDENT}")[f"cost_usd_{STUDENT}"]]
    costs = pl.concat([one.alias("cost_usd") for one in paid])
    calls_ratio = sum(_mean(is_called) for is_called in calls.values())
    savings = (cases["cost_usd_teacher"] - cases["cost_usd"]).to_list()
    limits = clustered_bootstrap(savings, cases["case_id"].to_list())
    students_paid = sum(
        _mean(cases[f"cost_usd_{name}"] * is_called) for name, is_called in calls.items()
    )
    was_called = functools.reduce(operator.or_, calls.values())
    return MeasuredCosts(
        arm=arm,
        teacher_usd=_mean(cases["cost_usd_teacher"]),
        teacher_part_usd=max(0.0, _mean(cases["cost_usd"]) - students_paid),
        student_calls_ratio=calls_ratio,
        fallback_ratio=_mean(cases["used_fallback"] & was_called),
        teacher_share_ratio=_mean(cases["served_by"] == BASELINE),
        student_usd=None if costs.is_empty() else _mean(costs),
        student_seconds=_time_calls(arm_answers, calls),
        saving_range_usd=(limits.lower, limits.upper),
        n=cases.height,
    )


def _pair_cases(arm_answers: pl.DataFrame, arm: str, students: Sequence[str]) -> pl.DataFrame:
    """Return the cases that teacher, students and the arm answered, with the cost in each.

    `has_call_<student>` says whether that one's model was asked, or a rule refused before it.
    """
    answered = arm_answers.filter(pl.col("repeat") == 0, pl.col("error").is_null())
    chosen = answered.filter(pl.col("arm") == arm)
    for other in (BASELINE, *students):
        alone = answered.filter(pl.col("arm") == other).select(
            "case_id",
            pl.col("cost_usd").alias(f"cost_usd_{other}"),
            _HAS_TOKENS.alias(f"has_call_{other}"),
        )
        chosen = chosen.join(alone, on="case_id")
    return chosen.sort("case_id")


def _find_calls(
    cases: pl.DataFrame, arm_answers: pl.DataFrame, students: Sequence[str]
) -> dict[str, pl.Series]:
    """Return of each student whether the arm called its model, case by case.

    All are asked in turn until the answer of one stands.
    """
    is_asked = (cases["served_by"] == STUDENT) | cases["used_fallback"]
    calls = {}
    for name in students:
        calls[name] = is_asked & cases[f"has_call_{name}"]
        models = arm_answers.filter(arm=name)["model"].drop_nulls().unique().to_list()
        is_asked &= ~(cases["model"].is_in(models) & ~cases["used_fallback"])
    return calls


def _time_calls(arm_answers: pl.DataFrame, calls: Mapping[str, pl.Series]) -> float | None:
    counts = {name: int(is_called.sum()) for name, is_called in calls.items() if is_called.any()}
    seconds = {name: _time_student(arm_answers, name) for name in counts or [STUDENT]}
    known = [one for one in seconds.values() if one is not None]
    if len(known) < len(seconds):
        return None
    return float(np.average(known, weights=list(counts.values()) or None))


def _time_student(arm_answers: pl.DataFrame, arm: str) -> float | None:
    """Return the mean seconds of a student's call: of later repeats, which wait for no batch.

    A refusal by a rule takes microseconds and is no call. None where no call was timed.
    """
    timed = arm_answers.filter(
        pl.col("arm") == arm, pl.col("repeat") > 0, pl.col("error").is_null(), _HAS_TOKENS
    )
    if timed.is_empty():
        return None
    return _mean(timed["latency_ms"] - timed["retrieval_ms"]) / 1000


def _mean(values: pl.Series) -> float:
    mean = float(values.cast(pl.Float64).mean() or 0.0)  # type: ignore[arg-type]
    if math.isnan(mean):
        raise ValueError(f"expected numbers in {values.name}, found NaN")
    return mean
