"""Operating points: router thresholds that give the teacher a wanted share of the traffic.

One number moves both thresholds: at q, questions whose best cosine is among the lowest q of the
held-out ones go to the teacher at once, and valid answers whose confidence is among the lowest q
are doubted. q is swept from none to all, and the share that comes nearest to the wanted one is
taken. Chosen on the validation and calibration splits, never on the golden set; judged on golden
cases alone, since a share is always near its target where it was chosen. Belongs here: the sweep.
Does not belong here: the rules (`routes`), what a point is worth on golden cases (`deriving`,
`comparison`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from assets.parity.arms import OPERATING_POINTS, Arm
from assets.parity.routes import VALID, Thresholds, is_ruled_out, settle_route
from assets.statistics import wilson_interval
from assets.students.held_out import STUDENT
from serving.errors import InvalidInputError
from serving.pipeline.confidence import SIGNALS, ConfidenceCalibration, estimate_confidence
from serving.pipeline.router import Route, RouterPolicy


@dataclass(frozen=True, kw_only=True)
class HeldOutAnswer:
    """What the router would have known of a held-out question and the student's answer to it.

    `is_ruled_out`: too long, or of high stakes: the teacher's at any threshold. `has_call`: its
    model was asked; a refusal by a rule comes before that and costs nothing.
    """

    retrieval_score: float
    is_ruled_out: bool
    is_valid: bool
    confidence: float | None
    has_call: bool


def choose_operating_points(
    held_out_answers: pl.DataFrame,
    calibration: ConfidenceCalibration | None,
    *,
    policy: RouterPolicy,
    points: Sequence[Arm] = OPERATING_POINTS,
) -> list[dict[str, Any]]:
    """Return one operating_points row (without adapter) per point.

    Invalid answers go to the teacher at any threshold: where they alone are more than the wanted
    share, the point is the nearest that can be reached, and `teacher_ratio` says which that is.

    Raises:
        InvalidInputError: the student answered no held-out question.
    """
    answers = read_held_out(held_out_answers, calibration, policy)
    if not answers:
        raise InvalidInputError(
            "choosing the router's operating points",
            expected="held-out questions that the student answered",
            found=f"{held_out_answers.height} rows, none of them an answer of the student",
            next_step="materialize students/held_out_answers again; its `error` column says why",
        )
    swept = [(q / len(answers), place_thresholds(answers, q, policy))
             for q in range(len(answers) + 1)]  # fmt: skip
    shares = [measure_teacher_share(answers, thresholds) for _, thresholds in swept]
    rows = []
    for point in points:
        wanted = point.teacher_ratio or 0.0
        best = min(range(len(swept)), key=lambda i: (abs(shares[i] - wanted), i))
        quantile, thresholds = swept[best]
        interval = wilson_interval(round(shares[best] * len(answers)), len(answers))
        rows.append(
            {
                "arm": point.name,
                "target_teacher_ratio": wanted,
                "quantile": quantile,
                "min_retrieval_score": thresholds.policy.min_retrieval_score,
                "confidence_threshold": thresholds.confidence_threshold,
                "teacher_ratio": interval.value,
                "lower": interval.lower,
                "upper": interval.upper,
                "case_count": len(answers),
                "invalid_count": sum(not answer.is_valid for answer in answers),
            }
        )
    return rows


def read_held_out(
    held_out_answers: pl.DataFrame,
    calibration: ConfidenceCalibration | None,
    policy: RouterPolicy,
) -> list[HeldOutAnswer]:
    """Return the student's answers, with the confidence that production would have given them."""
    own = held_out_answers.filter(pl.col("arm") == STUDENT, pl.col("error").is_null())
    return [
        HeldOutAnswer(
            retrieval_score=row["retrieval_score"],
            is_ruled_out=is_ruled_out(row, policy),
            is_valid=row["verdict"] == VALID,
            confidence=_estimate(row, calibration) if row["verdict"] == VALID else None,
            has_call=(row["prompt_tokens"] or 0) + (row["completion_tokens"] or 0) > 0,
        )
        for row in own.iter_rows(named=True)
    ]


def _estimate(row: dict[str, Any], calibration: ConfidenceCalibration | None) -> float | None:
    if calibration is None:
        return None
    signals = {name: row[name] for name in SIGNALS if row[name] is not None}
    return estimate_confidence(signals, calibration)


def place_thresholds(
    answers: Sequence[HeldOutAnswer], rank: int, policy: RouterPolicy
) -> Thresholds:
    """Return the thresholds below which about `rank` of these answers fall, in either signal."""
    quantile = rank / len(answers)
    confidences = [a.confidence for a in answers if a.confidence is not None]
    return Thresholds(
        policy=replace(
            policy, min_retrieval_score=_cut([a.retrieval_score for a in answers], quantile)
        ),
        confidence_threshold=_cut(confidences, quantile) if confidences else None,
    )


def _cut(values: Sequence[float], quantile: float) -> float:
    """Return the least limit that this share of the values lies below; equal values stay together.

    At 1 it lies just above the largest, so that all are below it.
    """
    ordered = np.sort(np.asarray(values))
    position = round(quantile * len(ordered))
    if position == 0:
        return 0.0
    if position == len(ordered):
        return float(np.nextafter(ordered[-1], np.inf))
    return float(ordered[position])


def measure_teacher_share(answers: Sequence[HeldOutAnswer], thresholds: Thresholds) -> float:
    """Return the share of questions that the teacher is asked at these thresholds."""
    return sum(is_asked_of_teacher(answer, thresholds) for answer in answers) / len(answers)


def is_asked_of_teacher(answer: HeldOutAnswer, thresholds: Thresholds) -> bool:
    """Return whether these thresholds send the question to the teacher, at once or in the end."""
    if is_sent_at_once(answer, thresholds):
        return True
    _, ending = settle_route(
        Route(to="student", reason="default"),
        is_valid=answer.is_valid,
        confidence=answer.confidence,
        threshold=thresholds.confidence_threshold,
    )
    return ending == "fallback"


def is_sent_at_once(answer: HeldOutAnswer, thresholds: Thresholds) -> bool:
    """Return whether the rules send the question to the teacher before a student is asked."""
    return answer.is_ruled_out or answer.retrieval_score < thresholds.policy.min_retrieval_score


def read_thresholds(row: dict[str, Any], policy: RouterPolicy) -> Thresholds:
    """Return the thresholds of an operating_points row; the other rules are the policy's."""
    return Thresholds(
        policy=replace(policy, min_retrieval_score=row["min_retrieval_score"]),
        confidence_threshold=row["confidence_threshold"],
    )
