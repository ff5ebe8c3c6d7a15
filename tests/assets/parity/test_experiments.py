"""Experiments: predictions are read, refused where they make no sense, and judged by intervals."""

from dataclasses import replace

import polars as pl
import pytest

from assets.parity.experiments import Experiment, RouterVariant, list_experiments
from assets.parity.predictions import compare_predictions, judge_prediction
from assets.parity.registering import Registration, hash_prediction
from assets.students.recipe import parse_recipe
from serving.errors import InvalidInputError


def make_recipe(**keys):
    return parse_recipe({"student": "tiny", **keys}, source="test")


RECIPES = {
    "compact": make_recipe(),
    "soft": make_recipe(alpha=0.3),
    "placebo": make_recipe(
        citation_boost_on="placebo", compared_with="soft", predicted_delta={"exact_match": 0.1}
    ),
    "hard": make_recipe(alpha=1.0, predicted_delta={"cite_correctness": 0.0}),
}
VARIANTS = {
    "routed_90_10": RouterVariant(against="routed_80_20", predicted_delta={"usd_per_1k": -0.2})
}


def test_recipes_that_predict_and_router_variants_are_experiments():
    found = list_experiments(RECIPES, VARIANTS, default_recipe="compact")
    assert list(found) == ["hard", "placebo", "routed_90_10"]
    assert found["placebo"].recipes == ("soft", "placebo")
    assert found["hard"].against_recipe == "compact"
    assert found["routed_90_10"].recipes == ("compact",)


@pytest.mark.parametrize(
    ("keys", "unknown"),
    [
        ({"predicted_delta": {"exactness": 0.1}}, "metric 'exactness'"),
        ({"predicted_delta": {"exact_match": 0.1}, "compared_with": "gone"}, "recipe 'gone'"),
    ],
)
def test_a_prediction_about_nothing_is_refused(keys, unknown):
    with pytest.raises(InvalidInputError, match=f"unknown {unknown}"):
        list_experiments(RECIPES | {"wrong": make_recipe(**keys)}, {}, default_recipe="compact")


def test_a_variant_of_no_arm_is_refused():
    variant = RouterVariant(against="routed_70_30", predicted_delta={"exact_match": 0.0})
    with pytest.raises(InvalidInputError, match="unknown arm 'routed_70_30'"):
        list_experiments(RECIPES, {"routed_90_10": variant}, default_recipe="compact")


@pytest.mark.parametrize(
    ("predicted", "lower", "upper", "outcome"),
    [
        (0.1, 0.02, 0.15, "confirmed"),
        (0.1, -0.02, 0.15, "undecided"),
        (0.1, -0.10, 0.05, "contradicted"),
        (0.0, -0.05, 0.05, "confirmed"),
        (0.0, -0.90, 0.90, "undecided"),
        (0.0, 0.01, 0.05, "contradicted"),
        (0.1, None, None, "unmeasured"),
        (None, 0.02, 0.15, "unpredicted"),
        (None, None, None, "unmeasured"),
    ],
)
def test_an_interval_judges_a_prediction(predicted, lower, upper, outcome):
    assert judge_prediction(predicted, lower, upper) == outcome


def write_rows(right: list[int], *, arm: str = "student") -> pl.DataFrame:
    return pl.DataFrame(
        {
            "arm": arm,
            "case_id": [f"g{number}" for number in range(len(right))],
            "repeat": 0,
            "metric": "exact_match",
            "numerator": [float(value) for value in right],
            "denominator": 1.0,
            "status": "graded",
            "bucket": "answerable",
            "cluster": [f"page{number % 10}" for number in range(len(right))],
        }
    )


def make_experiment(predicted: float) -> Experiment:
    return Experiment(
        name="leak",
        description="",
        recipe="contaminated",
        arm="student",
        against_recipe="compact",
        against_arm="student",
        predicted={"exact_match": predicted},
    )


def register(predicted: float) -> dict[str, Registration]:
    """Return what a run writes down of `make_experiment` before it asks the student."""
    experiment = make_experiment(predicted)
    return {
        experiment.name: Registration(
            experiment=experiment.name,
            adapter_sha256="a",
            predicted=experiment.predicted,
            prediction_hash=hash_prediction(experiment),
            registered_at="2026-11-22T00:00:00+00:00",
            run_id="r1",
        )
    }


def test_a_delta_is_measured_on_pairs_across_recipes():
    measured = {
        "contaminated": write_rows([1] * 40 + [0] * 60),
        "compact": write_rows([1] * 10 + [0] * 90),
    }
    row = compare_predictions([make_experiment(0.3)], measured, register(0.3)).row(0, named=True)
    assert row["measured_delta"] == pytest.approx(0.3)
    assert row["lower"] < 0.3 < row["upper"]
    assert row["n"] == 100
    assert row["method"] == "tango"
    assert row["mcnemar_p"] < 1e-6
    assert row["outcome"] == "confirmed"


def test_a_null_is_published_as_one():
    measured = {name: write_rows([1, 0] * 50) for name in ("contaminated", "compact")}
    rows = compare_predictions([make_experiment(0.2)], measured, register(0.2))
    assert rows["outcome"].to_list() == ["contradicted"]
    assert rows["measured_delta"].to_list() == [0.0]


@pytest.mark.parametrize(
    ("pages", "predicted", "outcome"),
    [(14, 0.0, "undecided"), (14, 0.1, "undecided"), (14, 0.3, "contradicted"),
     (72, 0.0, "confirmed"), (71, 0.0, "undecided"), (72, 0.1, "contradicted")],
)  # fmt: skip
def test_a_few_pages_that_do_not_differ_prove_little(pages, predicted, outcome):
    rows = write_rows([1] * 2 * pages).with_columns(
        metric=pl.lit("cite_correctness"), cluster=pl.format("page{}", pl.int_range(pl.len()) // 2)
    )
    experiment = replace(make_experiment(0.0), predicted={"cite_correctness": predicted})
    told = replace(
        register(0.0)["leak"],
        predicted=experiment.predicted,
        prediction_hash=hash_prediction(experiment),
    )
    measured = {"contaminated": rows, "compact": rows}
    row = compare_predictions([experiment], measured, {"leak": told}).row(0, named=True)
    assert row["measured_delta"] == 0.0
    assert row["upper"] == -row["lower"] == pytest.approx(1 - 0.025 ** (1 / pages))
    assert row["outcome"] == outcome


def test_what_was_never_run_is_unmeasured_and_no_zero():
    row = compare_predictions([make_experiment(0.2)], {}).row(0, named=True)
    assert row["outcome"] == "unmeasured"
    assert row["measured_delta"] is None
