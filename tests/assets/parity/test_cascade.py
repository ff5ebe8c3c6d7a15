"""Two students in turn: what is derived for them is what the request path does with them."""

import asyncio
import itertools
from dataclasses import replace
from types import SimpleNamespace

import polars as pl
import pytest

from assets import tables
from assets.parity.answering import answer_arms, answer_plan
from assets.parity.arms import DEFAULT_ARMS, ArmPlan
from assets.parity.cascade import (
    RecipeTerms,
    SmallerStudent,
    derive_cascade,
    describe_cascade,
    read_smaller,
    refuse_unfit_smaller,
)
from assets.parity.prices import StatedPrice
from assets.students.calibration import write_calibrator
from orchestration.bindings import Bindings
from orchestration.config import ParitySection, read_config
from orchestration.definitions import fingerprint_stage
from serving.errors import InvalidInputError, UpstreamError
from serving.hashing import content_hash
from serving.home import Home
from serving.models.protocols import NoProgress, Price
from serving.pipeline.answer import AnswerPipeline
from serving.pipeline.confidence import ConfidenceCalibration, RiskThreshold
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.router import RouterPolicy
from serving.pipeline.tiers import Tier
from serving.pipeline.validator import ValidatorPolicy
from tests.serving.fakes import (
    GOOD,
    INVALID,
    STUDENT_PRICE,
    TEACHER_PRICE,
    CannedChatModel,
    CannedRetriever,
)

DOWN = UpstreamError("asking", expected="200", found="503", next_step="wait")
REFUSAL = "REFUSE"
CASES = [(f"g{number}", f"Where do variables of kind {number} go?") for number in range(2)]
CHEAP = Price(input_usd_per_mtok=0.01, output_usd_per_mtok=0.02)
POLICY = RouterPolicy(long_context_tokens=100_000)
POLICIES = (
    POLICY,
    replace(POLICY, min_retrieval_score=0.9),
    replace(POLICY, high_stakes_terms=("kind 1",)),
)
STANDS, DOUBTED = 0.4, 0.6  # every answer here has the confidence .5
MEASURED = {"latency_ms", "retrieval_ms", "first_token_ms", "cost_usd"}


def calibrate(threshold: float | None, sha256: str = "a") -> ConfidenceCalibration | None:
    if threshold is None:
        return None
    return ConfidenceCalibration(
        adapter_sha256=sha256, engine="local", dtype="float32", method="constant", case_count=60,
        intercept=0.0, thresholds=(RiskThreshold(risk_limit_ratio=0.05, threshold=threshold),),
    )  # fmt: skip


def make_pipeline(teacher, student, smaller: Tier, *, policy=POLICY, threshold=None):
    return AnswerPipeline(
        retriever=CannedRetriever(),
        teacher=CannedChatModel("teacher-1", teacher, price=TEACHER_PRICE),
        student=CannedChatModel("student@1", student, price=STUDENT_PRICE),
        prompt=PromptFormat(),
        router=policy,
        validator=ValidatorPolicy(),
        count_tokens=len,
        calibration=calibrate(threshold),
        smaller=(smaller,),
    )


def make_smaller(answer, threshold: float | None) -> Tier:
    return Tier(
        model=CannedChatModel("smaller@1", answer, price=CHEAP), calibration=calibrate(threshold)
    )


def ask_all(pipeline: AnswerPipeline) -> list[dict]:
    """The four arms that models answer, the cascade executed among them."""
    (smaller,) = pipeline.smaller
    alone = replace(pipeline, student=smaller.model, calibration=smaller.calibration, smaller=())
    pipelines = {
        "teacher": pipeline, "student": pipeline, "smaller": alone, "cascade": pipeline,
    }  # fmt: skip
    rows = asyncio.run(answer_arms(CASES, pipelines=pipelines, progress=NoProgress()))
    return pl.DataFrame(rows, schema=tables.ARM_ANSWERS).to_dicts()


def state_fitted(calibration: ConfidenceCalibration | None) -> dict:
    text = calibration and write_calibrator(calibration)
    return {"calibrator": text, "calibrator_hash": content_hash(text, digits=64)}


def derive(rows, pipeline: AnswerPipeline) -> list[dict]:
    (tier,) = pipeline.smaller
    fitted = state_fitted(pipeline.calibration)
    smaller = SmallerStudent(adapter={}, calibration=tier.calibration)
    return derive_cascade(rows, fitted, smaller, pipeline.router)


def test_a_derived_cascade_is_the_executed_one():
    compared = 0
    for policy, teacher, student, first, threshold, first_threshold in itertools.product(
        POLICIES, (GOOD, INVALID, DOWN), (GOOD, INVALID, DOWN), (GOOD, INVALID, REFUSAL, DOWN),
        (None, STANDS, DOUBTED), (None, STANDS, DOUBTED),
    ):  # fmt: skip
        if policy is not POLICY and (threshold or student is not GOOD):
            continue  # rules come before students: one kind of them is enough
        tier = make_smaller(first, first_threshold)
        pipeline = make_pipeline(teacher, student, tier, policy=policy, threshold=threshold)
        rows = ask_all(pipeline)
        executed = {(r["case_id"], r["repeat"]): r for r in rows if r["arm"] == "cascade"}
        derived = derive(rows, pipeline)
        assert len(derived) == len(executed) == 4
        told = (teacher, student, first, threshold, first_threshold)
        for row in derived:
            expected = executed[row["case_id"], row["repeat"]]
            compared += 1
            if expected["error"] is not None:
                assert row["error"] is not None, told
                continue
            for name in set(expected) - MEASURED:
                assert row[name] == expected[name], (name, told)
            assert row["cost_usd"] == pytest.approx(expected["cost_usd"]), told
    assert compared > 1_000


def test_each_is_paid_for_and_waited_for_and_shares_add_up():
    pipeline = make_pipeline(GOOD, GOOD, make_smaller(GOOD, DOUBTED), threshold=DOUBTED)
    rows = ask_all(pipeline)
    of = {row["arm"]: row for row in rows if (row["repeat"], row["case_id"]) == (1, "g0")}
    asked = [of[arm] for arm in ("smaller", "student", "teacher")]
    (row,) = [r for r in derive(rows, pipeline) if (r["repeat"], r["case_id"]) == (1, "g0")]
    assert (row["served_by"], row["used_fallback"]) == ("teacher", True)
    assert row["cost_usd"] == pytest.approx(sum(one["cost_usd"] for one in asked))
    models_ms = sum(one["latency_ms"] - one["retrieval_ms"] for one in asked)
    assert row["latency_ms"] == pytest.approx(of["teacher"]["retrieval_ms"] + models_ms)


@pytest.mark.parametrize(
    ("first_threshold", "threshold", "shares"),
    [(STANDS, DOUBTED, (1, 0, 0)), (DOUBTED, STANDS, (0, 1, 0)), (DOUBTED, DOUBTED, (0, 0, 1)),
     (None, STANDS, (0, 1, 0))],
)  # fmt: skip
def test_the_cheapest_that_is_sure_enough_answers(first_threshold, threshold, shares):
    pipeline = make_pipeline(GOOD, GOOD, make_smaller(GOOD, first_threshold), threshold=threshold)
    rows = [row for row in ask_all(pipeline) if row["arm"] != "cascade"]
    derived = derive(rows, pipeline)
    frame = pl.DataFrame([*rows, *derived], schema=tables.ARM_ANSWERS)
    told = describe_cascade(frame)
    assert tuple(told[f"cascade_{name}_ratio"] for name in ("smaller", "student", "teacher")) == (
        shares
    )
    price = {(1, 0, 0): "smaller", (0, 0, 1): "teacher"}.get(shares, "student")
    own = frame.filter(arm=price, repeat=0)["cost_usd"]
    cascade = frame.filter(arm="cascade", repeat=0)["cost_usd"]
    assert (cascade >= own).all()
    assert (cascade == own).all() == (shares[0] == 1 or first_threshold is None)


def test_the_smaller_student_is_asked_beside_the_planned_arms():
    class Parts:
        async def assemble(self, _, *, student, calibration):
            pipeline = make_pipeline(GOOD, GOOD, make_smaller(GOOD, None))
            return replace(pipeline, student=student, calibration=calibration, smaller=())

    def ask(smaller: Tier | None) -> set[tuple[str, str]]:
        rows = asyncio.run(
            answer_plan(
                CASES, plan=ArmPlan(arms=("teacher", "student", "routed")), parts=Parts(),
                index_fingerprint="i", student=CannedChatModel("student@1", GOOD),
                calibration=None, untrained={}, progress=NoProgress(), smaller=smaller,
            )
        )  # fmt: skip
        return {(row["arm"], row["model"]) for row in rows}

    plain = ask(None)
    assert {arm for arm, _ in plain} == {"teacher", "student", "routed"}
    assert ask(make_smaller(GOOD, STANDS)) - plain == {("smaller", "smaller@1")}


MAIN = {"adapter_sha256": "m"}


def test_the_tables_of_its_recipe_say_who_it_is(tmp_path):
    home, written = Home(tmp_path), {}

    def write(key: str, recipe: str, **values) -> None:
        schema = tables.BY_KEY[tuple(key.split("/"))]
        path = home.table(key, recipe)
        path.parent.mkdir(parents=True, exist_ok=True)
        pl.DataFrame([dict.fromkeys(schema) | values], schema=schema).write_parquet(path)
        written[key] = path

    with pytest.raises(InvalidInputError, match=r"smaller_recipe.*none.*run --recipe tiny"):
        read_smaller(home, "tiny", main=MAIN)
    write("students/student_adapter", "tiny", adapter="tiny@1", adapter_sha256="a")
    write("students/calibration", "tiny", adapter_sha256="b")
    with pytest.raises(InvalidInputError, match="tiny@1 without its calibration"):
        read_smaller(home, "tiny", main=MAIN)
    fitted = state_fitted(calibrate(STANDS)) | {"adapter_sha256": "a"}
    write("students/calibration", "tiny", **fitted)
    found = read_smaller(home, "tiny", main=MAIN)
    assert found.adapter["adapter"] == "tiny@1"
    assert found.find_threshold(POLICY) == STANDS
    assert found.find_threshold(replace(POLICY, maximum_risk_ratio=None)) is None
    with pytest.raises(InvalidInputError, match=r"own.*tiny@1, the very student"):
        read_smaller(home, "tiny", main={"adapter_sha256": "a"})
    shelf = SimpleNamespace(load=lambda row: CannedChatModel(row["adapter"], GOOD))
    tier = found.open(shelf)
    assert (tier.model.name, tier.calibration) == ("tiny@1", found.calibration)
    frame = pl.read_parquet(written["students/student_adapter"])
    frame.drop("base_hash").write_parquet(written["students/student_adapter"])
    with pytest.raises(InvalidInputError, match="found none"):
        read_smaller(home, "tiny", main=MAIN)


PRICED = StatedPrice(input_usd_per_mtok=0.1, output_usd_per_mtok=0.2)
FREE = StatedPrice(input_usd_per_mtok=0.0, output_usd_per_mtok=0.0)
RECIPES = {
    "compact": RecipeTerms(lane="clean", price=PRICED),
    "tiny": RecipeTerms(lane="clean", price=PRICED),
    "leaked": RecipeTerms(lane="contaminated", price=PRICED),
    "unpriced": RecipeTerms(lane="clean", price=StatedPrice(input_usd_per_mtok=0.1)),
    "free": RecipeTerms(lane="clean", price=FREE),
}


def test_a_smaller_student_that_no_report_could_be_of_is_refused():
    refuse_unfit_smaller("tiny", RECIPES, main_recipe="compact")
    refuse_unfit_smaller("free", RECIPES | {"compact": RECIPES["free"]}, main_recipe="compact")
    for recipe, told in (
        ("tny", "free, tiny, unpriced.*no recipe"), ("compact", "the default recipe"),
        ("leaked", "contaminated"), ("unpriced", "price is stated"), ("free", "price is stated"),
    ):  # fmt: skip
        with pytest.raises(InvalidInputError, match=rf"smaller_recipe.*{told}"):
            refuse_unfit_smaller(recipe, RECIPES, main_recipe="compact")


FILE = """\
home: ./made
product: {name: mine, corpus: {path: pages}}
seeds: {path: seeds.jsonl}
eval: {golden: golden.jsonl}
teacher: {model: extractive-v1, license: MIT, trainable: true}
judge: {model: extractive-judge-v1, epoch: "2026-11"}
recipes: recipes
students:
  compact:
    base_model: some/base
    revision: 0123abc
    price: {input_usd_per_mtok: 0.1, output_usd_per_mtok: 0.2}
"""


def test_the_config_names_it_and_without_it_nothing_is_stale(tmp_path):
    (tmp_path / "recipes").mkdir()
    for name in ("compact", "tiny"):
        (tmp_path / "recipes" / f"{name}.yaml").write_text("student: compact\n")

    def read(text: str):
        path = tmp_path / "product.yaml"
        path.write_text(FILE + text, encoding="utf-8")
        return read_config(path)

    plain, cascaded = read(""), read("parity: {smaller_recipe: tiny}\n")
    assert ParitySection().model_dump(mode="json") == {"arms": list(DEFAULT_ARMS)}
    assert Bindings(plain, NoProgress()).arm_plan == ArmPlan()
    plan = Bindings(cascaded, NoProgress()).arm_plan
    assert (plan.find_smaller("compact"), plan.find_smaller("tiny")) == ("tiny", None)
    assert plan.arms == DEFAULT_ARMS
    stages = ("students", "parity", "releases")
    same = [fingerprint_stage(s, plain) == fingerprint_stage(s, cascaded) for s in stages]
    assert same[:2] == [True, False]
    with pytest.raises(InvalidInputError, match=r"parity\.smaller_recipe.*no recipe"):
        _ = Bindings(read("parity: {smaller_recipe: tny}\n"), NoProgress()).arm_plan
