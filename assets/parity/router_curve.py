"""The router curve: quality against the teacher's share, swept on the validation split.

Quality is agreement with the teacher's label: a question that the teacher answers agrees by
definition, one that the student answers may not. On the calibration split, confidence was fitted
and its thresholds certified, so a curve over those questions would flatter it: they are left out.
Beside the curve stand the line of a router that draws lots and that of one that knows which answers
are wrong. Belongs here: the sweep and the figures that sum it up. Does not belong here: thresholds
(`operating_points`), what agrees (`students/agreement`), golden cases: the curve never reads them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from assets import tables
from assets.parity.operating_points import (
    HeldOutAnswer,
    is_asked_of_teacher,
    is_sent_at_once,
    place_thresholds,
    read_held_out,
)
from assets.statistics import BOOTSTRAP_RESAMPLES, BOOTSTRAP_SEED
from assets.students.agreement import compare_with_labels
from assets.students.held_out import STUDENT
from serving.errors import InvalidInputError
from serving.pipeline.confidence import ConfidenceCalibration
from serving.pipeline.router import RouterPolicy

SPLIT = "validation"
"""The only questions the curve is judged on: nothing was fitted or certified on them."""

RECOVERED_RATIOS = (0.5, 0.8, 0.95)
"""Of the gap between student and teacher: CPT(50), CPT(80) and CPT(95) are the teacher's shares
that recover as much of it (Ong et al. 2024, RouteLLM, section 2.3)."""

BATCH = 1_000  # draws held at once: each is a whole sweep

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SweptCases:
    """Held-out cases as the sweep sees them.

    Attributes:
        ranks: [n] the step of the sweep from which on the teacher is asked: 0 is always, and the
            last step asks it for everything.
        agrees: [n] whether the student's answer would agree with the label.
        seeds: [n] codes of the seeds; cases of one seed are drawn together.
        steps: number of steps.
    """

    ranks: npt.NDArray[np.intp]
    agrees: npt.NDArray[np.bool_]
    seeds: npt.NDArray[np.intp]
    steps: int


def sweep_cases(
    held_out_answers: pl.DataFrame,
    calibration: ConfidenceCalibration | None,
    policy: RouterPolicy,
) -> tuple[SweptCases, list[dict[str, Any]]]:
    """Return the swept cases, and of every step its thresholds.

    Raises:
        InvalidInputError: the student answered no validation question.
    """
    own = held_out_answers.filter(pl.col("error").is_null(), arm=STUDENT, split=SPLIT)
    answers = read_held_out(own, calibration, policy)
    if not answers:
        raise InvalidInputError(
            "sweeping the router's thresholds",
            expected=f"questions of the {SPLIT} split that the student answered",
            found=f"{held_out_answers.height} rows, none of them an answer of the student",
            next_step="materialize students/held_out_answers again; its `error` column says why",
        )
    swept = [place_thresholds(answers, rank, policy) for rank in range(len(answers) + 1)]
    ranks = [_find_turn(answer, swept) for answer in answers]
    thresholds = [
        {
            "min_retrieval_score": at.policy.min_retrieval_score,
            "confidence_threshold": at.confidence_threshold,
            "direct_ratio": sum(is_sent_at_once(a, at) for a in answers) / len(answers),
            "student_calls_ratio": sum(
                answer.has_call and not is_sent_at_once(answer, at) for answer in answers
            )
            / len(answers),
        }
        for at in swept
    ]
    _, seeds = np.unique(own["seed_id"].to_numpy(), return_inverse=True)
    cases = SweptCases(
        ranks=np.asarray(ranks, dtype=np.intp),
        agrees=compare_with_labels(own)["agrees"].to_numpy(),
        seeds=seeds,
        steps=len(swept),
    )
    return cases, thresholds


def _find_turn(answer: HeldOutAnswer, swept: Sequence[Any]) -> int:
    """Return the first step at which the teacher is asked; thresholds only rise from step to step.

    After the last one everything is asked of it, whatever the thresholds.
    """
    turns = (step for step, at in enumerate(swept) if is_asked_of_teacher(answer, at))
    return next(turns, len(swept) - 1)


def draw_points(cases: SweptCases) -> tuple[Floats, Floats]:
    """Return [steps] the teacher's share, and [steps] the quality, of the cases as they are."""
    share, quality = _sweep(cases, np.ones((1, int(cases.seeds.max()) + 1)))
    return share[0], quality[0]


def _sweep(cases: SweptCases, draws: Floats) -> tuple[Floats, Floats]:
    """Return [draws, steps] share and quality, where each seed counts as often as it was drawn."""
    seeds = int(cases.seeds.max()) + 1
    turned = np.zeros((seeds, cases.steps))
    won = np.zeros((seeds, cases.steps))
    np.add.at(turned, (cases.seeds, cases.ranks), 1.0)
    np.add.at(won, (cases.seeds, cases.ranks), (~cases.agrees).astype(np.float64))
    sizes = np.bincount(cases.seeds, minlength=seeds).astype(np.float64)
    right = np.bincount(cases.seeds, weights=cases.agrees, minlength=seeds)
    total = draws @ sizes
    share = (draws @ turned.cumsum(axis=1)) / total[:, None]
    quality = (draws @ (right[:, None] + won.cumsum(axis=1))) / total[:, None]
    return share, quality


def find_student_quality(cases: SweptCases) -> float:
    """Return the quality without any teacher: the left end of the lines compared with."""
    return float(cases.agrees.mean())


def measure_recovery(share: Floats, quality: Floats, student_quality: Floats) -> Floats:
    """Return [draws] APGR: the average share of the quality gap recovered, over teacher shares 0-1.

    1/2 is what drawing lots recovers (RouteLLM, section 2.3). Left of the first point, where only
    invalid answers go to the teacher, lots are drawn. NaN where there is no gap.
    """
    first = np.zeros((len(share), 1))
    shares = np.hstack([first, share])
    with np.errstate(divide="ignore", invalid="ignore"):
        recovered = (quality - student_quality[:, None]) / (1 - student_quality[:, None])
    area = np.trapezoid(np.hstack([first, recovered]), shares, axis=1)
    return np.asarray(area, dtype=np.float64)


def find_share_for(share: Floats, quality: Floats, student_quality: Floats, ratio: float) -> Floats:
    """Return [draws] the least teacher share at which this ratio of the gap is recovered.

    NaN where there is no gap.
    """
    wanted = student_quality + ratio * (1 - student_quality)
    has_enough = quality >= wanted[:, None] - 1e-12
    found = share[np.arange(len(share)), has_enough.argmax(axis=1)]
    return np.where(student_quality < 1, found, np.nan)  # without a gap nothing is recovered


def tabulate_curve(
    held_out_answers: pl.DataFrame,
    calibration: ConfidenceCalibration | None,
    *,
    policy: RouterPolicy,
    teacher_usd: float | None,
    student_usd: float | None,
) -> pl.DataFrame:
    """Return the router_curve: one row per step of the sweep.

    Args:
        held_out_answers: of one student.
        calibration: of its confidences; None: only the retrieval score is swept.
        policy: whose other rules stay as they are.
        teacher_usd: a question to the teacher, on average; None: it has no price.
        student_usd: a call of the student, on average; it is paid where an answer is doubted too,
            and not where a question goes to the teacher at once or a rule refuses it. None: it has
            no price, or no call was ever seen.
    """
    cases, thresholds = sweep_cases(held_out_answers, calibration, policy)
    share, quality = (points.tolist() for points in draw_points(cases))
    base = find_student_quality(cases)
    rows = [
        {
            "step": step,
            **at,
            "teacher_ratio": share[step],
            "quality": quality[step],
            "random_quality": base + share[step] * (1 - base),
            "oracle_quality": min(1.0, base + share[step]),
            "usd_per_1k": None
            if teacher_usd is None or student_usd is None
            else 1000 * (share[step] * teacher_usd + at["student_calls_ratio"] * student_usd),
            "case_count": len(cases.ranks),
        }
        for step, at in enumerate(thresholds)
    ]
    return pl.DataFrame(rows, schema=tables.ROUTER_CURVE)


def list_lines(curve: pl.DataFrame) -> dict[str, tuple[list[float], list[float]]]:
    """Return the lines that a reader is shown, by label: the teacher's share, and the quality."""
    shares = curve["teacher_ratio"].to_list()
    return {
        label: (shares, curve[column].to_list())
        for label, column in (
            ("router", "quality"),
            ("lots", "random_quality"),
            ("oracle", "oracle_quality"),
        )
    }


def summarise_curve(
    held_out_answers: pl.DataFrame,
    calibration: ConfidenceCalibration | None,
    *,
    policy: RouterPolicy,
    alpha: float = 0.05,
) -> list[dict[str, Any]]:
    """Return APGR and CPT(50, 80, 95) with bootstrap intervals over seeds, as figure rows."""
    cases, _ = sweep_cases(held_out_answers, calibration, policy)
    ratios = {"apgr": None, **{f"cpt_{round(100 * ratio)}": ratio for ratio in RECOVERED_RATIOS}}
    return [
        {"figure": name, "n": len(cases.ranks)} | _estimate(cases, ratio, alpha)
        for name, ratio in ratios.items()
    ]


def _estimate(cases: SweptCases, ratio: float | None, alpha: float) -> dict[str, Any]:
    """Return a figure of the curve with its interval; None where there is no gap to recover."""
    seeds = int(cases.seeds.max()) + 1
    value = float(_summarise(cases, np.ones((1, seeds)), ratio)[0])
    if not np.isfinite(value):
        return {"value": None, "method": "none"}
    if seeds == 1:
        return {"value": value, "method": "none"}

    rng = np.random.default_rng(BOOTSTRAP_SEED)
    samples = np.concatenate(
        [
            _summarise(cases, _count_draws(rng.integers(seeds, size=(BATCH, seeds)), seeds), ratio)
            for _ in range(BOOTSTRAP_RESAMPLES // BATCH)
        ]
    )
    # A draw of seeds without a wrong answer has no gap and says nothing of it.
    lower, upper = np.nanquantile(samples, [alpha / 2, 1 - alpha / 2])
    limits = {"lower": float(lower), "upper": float(upper)}
    return {"value": value, **limits, "method": "bootstrap by seed"}


def _count_draws(drawn: npt.NDArray[np.intp], seeds: int) -> Floats:
    """Return [draws, seeds] how often each seed was drawn."""
    offsets = np.arange(len(drawn))[:, None] * seeds
    counts = np.bincount((drawn + offsets).ravel(), minlength=len(drawn) * seeds)
    return counts.reshape(len(drawn), seeds).astype(np.float64)


def _summarise(cases: SweptCases, draws: Floats, ratio: float | None) -> Floats:
    share, quality = _sweep(cases, draws)
    sizes = np.bincount(cases.seeds).astype(np.float64)
    right = np.bincount(cases.seeds, weights=cases.agrees)
    base = (draws @ right) / (draws @ sizes)
    if ratio is None:
        return measure_recovery(share, quality, base)
    return find_share_for(share, quality, base, ratio)
