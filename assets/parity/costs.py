"""Measured costs: what an arm paid per question, read from the answers it gave.

Belongs here: reading `arm_answers` question by question. Does not belong here: months, volumes and
machines (`economics`), whether a price was stated at all (`prices`).
"""

import math
from dataclasses import dataclass

import polars as pl

from assets.parity.arms import BASELINE, STUDENT
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
            included. What the student refuses by a rule calls no model.
        fallback_ratio: questions for which the student was paid and the teacher too.
        teacher_share_ratio: questions whose answer is the teacher's.
        student_usd: a call at the student's token price, on average of the calls that the arm
            made, or of all calls of the arm `student` where it made none; None: no call was seen.
        student_seconds: a call of the student alone on its machine, on average of the calls that
            were timed; None: none was.
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
    is_students = (cases["served_by"] == STUDENT) | cases["used_fallback"]
    called = is_students & cases["has_call"]
    savings = (cases["cost_usd_teacher"] - cases["cost_usd"]).to_list()
    limits = clustered_bootstrap(savings, cases["case_id"].to_list())
    student_paid = _mean(cases["cost_usd_student"] * called)
    calls = cases.filter(called if called.any() else cases["has_call"])
    return MeasuredCosts(
        arm=arm,
        teacher_usd=_mean(cases["cost_usd_teacher"]),
        teacher_part_usd=max(0.0, _mean(cases["cost_usd"]) - student_paid),
        student_calls_ratio=_mean(called),
        fallback_ratio=_mean(cases["used_fallback"] & called),
        teacher_share_ratio=_mean(cases["served_by"] == BASELINE),
        student_usd=None if calls.is_empty() else _mean(calls["cost_usd_student"]),
        student_seconds=_time_student(arm_answers),
        saving_range_usd=(limits.lower, limits.upper),
        n=cases.height,
    )


def _pair_cases(arm_answers: pl.DataFrame, arm: str) -> pl.DataFrame:
    """Return the cases that teacher, student and the arm answered, with the cost in each.

    `has_call` says whether the student's model was asked, or a rule refused before it.
    """
    answered = arm_answers.filter(pl.col("repeat") == 0, pl.col("error").is_null())
    chosen = answered.filter(pl.col("arm") == arm)
    for other in (BASELINE, STUDENT):
        paid = answered.filter(pl.col("arm") == other).select(
            "case_id", pl.col("cost_usd").alias(f"cost_usd_{other}")
        )
        chosen = chosen.join(paid, on="case_id")
    calls = answered.filter(arm=STUDENT).select("case_id", has_call=_HAS_TOKENS)
    return chosen.join(calls, on="case_id").sort("case_id")


def _time_student(arm_answers: pl.DataFrame) -> float | None:
    """Return the mean seconds of a student call: of later repeats, which wait for no batch.

    A refusal by a rule takes microseconds and is no call. None where no call was timed.
    """
    timed = arm_answers.filter(
        pl.col("arm") == STUDENT, pl.col("repeat") > 0, pl.col("error").is_null(), _HAS_TOKENS
    )
    if timed.is_empty():
        return None
    return _mean(timed["latency_ms"] - timed["retrieval_ms"]) / 1000


def _mean(values: pl.Series) -> float:
    mean = float(values.cast(pl.Float64).mean() or 0.0)  # type: ignore[arg-type]
    if math.isnan(mean):
        raise ValueError(f"expected numbers in {values.name}, found NaN")
    return mean
