"""Two students in turn: what is derived for them is what the request path does with them."""

import asyncio
import itertools
from dataclasses import replace
from types import SimpleNamespace

import polars as pl
import pytest

from assets import tables
from assets.parity.answering import answer_plan
from assets.parity.arms import DEFAULT_ARMS, ArmPlan
from assets.parity.cascade import (
    RecipeTerms,
    derive_cascade,
    describe_cascade,
    refuse_unfit_smaller,
)
from assets.parity.costs import measure_costs
from assets.parity.prices import StatedPrice
from assets.parity.tiers import (
    TierStudent,
    fingerprint_before,
    gather_tiers,
    list_before,
    state_fitted,
)
from orchestration.bindings import Bindings
from orchestration.config import ParitySection, ReleasesSection
from orchestration.definitions import fingerprint_stage
from serving.errors import InvalidInputError
from serving.home import Home
from serving.models.protocols import NoProgress, Price
from serving.pipeline.answer import AnswerPipeline
from serving.pipeline.router import RouterPolicy
from serving.pipeline.tiers import Tier
from tests.assets.parity.asked_arms import (
    DOWN,
    REFUSAL,
    ask_arms,
    calibrate,
    make_cases,
    make_pipeline,
)
from tests.orchestration.products import read_product
from tests.serving.fakes import GOOD, INVALID, CannedChatModel

CASES = make_cases(2)
CHEAP = Price(input_usd_per_mtok=0.01, output_usd_per_mtok=0.02)
POLICY = RouterPolicy(long_context_tokens=100_000)
POLICIES = (
    POLICY,
    replace(POLICY, min_retrieval_score=0.9),
    replace(POLICY, high_stakes_terms=("kind 1",)),
)
STANDS, DOUBTED = 0.4, 0.6  # every answer here has the confidence .5
MEASURED = {"latency_ms", "retrieval_ms", "first_token_ms", "cost_usd"}


def make_smaller(answer, threshold: float | None) -> Tier:
    return Tier(
        model=CannedChatModel("smaller@1", answer, price=CHEAP), calibration=calibrate(threshold)
    )


def make_cascade(
    teacher, student, smaller: Tier, *, policy=POLICY, threshold=None
) -> AnswerPipeline:
    return make_pipeline(teacher, student, policy=policy, threshold=threshold, smaller=(smaller,))


def ask_all(pipeline: AnswerPipeline) -> list[dict]:
    """The four arms that models answer, the cascade executed among them."""
    (smaller,) = pipeline.smaller
    alone = replace(pipeline, student=smaller.model, calibration=smaller.calibration, smaller=())
    pipelines = {
        "teacher": pipeline, "student": pipeline, "smaller": alone, "cascade": pipeline,
    }  # fmt: skip
    return ask_arms(CASES, pipelines)


def derive(rows, pipeline: AnswerPipeline) -> list[dict]:
    (smaller,) = pipeline.smaller
    tiers = [
        TierStudent(adapter={}, fitted=state_fitted(calibration))
        for calibration in (smaller.calibration, pipeline.calibration)
    ]
    return derive_cascade(rows, tiers, pipeline.router)


def test_a_derived_cascade_is_the_executed_one():
    compared = 0
    for policy, teacher, student, first, threshold, first_threshold in itertools.product(
        POLICIES, (GOOD, INVALID, DOWN), (GOOD, INVALID, DOWN), (GOOD, INVALID, REFUSAL, DOWN),
        (None, STANDS, DOUBTED), (None, STANDS, DOUBTED),
    ):  # fmt: skip
        if policy is not POLICY and (threshold or student is not GOOD):
            continue  # rules come before students: one kind of them is enough
        tier = make_smaller(first, first_threshold)
        pipeline = make_cascade(teacher, student, tier, policy=policy, threshold=threshold)
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
    pipeline = make_cascade(GOOD, GOOD, make_smaller(GOOD, DOUBTED), threshold=DOUBTED)
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
    pipeline = make_cascade(GOOD, GOOD, make_smaller(GOOD, first_threshold), threshold=threshold)
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


class Parts:
    """Assembles the request path over canned models."""

    async def assemble(self, _, *, student, calibration, smaller):
        pipeline = make_pipeline(GOOD, GOOD, policy=POLICY)
        return replace(pipeline, student=student, calibration=calibration, smaller=smaller)


PLANNED = ("teacher", "student", "routed")


def ask_plan(*smaller: Tier, is_released: bool = False) -> set[tuple[str, str]]:
    own = Tier(model=CannedChatModel("student@1", GOOD))
    rows = asyncio.run(
        answer_plan(
            CASES, plan=ArmPlan(arms=PLANNED, is_released=is_released), parts=Parts(),
            index_fingerprint="i", tiers=(*smaller, own), untrained={}, progress=NoProgress(),
        )
    )  # fmt: skip
    return {(row["arm"], row["model"]) for row in rows}


def test_the_smaller_student_is_asked_beside_the_planned_arms():
    plain = ask_plan()
    assert {arm for arm, _ in plain} == {"teacher", "student", "routed"}
    assert ask_plan(make_smaller(GOOD, STANDS)) - plain == {("smaller", "smaller@1")}


@pytest.mark.parametrize(
    ("answer", "threshold", "model"),
    [(GOOD, STANDS, "smaller@1"), (GOOD, DOUBTED, "student@1"), (INVALID, STANDS, "student@1")],
)
def test_a_released_smaller_student_is_asked_in_the_arm_that_the_gate_judges(
    answer, threshold, model
):
    asked = ask_plan(make_smaller(answer, threshold), is_released=True)
    assert asked == {
        ("teacher", "teacher-1"), ("student", "student@1"), ("smaller", "smaller@1"),
        ("routed", model),
    }  # fmt: skip


def test_what_each_of_two_costs_is_counted_by_who_was_asked():
    """The first keeps case 0, doubts case 1; the second keeps that; both calls are paid for it."""
    smaller = make_smaller(lambda request: GOOD if "kind 0" in str(request) else INVALID, STANDS)
    rows = ask_all(make_cascade(GOOD, GOOD, smaller))
    of = {(row["arm"], row["case_id"]): row["cost_usd"] for row in rows if row["repeat"] == 0}
    for arm, absent in (("cascade", ""), ("routed", "cascade")):
        renamed = [row | {"arm": arm} if row["arm"] == "cascade" else row for row in rows]
        frame = pl.DataFrame(renamed, schema=tables.ARM_ANSWERS).filter(pl.col("arm") != absent)
        costs = measure_costs(frame, arm)
        paid = of["smaller", "g0"] + of["smaller", "g1"] + of["student", "g1"]
        assert (costs.n, costs.student_calls_ratio, costs.fallback_ratio) == (2, 1.5, 0.0)
        assert costs.student_usd == pytest.approx(paid / 3)
        assert costs.teacher_part_usd == pytest.approx(0.0)
        assert costs.saving_usd == pytest.approx(costs.teacher_usd - paid / 2)
        seconds = {
            name: frame.filter(pl.col("repeat") > 0, arm=name)
            .select((pl.col("latency_ms") - pl.col("retrieval_ms")).mean() / 1000)
            .item()
            for name in ("smaller", "student")
        }
        expected = (2 * seconds["smaller"] + seconds["student"]) / 3
        assert costs.student_seconds == pytest.approx(expected)
    alone = measure_costs(frame, "student")
    assert alone.student_calls_ratio == 1.0


MAIN = {"recipe": "main", "adapter_sha256": "m"}


def test_the_tables_of_its_recipe_say_who_it_is(tmp_path):
    home, written = Home(tmp_path), {}

    def write(key: str, recipe: str, **values) -> None:
        schema = tables.BY_KEY[tuple(key.split("/"))]
        path = home.table(key, recipe)
        path.parent.mkdir(parents=True, exist_ok=True)
        pl.DataFrame([dict.fromkeys(schema) | values], schema=schema).write_parquet(path)
        written[key] = path

    def read(main=MAIN) -> TierStudent:
        fitted = {"calibrator": None}
        smaller, own = gather_tiers(home, ("tiny", "main"), adapter=main, fitted=fitted)
        assert own.adapter == main
        return smaller

    with pytest.raises(InvalidInputError, match=r"smaller_recipe.*none.*run --recipe tiny"):
        read()
    write("students/student_adapter", "tiny", adapter="tiny@1", adapter_sha256="a")
    write("students/calibration", "tiny", adapter_sha256="b")
    with pytest.raises(InvalidInputError, match="tiny@1 without its calibration"):
        read()
    fitted = state_fitted(calibrate(STANDS)) | {"adapter_sha256": "a"}
    write("students/calibration", "tiny", **fitted)
    found = read()
    assert found.adapter["adapter"] == "tiny@1"
    assert found.find_threshold(POLICY) == STANDS
    assert found.find_threshold(replace(POLICY, maximum_risk_ratio=None)) is None
    with pytest.raises(InvalidInputError, match=r"own.*tiny@1, the very student"):
        read(main=MAIN | {"adapter_sha256": "a"})
    shelf = SimpleNamespace(load=lambda row: CannedChatModel(row["adapter"], GOOD))
    tier = found.open(shelf)
    assert (tier.model.name, tier.calibration) == ("tiny@1", found.calibration)
    frame = pl.read_parquet(written["students/student_adapter"])
    frame.drop("base_hash").write_parquet(written["students/student_adapter"])
    with pytest.raises(InvalidInputError, match="found none"):
        read()
    written["students/student_adapter"].write_bytes(b"PAR1 cut off")
    with pytest.raises(InvalidInputError, match=r"smaller_recipe.*none.*run --recipe tiny"):
        read()


PRICED = StatedPrice(input_usd_per_mtok=0.1, output_usd_per_mtok=0.2)
FREE = StatedPrice(input_usd_per_mtok=0.0, output_usd_per_mtok=0.0)
RECIPES = {
    "compact": RecipeTerms(lane="clean", price=PRICED),
    "tiny": RecipeTerms(lane="clean", price=PRICED),
    "leaked": RecipeTerms(lane="contaminated", price=PRICED),
    "unpriced": RecipeTerms(lane="clean", price=StatedPrice(input_usd_per_mtok=0.1)),
    "free": RecipeTerms(lane="clean", price=FREE),
}


def test_a_smaller_student_that_was_trained_again_is_another_version(tmp_path):
    home, released = Home(tmp_path), ArmPlan(tiers=("tiny", "compact"), is_released=True)
    tried = replace(released, is_released=False)

    def write(**values) -> None:
        for key in ("students/student_adapter", "students/calibration"):
            schema = tables.BY_KEY[tuple(key.split("/"))]
            path = home.table(key, "tiny")
            path.parent.mkdir(parents=True, exist_ok=True)
            row = dict.fromkeys(schema) | {n: v for n, v in values.items() if n in schema}
            pl.DataFrame([row], schema=schema).write_parquet(path)

    seen = {fingerprint_before(home, released, "compact")}
    for values in (
        {"adapter_sha256": "a", "calibrator_hash": "c"},
        {"adapter_sha256": "b", "calibrator_hash": "c"},
        {"adapter_sha256": "b", "calibrator_hash": "d"},
    ):
        write(**values)
        seen |= {fingerprint_before(home, plan, "compact") for plan in (released, tried)}
    assert len(seen) == 7
    nobody = fingerprint_before(home, ArmPlan(), "compact")
    assert {fingerprint_before(home, released, name) for name in ("tiny", "other")} == {nobody}


def test_a_smaller_student_that_no_report_could_be_of_is_refused():
    refuse_unfit_smaller("tiny", RECIPES, main_recipe="compact")
    refuse_unfit_smaller("free", RECIPES | {"compact": RECIPES["free"]}, main_recipe="compact")
    for recipe, told in (
        ("tny", "free, tiny, unpriced.*no recipe"), ("compact", "the default recipe"),
        ("leaked", "contaminated"), ("unpriced", "price is stated"), ("free", "price is stated"),
    ):  # fmt: skip
        with pytest.raises(InvalidInputError, match=rf"smaller_recipe.*{told}"):
            refuse_unfit_smaller(recipe, RECIPES, main_recipe="compact")


PRICE = "price: {input_usd_per_mtok: 0.1, output_usd_per_mtok: 0.2}"
STUDENTS = f"  compact: {{base_model: some/base, revision: 0123abc, {PRICE}}}\n"
TWO = STUDENTS + STUDENTS.replace("compact", "tiny")


def test_the_config_names_it_and_without_it_nothing_is_stale(tmp_path):
    def read(text: str):
        recipes = dict.fromkeys(("compact", "tiny"), "student: compact\n")
        return read_product(tmp_path, STUDENTS + text, recipes=recipes)

    plain, cascaded = read(""), read("parity: {smaller_recipe: tiny}\n")
    assert ParitySection().model_dump(mode="json") == {"arms": list(DEFAULT_ARMS)}
    assert Bindings(plain, NoProgress()).arm_plan == ArmPlan()
    plan = Bindings(cascaded, NoProgress()).arm_plan
    assert (list_before(plan.tiers, "compact"), list_before(plan.tiers, "tiny")) == (("tiny",), ())
    assert (plan.arms, plan.released) == (DEFAULT_ARMS, ())
    stages = ("students", "parity", "releases")
    same = [fingerprint_stage(s, plain) == fingerprint_stage(s, cascaded) for s in stages]
    assert same[:2] == [True, False]
    with pytest.raises(InvalidInputError, match=r"parity\.smaller_recipe.*no recipe"):
        _ = Bindings(read("parity: {smaller_recipe: tny}\n"), NoProgress()).arm_plan


def read_tiers(folder, releases: str, *, rest: str = "", students: str = TWO):
    recipes = {name: f"student: {name}\n" for name in ("compact", "tiny")}
    recipes["glaze"] = "student: compact\n"
    return read_product(folder, f"{students}releases: {releases}\n{rest}", recipes=recipes)


def test_tiers_of_the_config_are_those_of_the_release_and_of_the_arm_that_is_judged(tmp_path):
    bindings = Bindings(read_tiers(tmp_path, "{tiers: [tiny, compact]}"), NoProgress())
    plan = bindings.arm_plan
    assert plan.released == plan.tiers == bindings.release_terms.tiers == ("tiny", "compact")
    assert bindings.release_terms.describe()["tiers"] == "tiny, then compact"
    alone = Bindings(read_tiers(tmp_path, "{tiers: [compact]}"), NoProgress())
    assert alone.arm_plan == ArmPlan()
    assert "tiers" not in alone.release_terms.describe()
    tried = read_tiers(tmp_path, "{tiers: [compact]}", rest="parity: {smaller_recipe: tiny}\n")
    assert tried.parity.smaller_recipe == "tiny"
    assert ReleasesSection().model_dump(mode="json") == {"skills": {}}


@pytest.mark.parametrize(
    ("releases", "rest", "told"),
    [
        ("{tiers: [compact, tiny]}", "", "must end with the default_recipe compact"),
        ("{tiers: [tiny, glaze, compact]}", "", r"releases\.tiers .*at most 2"),
        ("{tiers: [tiny, compact]}", "parity: {smaller_recipe: tiny}\n", "leave one of them out"),
        ("{tiers: [tiny, compact], skills: {s: {adapter: tiny}}}", "", "of tiers and of the skill"),
        ("{tiers: [tny, compact]}", "", r"releases\.tiers.*glaze, tiny.*no recipe"),
        ("{tiers: [glaze, compact]}", "", "another `students` entry.*compact, which both are of"),
    ],
)
def test_tiers_that_no_release_could_hold_are_refused(tmp_path, releases, rest, told):
    with pytest.raises(InvalidInputError, match=rf"(?s){told}"):
        Bindings(read_tiers(tmp_path, releases, rest=rest), NoProgress()).to_resources()
