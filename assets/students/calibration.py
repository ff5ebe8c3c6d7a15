"""Calibration: from a student's signals to the probability that its answer agrees with the teacher.

Half of the calibration split fits, the other half certifies thresholds, by one case of each seed
(rewordings of one seed are no independent evidence); the halves share no seed. How
well it works is measured on the validation split, which neither half has seen. Belongs here:
fitting, and the row of what came out. Does not belong here: applying it
(`serving/pipeline/confidence`), measures (`reliability`), the guarantee (`certifying`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import TypeAdapter, ValidationError

from assets import charts
from assets.students.agreement import compare_with_labels
from assets.students.certifying import certify_thresholds
from assets.students.held_out import STUDENT
from assets.students.reliability import bin_answers, measure_reliability
from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.pipeline.confidence import (
    RAW_LOGIT,
    SIGNALS,
    CalibrationMethod,
    ConfidenceCalibration,
    estimate_confidence,
)

ISOTONIC_CASES = 1_000  # at or above: isotonic regression no longer overfits
MINIMUM_FIT_CASES = 20  # below: a constant
MINIMUM_CLASS_CASES = 5  # agreeing and not, below in either: a constant
FOLDS = 5
SHARPEST, BLUNTEST = 1 / 20, 20.0  # limits of the temperature

Floats = npt.NDArray[np.float64]
_FORM = TypeAdapter(ConfidenceCalibration)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What computes a student's logprobs beside its weights: another one is calibrated anew."""

    adapter_sha256: str
    engine: str
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Cases:
    """Valid answers: signals [cases, names], whether each agrees with its label, and its seed.

    In the order in which the cases were drawn, which knows no answer.
    """

    names: tuple[str, ...]
    signals: Floats
    agrees: npt.NDArray[np.bool_]
    seeds: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.agrees)

    def take(self, rows: npt.NDArray[np.bool_]) -> "Cases":
        """Return the cases where `rows` is true."""
        seeds = tuple(seed for seed, is_taken in zip(self.seeds, rows, strict=True) if is_taken)
        return replace(self, signals=self.signals[rows], agrees=self.agrees[rows], seeds=seeds)

    def choose(self, names: Sequence[str]) -> Floats:
        """Return the columns of some signals."""
        return self.signals[:, [self.names.index(name) for name in names]]


def calibrate(answers: pl.DataFrame, engine: Engine) -> dict[str, Any]:
    """Return the calibration row (without `recipe`) of held_out_answers.

    Only valid answers count: an invalid one goes to the teacher however sure the student is.
    Without any in the calibration split there is nothing to fit: `calibrator` is null.
    """
    of_student = pl.col("arm") == STUDENT
    asked = answers.filter(of_student & (pl.col("split") == "calibration")).height
    calibration, validation = (
        read_valid_cases(answers, split) for split in ("calibration", "validation")
    )
    row: dict[str, Any] = {
        **vars(engine),
        "asked_count": asked,
        "invalid_count": asked - len(calibration),  # invalid, or failed
        "calibration_seeds": sorted(set(calibration.seeds)),
    }
    if not len(calibration):
        return row | {"method": "none", "fit_count": 0, "certify_count": 0}
    is_fitting = choose_fitting(calibration.seeds)
    fitting, certifying = calibration.take(is_fitting), calibration.take(~is_fitting)
    fitted = fit_confidence(fitting, engine, case_count=len(calibration))
    thresholds = certify_thresholds(
        fitting_confidences=apply_calibration(fitted, fitting),
        confidences=apply_calibration(fitted, certifying),
        agrees=certifying.agrees,
        seeds=certifying.seeds,
    )
    fitted = replace(fitted, thresholds=thresholds)
    text = write_calibrator(fitted)
    return row | {
        "method": fitted.method,
        "fit_count": len(fitting),
        "certify_count": len(set(certifying.seeds)),
        "temperature": 1 / fitted.weights[0] if fitted.method == "temperature" else None,
        "thresholds": [vars(threshold) for threshold in thresholds],
        "calibrator": text,
        "calibrator_hash": content_hash(text, digits=64),
        **measure_change(fitted, validation),
    }


def read_valid_cases(answers: pl.DataFrame, split: str) -> Cases:
    """Return the student's valid answers of a split as arrays: those the router would ask it for.

    What the rules send to the teacher is no part of the risk that a threshold promises. Signals
    that its engine does not report for every answer of either split are left out.
    """
    compared = compare_with_labels(answers.filter(pl.col("arm") == STUDENT)).filter(
        "is_valid", "is_routed_to_student"
    )
    names = tuple(n for n in SIGNALS if compared.height and not compared[n].null_count())
    valid = compared.filter(pl.col("split") == split)
    return Cases(
        names=names,
        signals=valid.select(names).to_numpy().astype(np.float64).reshape(valid.height, len(names)),
        agrees=valid["agrees"].to_numpy().astype(bool),
        seeds=tuple(valid["seed_id"]),
    )


def choose_fitting(seeds: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Return which cases fit: those of seeds in the order of their hashes, up to half of all."""
    counts = {seed: seeds.count(seed) for seed in seeds}
    room = (len(seeds) + 1) // 2
    chosen = set()
    for seed in sorted(counts, key=lambda seed: content_hash("certify", seed)):
        if counts[seed] <= room:
            chosen.add(seed)
            room -= counts[seed]
    return np.array([seed in chosen for seed in seeds], dtype=bool)


def fit_confidence(cases: Cases, engine: Engine, *, case_count: int) -> ConfidenceCalibration:
    """Fit by the method that the number of cases allows.

    Args:
        cases: the fitting part.
        engine: what the fit holds for.
        case_count: of the whole calibration split, which decides between the methods.
    """
    shell = ConfidenceCalibration(**vars(engine), method="constant", case_count=case_count)
    right = int(cases.agrees.sum())
    if (
        len(cases) < MINIMUM_FIT_CASES
        or len(set(cases.seeds)) < FOLDS
        or min(right, len(cases) - right) < MINIMUM_CLASS_CASES
    ):
        # Laplace's rule of succession: with 20 of 20 right the next is wrong one time in 22
        return replace(shell, intercept=float(np.log((right + 1) / (len(cases) - right + 1))))
    if case_count >= ISOTONIC_CASES:
        return _fit_isotonic(shell, cases)
    if RAW_LOGIT not in cases.names:
        return _fit_platt(shell, cases)
    losses = {name: _cross_validate(name, shell, cases) for name in ("temperature", "platt")}
    chosen: CalibrationMethod = (
        "platt" if losses["platt"] < losses["temperature"] else "temperature"
    )
    return _FITS[chosen](shell, cases)


def apply_calibration(calibration: ConfidenceCalibration, cases: Cases) -> Floats:
    """Return the confidence of each case, computed as production computes it."""
    found = [
        estimate_confidence(dict(zip(cases.names, row, strict=True)), calibration)
        for row in cases.signals.tolist()
    ]
    return np.array(found, dtype=np.float64)


def measure_change(calibration: ConfidenceCalibration, cases: Cases) -> dict[str, Any]:
    """Return the measures of raw and of calibrated confidence on the validation split.

    Raw is exp(mean logprob), or the best cosine where the engine gives no logprobs.
    """
    row: dict[str, Any] = {"validation_count": len(cases)}
    if not len(cases):
        return row
    found = {"before": find_raw(cases), "after": apply_calibration(calibration, cases)}
    for name, confidences in found.items():
        measured = measure_reliability(confidences, cases.agrees, cases.seeds)
        row |= {f"{metric}_{name}": value for metric, value in measured.items()}
    return row


def find_raw(cases: Cases) -> Floats:
    """Return how sure the student says it is, uncalibrated, 0-1."""
    if RAW_LOGIT in cases.names:
        logits = cases.choose([RAW_LOGIT])[:, 0]
        return np.asarray(1 / (1 + np.exp(-logits)), dtype=np.float64)
    return np.clip(cases.choose(["retrieval_score"])[:, 0], 0, 1)


def draw_reliability(row: Mapping[str, Any], answers: pl.DataFrame) -> str:
    """Return the reliability diagram of the validation split, before and after, as Markdown."""
    calibration = read_calibrator(row) if row.get("calibrator") else None
    if calibration is None or not row["validation_count"]:
        return "No valid answer to draw."
    cases = read_valid_cases(answers, "validation")
    bins = {
        "raw": bin_answers(find_raw(cases), cases.agrees),
        "calibrated": bin_answers(apply_calibration(calibration, cases), cases.agrees),
    }
    png = charts.draw_reliability(
        {n: [(b.confidence, b.accuracy, b.count) for b in found] for n, found in bins.items()},
        title=f"Confidence of {len(cases)} valid validation answers",
    )
    return charts.embed_png(png, alt="Reliability diagram, before and after calibration")


def write_calibrator(calibration: ConfidenceCalibration) -> str:
    """Return the JSON of a calibration, in one byte form."""
    content = json.loads(_FORM.dump_json(calibration))
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def read_calibrator(row: Mapping[str, Any]) -> ConfidenceCalibration | None:
    """Return the calibration of a row; None where there was nothing to fit.

    Raises:
        InvalidInputError: the row was changed after it was made.
    """
    text = row["calibrator"]
    if text is None:
        return None
    found = content_hash(text, digits=64)
    try:
        calibration = _FORM.validate_json(text)
    except ValidationError as error:
        found = f"{found}, and {error.errors(include_url=False)[0]['msg']}"
    if found != row["calibrator_hash"]:
        raise InvalidInputError(
            f"reading the calibration of the recipe {row['recipe']}",
            expected=f"a calibrator with hash {row['calibrator_hash']}",
            found=found,
            next_step="materialize students/calibration again",
        )
    return calibration


def _fit_temperature(shell: ConfidenceCalibration, cases: Cases) -> ConfidenceCalibration:
    """Divide the raw logit by the temperature with the least log loss."""
    from scipy.optimize import minimize_scalar

    logits = cases.choose([RAW_LOGIT])[:, 0]

    def find_loss(log_temperature: float) -> float:
        return _log_loss(logits / np.exp(log_temperature), cases.agrees)

    best = minimize_scalar(find_loss, bounds=(np.log(SHARPEST), np.log(BLUNTEST)), method="bounded")
    return replace(
        shell,
        method="temperature",
        signals=(RAW_LOGIT,),
        means=(0.0,),
        scales=(1.0,),
        weights=(float(np.exp(-best.x)),),
    )


def _fit_platt(shell: ConfidenceCalibration, cases: Cases) -> ConfidenceCalibration:
    """Fit a logistic regression over all signals, standardised and with scikit-learn's L2."""
    from sklearn.linear_model import LogisticRegression

    means, scales = cases.signals.mean(axis=0), cases.signals.std(axis=0)
    scales[scales < 1e-9] = 1.0  # a signal that never varies says nothing; its weight becomes 0
    model = LogisticRegression().fit((cases.signals - means) / scales, cases.agrees)
    return replace(
        shell,
        method="platt",
        signals=cases.names,
        means=tuple(means.tolist()),
        scales=tuple(scales.tolist()),
        weights=tuple(model.coef_[0].tolist()),
        intercept=float(model.intercept_[0]),
    )


def _fit_isotonic(shell: ConfidenceCalibration, cases: Cases) -> ConfidenceCalibration:
    """Map Platt's score by isotonic regression, fitted on scores of folds that were left out."""
    from sklearn.isotonic import IsotonicRegression

    scores = np.empty(len(cases))
    for left_out in _split_folds(cases):
        inside = cases.take(~left_out)
        if not _has_both_outcomes(inside):  # all that disagree are of one seed
            return _fit_platt(shell, cases)
        scores[left_out] = _score(_fit_platt(shell, inside), cases.take(left_out))
    fitted = IsotonicRegression(out_of_bounds="clip").fit(scores, cases.agrees)
    knots = zip(fitted.X_thresholds_.tolist(), fitted.y_thresholds_.tolist(), strict=True)
    return replace(_fit_platt(shell, cases), method="isotonic", knots=tuple(knots))


_FITS = {"temperature": _fit_temperature, "platt": _fit_platt}


def _cross_validate(method: str, shell: ConfidenceCalibration, cases: Cases) -> float:
    """Return the mean log loss on folds of seeds that were left out of the fit."""
    total = 0.0
    for left_out in _split_folds(cases):
        inside, outside = cases.take(~left_out), cases.take(left_out)
        if not _has_both_outcomes(inside):
            return float("inf")
        scores = _score(_FITS[method](shell, inside), outside)
        total += _log_loss(scores, outside.agrees) * len(outside)
    return total / len(cases)


def _has_both_outcomes(cases: Cases) -> bool:
    return 0 < int(cases.agrees.sum()) < len(cases)


def _split_folds(cases: Cases) -> list[npt.NDArray[np.bool_]]:
    """Return which cases each fold leaves out; a seed is in one fold."""
    from sklearn.model_selection import GroupKFold

    folds = GroupKFold(n_splits=min(FOLDS, len(set(cases.seeds))))
    masks = []
    for _, rows in folds.split(cases.signals, cases.agrees, groups=cases.seeds):
        mask = np.zeros(len(cases), dtype=bool)
        mask[rows] = True
        masks.append(mask)
    return masks


def _score(calibration: ConfidenceCalibration, cases: Cases) -> Floats:
    standardised = (cases.choose(calibration.signals) - np.array(calibration.means)) / np.array(
        calibration.scales
    )
    return np.asarray(standardised @ np.array(calibration.weights) + calibration.intercept)


def _log_loss(scores: Floats, agrees: npt.NDArray[np.bool_]) -> float:
    """Return the mean log loss of logits: log(1 + exp(-score)) where it agrees, else of +score."""
    return float(np.logaddexp(0, np.where(agrees, -scores, scores)).mean())
