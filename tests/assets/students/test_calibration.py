"""Calibration: what is fitted to which cases, against scikit-learn, and what a release gets."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from assets import tables
from assets.students.calibration import (
    Cases,
    Engine,
    apply_calibration,
    calibrate,
    choose_fitting,
    draw_reliability,
    fit_confidence,
    read_calibrator,
    read_valid_cases,
    write_calibrator,
)
from serving.errors import InvalidInputError
from serving.pipeline.confidence import RAW_LOGIT
from tests.assets.students.held_out_rows import SHA, WRONG, draw_answers, make_answers, make_row

ENGINE = Engine(adapter_sha256=SHA, engine="local", dtype="float32")


def make_cases(logits, agrees, *extra) -> Cases:
    names = (RAW_LOGIT, "mean_margin", "retrieval_score")[: 1 + len(extra)]
    return Cases(
        names=names,
        signals=np.column_stack([logits, *extra]).astype(float),
        agrees=np.asarray(agrees, dtype=bool),
        seeds=tuple(str(n) for n in range(len(agrees))),
    )


def draw_cases(count: int, *, temperature: float = 1.0, helps: float = 0.0, seed: int = 0) -> Cases:
    """Cases right as often as logit / temperature + helps * margin says."""
    generator = np.random.default_rng(seed)
    logits, margins = generator.normal(2, 2, count), generator.normal(0, 1, count)
    truth = 1 / (1 + np.exp(-(logits / temperature + helps * margins)))
    return make_cases(logits, generator.random(count) < truth, margins)


def row_of(answers: pl.DataFrame) -> dict:
    return {"recipe": "r", **calibrate(answers, ENGINE)}


def test_temperature_scaling_is_the_least_log_loss_found_by_another_optimizer():
    cases = draw_cases(400, temperature=3.0)
    cases = replace(cases, names=(RAW_LOGIT,), signals=cases.signals[:, :1])
    found = fit_confidence(cases, ENGINE, case_count=400)
    assert found.method == "temperature"
    logits = cases.signals[:, 0]
    best = minimize(
        lambda t: log_loss(cases.agrees, 1 / (1 + np.exp(-logits / t[0]))),
        x0=[1.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12},
    )  # fmt: skip
    assert 1 / found.weights[0] == pytest.approx(best.x[0], rel=1e-3)
    assert 1 / found.weights[0] == pytest.approx(3.0, rel=0.3)


def test_platt_is_scikit_learns_regression_and_is_chosen_where_other_signals_tell_more():
    cases = draw_cases(300, temperature=2.0, helps=3.0)
    found = fit_confidence(cases, ENGINE, case_count=300)
    assert found.method == "platt"
    scaled = (cases.signals - cases.signals.mean(0)) / cases.signals.std(0)
    expected = LogisticRegression().fit(scaled, cases.agrees).predict_proba(scaled)[:, 1]
    assert apply_calibration(found, cases) == pytest.approx(expected)


def test_isotonic_takes_over_at_a_thousand_cases_and_mends_what_platt_cannot():
    generator = np.random.default_rng(5)
    logits = generator.uniform(-3, 3, 2_000)
    truth = np.where(np.abs(logits) < 1, 0.5, np.where(logits > 0, 0.6, 0.05))
    cases = make_cases(logits, generator.random(2_000) < truth)
    fitted = cases.take(np.arange(2_000) < 1_000)
    fresh = cases.take(np.arange(2_000) >= 1_000)
    isotonic = fit_confidence(fitted, ENGINE, case_count=1_000)
    below = fit_confidence(fitted, ENGINE, case_count=999)
    assert (isotonic.method, below.method in {"platt", "temperature"}) == ("isotonic", True)
    confidences = [k[1] for k in isotonic.knots]
    assert confidences == sorted(confidences)
    losses = [
        float(((apply_calibration(c, fresh) - fresh.agrees) ** 2).mean()) for c in (isotonic, below)
    ]
    assert losses[0] < losses[1]


@pytest.mark.parametrize(("right", "wrong"), [(30, 0), (0, 30), (30, 4), (10, 9)])
def test_too_few_of_either_kind_give_a_constant_that_is_never_certain(right, wrong):
    agrees = [True] * right + [False] * wrong
    cases = make_cases(np.linspace(0, 1, len(agrees)), agrees)
    found = fit_confidence(cases, ENGINE, case_count=len(agrees))
    assert found.method == "constant"
    assert apply_calibration(found, cases)[0] == pytest.approx((right + 1) / (right + wrong + 2))


def test_cases_of_fewer_seeds_than_folds_are_not_regressed_on():
    cases = draw_cases(60, temperature=2.0)
    few = replace(cases, seeds=tuple("abcd"[n % 4] for n in range(60)))
    assert fit_confidence(few, ENGINE, case_count=60).method == "constant"


def test_fitting_and_certifying_share_no_seed_and_are_halves():
    seeds = [f"s{n // 3}" for n in range(90)]
    fitting = choose_fitting(seeds)
    assert fitting.sum() == 45
    inside = {s for s, f in zip(seeds, fitting, strict=True) if f}
    assert inside.isdisjoint({s for s, f in zip(seeds, fitting, strict=True) if not f})
    assert (choose_fitting(seeds) == fitting).all()
    assert not choose_fitting(["one"] * 9).any()


def test_an_overconfident_student_is_calibrated_on_answers_it_was_not_fitted_to():
    answers = make_answers(
        draw_answers(400, split="calibration", seed=1, sharpness=0.3)
        + draw_answers(400, split="validation", seed=2, sharpness=0.3)
    )
    row = row_of(answers)
    assert (row["fit_count"], row["certify_count"], row["validation_count"]) == (200, 200, 400)
    assert row["brier_after"] < row["brier_before"]
    assert row["ece_after"] < row["ece_before"]
    assert row["ece_lower_after"] <= row["ece_after"] <= row["ece_upper_before"]
    assert pl.DataFrame([row], schema=tables.CALIBRATION).height == 1
    assert draw_reliability(row, answers).startswith("![Reliability diagram")


def test_the_validation_split_never_decides_what_is_fitted():
    fitting = draw_answers(80, split="calibration", seed=1)
    one, other = (
        row_of(make_answers(fitting + draw_answers(80, split="validation", seed=s))) for s in (2, 3)
    )
    assert one["calibrator"] == other["calibrator"]
    assert one["brier_after"] != other["brier_after"]


def test_invalid_and_failed_answers_are_counted_and_left_out():
    rows = draw_answers(60, split="calibration", seed=1)
    for row in rows[:20]:
        row["verdict"] = "uncited_statement"
    rows[20] |= {"error": "503", "verdict": None, "answer": None, "citations": None}
    row = row_of(make_answers(rows))
    assert (row["asked_count"], row["invalid_count"], row["fit_count"] + row["certify_count"]) == (
        60, 21, 39,
    )  # fmt: skip


def test_a_student_without_a_valid_answer_has_no_calibrator():
    row = row_of(make_answers([make_row(1, split="calibration", verdict="empty")]))
    assert (row["method"], row["fit_count"]) == ("none", 0)
    stored = pl.DataFrame([row], schema=tables.CALIBRATION).row(0, named=True)
    assert read_calibrator(stored) is None
    assert draw_reliability(row, make_answers([])) == "No valid answer to draw."


def test_an_engine_without_logprobs_is_calibrated_by_what_was_retrieved():
    rows = [
        row | {"mean_logprob": None, "raw_logit": None, "citation_logprob": None}
        | {"first_margin": None, "mean_margin": None}
        for split in ("calibration", "validation")
        for row in draw_answers(120, split=split, seed=4)
    ]  # fmt: skip
    answers = make_answers(rows)
    assert read_valid_cases(answers, "calibration").names == (
        "retrieval_score", "retrieval_margin", "is_refusal",
    )  # fmt: skip
    assert row_of(answers)["method"] in {"platt", "constant"}


def test_59_faultless_certifying_answers_certify_5_percent_in_the_row():
    rows = [
        make_row(n, split="calibration", seed_id=f"s{n}", raw_logit=3.0, mean_logprob=-0.05,
                 citation_logprob=0.0, first_margin=1.0, mean_margin=1.0, retrieval_score=0.7,
                 retrieval_margin=0.1, is_refusal=0.0)
        for n in range(118)
    ]  # fmt: skip
    calibration = read_calibrator(row_of(make_answers(rows)))
    assert calibration.find_threshold(0.05) == 0.0
    rows[0] |= WRONG
    rows[1] |= WRONG
    spoiled = [read_calibrator(row_of(make_answers(rows[:n]))) for n in (118, 116)]
    assert [c.find_threshold(0.05) for c in spoiled] == [None, None]


def test_one_answer_of_each_seed_certifies():
    rows = draw_answers(120, split="calibration", seed=6, per_seed=3)
    row = row_of(make_answers(rows))
    assert (row["fit_count"], row["certify_count"]) == (60, 20)
    certified = [limit["accepted_count"] for limit in row["thresholds"]]
    assert max(certified) <= 20


def test_the_calibrator_survives_its_json_and_a_changed_one_is_refused():
    row = row_of(make_answers(draw_answers(120, split="calibration", seed=6, per_seed=2)))
    calibration = read_calibrator(row)
    assert write_calibrator(calibration) == row["calibrator"]
    assert (calibration.adapter_sha256, calibration.engine, calibration.dtype) == (
        SHA, "local", "float32",
    )  # fmt: skip
    assert len(row["calibrator"]) < 4_000
    weaker = row["calibrator"].replace('"intercept":', '"intercept":1')
    with pytest.raises(InvalidInputError, match="calibration again"):
        read_calibrator(row | {"calibrator": weaker})


def test_the_confidence_in_production_is_the_one_that_was_certified():
    cases = draw_cases(200, temperature=2.0, helps=1.0)
    fitted = fit_confidence(cases, ENGINE, case_count=200)
    scores = (cases.signals - np.array(fitted.means)) / np.array(fitted.scales)
    expected = [
        1 / (1 + math.exp(-z)) for z in scores @ np.array(fitted.weights) + fitted.intercept
    ]
    assert apply_calibration(fitted, cases) == pytest.approx(expected)
