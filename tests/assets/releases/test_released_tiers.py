"""Two students asked in turn: judged as one pipeline, released as one bundle, served as judged."""

import asyncio
import json
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from assets import keys, tables
from assets.parity.arms import ArmPlan
from assets.parity.assets import arm_answers
from assets.parity.cascade import describe_cascade
from assets.parity.checks import derived_routes_equal_executed_ones
from assets.parity.last_release import find_last_student
from assets.parity.suite_assets import suite_answers
from assets.parity.suite_evidence import read_candidate
from assets.parity.tiers import TierStudent, state_fitted
from assets.releases.checks import judged_answers_are_the_candidates
from assets.releases.losses import state_losses
from assets.releases.tiers import check_smaller_student, read_training_set
from assets.students.adapters import hash_training_inputs
from orchestration.status import read_release
from resources.students import Students, StudentSettings
from serving.app import create_app
from serving.engine import load_engine
from serving.errors import InvalidInputError, ReleaseError
from serving.home import Home
from serving.models.protocols import NoProgress, Price
from serving.pipeline.confidence import ConfidenceCalibration, RiskThreshold
from serving.releases.manifest import ReleaseManifest
from serving.settings import ServerSettings
from serving.tracing.segments import SegmentWriter, read_segment
from tests.assets.parity.asked_arms import calibrate
from tests.assets.releases.skilled_site import SkilledSite, make_row
from tests.assets.releases.test_gate import SOUND, make_report
from tests.tiny_student import make_base

TIERS = ("little", "compact")
POOL = [
    "Where do I put the key?", "What is a trace?", "When is the server restarted?",
    "Is each segment sealed?", "Which file holds the key?", "What is written before the answer?",
    "How do I change the key?", "Why restart the server?",
]  # fmt: skip
PRICES = {
    "": Price(input_usd_per_mtok=10, output_usd_per_mtok=30),
    "tiny": Price(input_usd_per_mtok=1, output_usd_per_mtok=2),
    "tinier": Price(input_usd_per_mtok=0.1, output_usd_per_mtok=0.2),
}
NOBODY: Any = None


def fit(sha256: str, threshold: float | None) -> ConfidenceCalibration:
    """Return a calibration whose confidence is the raw one, certified from a threshold on."""
    return ConfidenceCalibration(
        adapter_sha256=sha256, engine="local", dtype="float32", method="platt", case_count=60,
        signals=("raw_logit",), means=(0.0,), scales=(1.0,), weights=(1.0,),
        thresholds=(RiskThreshold(risk_limit_ratio=0.05, threshold=threshold),),
    )  # fmt: skip


@dataclass(frozen=True)
class Released:
    """A site whose release asks two students, and a question for each of the three who answer."""

    site: SkilledSite
    row: dict[str, Any]
    names: dict[str, str]
    questions: dict[str, str]

    @property
    def shelf(self) -> Students:
        return open_shelf(self.site, self.site.home.root / "tinier-base")

    @property
    def manifest(self) -> ReleaseManifest:
        text = (Path(self.row["folder"]) / "manifest.json").read_text(encoding="utf-8")
        return ReleaseManifest.model_validate_json(text)


def open_shelf(site: SkilledSite, smaller_base: Path) -> Students:
    settings = {
        name: StudentSettings(
            base_model=str(base), revision="unused", context_tokens=2048, max_answer_tokens=8,
            price=PRICES[name],
        )
        for name, base in (("tiny", site.base), ("tinier", smaller_base))
    }  # fmt: skip
    return Students(
        settings=settings, recipes_folder=site.home.root, home=site.home, progress=NoProgress(),
        connect=NOBODY, open_embedder=NOBODY,
    )  # fmt: skip


def ask_alone(site: SkilledSite, shelf: Students, recipe: str) -> dict[str, float]:
    """Return how sure the student of a recipe is of each question that it answers validly."""
    adapter = site.read("students/student_adapter", recipe).row(0, named=True)

    async def ask() -> dict[str, float]:
        pipeline = await site.parts.assemble(
            site.site.index,
            student=shelf.load(adapter),
            calibration=fit(adapter["adapter_sha256"], None),
        )
        answers = [await pipeline.answer(question, mode="student") for question in POOL]
        return {a.question: a.confidence for a in answers if a.confidence is not None}

    return asyncio.run(ask())


def split_above(confidences: dict[str, float]) -> tuple[str, float]:
    """Return the surest question, and a threshold that lets it alone stand."""
    first, second, *_ = sorted(confidences, key=confidences.__getitem__, reverse=True)
    return first, (confidences[first] + confidences[second]) / 2


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    site = SkilledSite(tmp_path_factory.mktemp("tiers"))
    site.router = replace(site.router, maximum_risk_ratio=0.05)
    site.prices = PRICES
    base = make_base(site.home.root / "tinier-base", seed=9)
    shelf = open_shelf(site, base)
    names = {"student": site.judge("compact", seed=1)}
    names["smaller"] = site.judge("little", seed=3, base=base, student="tinier")
    sure = {recipe: ask_alone(site, shelf, recipe) for recipe in TIERS}
    both = sure["little"].keys() & sure["compact"].keys()
    smallers, threshold = split_above({q: sure["little"][q] for q in both})
    students, own = split_above({q: sure["compact"][q] for q in both - {smallers}})
    teachers = min(both - {smallers, students})
    sha256 = {
        recipe: site.read("students/student_adapter", recipe)["adapter_sha256"].item()
        for recipe in TIERS
    }
    fitted = {
        recipe: state_fitted(fit(sha256[recipe], at))
        for recipe, at in zip(TIERS, (threshold, own), strict=True)
    }
    site.judge("little", seed=3, base=base, student="tinier", fitted=fitted["little"])
    site.judge("compact", seed=1, fitted=fitted["compact"], before=("little",))
    row = site.release("compact", tiers=TIERS)
    questions = {"smaller": smallers, "student": students, "teacher": teachers}
    return Released(site=site, row=row, names=names, questions=questions)


def test_the_bundle_names_both_in_the_order_they_are_asked(released):
    manifest = released.manifest
    assert manifest.tiers == ("tinier", "tiny")
    assert [manifest.students[name].adapter for name in manifest.tiers] == [
        released.names["smaller"], released.names["student"],
    ]  # fmt: skip
    certified = [
        manifest.students[name].calibration.find_threshold(0.05) for name in manifest.tiers
    ]
    assert None not in certified
    assert (released.row["verdict"], released.row["is_current"]) == ("PROMOTE", True)
    assert read_release(released.site.home).students == ("tinier", "tiny")


def test_candidates_are_compared_with_the_students_that_answer_users_in_turn(released):
    site = released.site
    rows = [site.read("students/student_adapter", recipe).row(0, named=True) for recipe in TIERS]
    assert find_last_student(site.home, *rows) is None
    last = find_last_student(site.home, rows[1])  # one student is another candidate than both
    assert last is not None
    assert [tier.adapter["adapter"] for tier in last.tiers] == [row["adapter"] for row in rows]
    assert [tier.adapter["student"] for tier in last.tiers] == ["tinier", "tiny"]


def answer_arms(
    released: Released, *, is_released: bool = True, index: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Make the asset arm_answers, over the questions that each of the three answers."""
    site = released.site
    make: Any = arm_answers.op.compute_fn
    cases = {"case_id": list(released.questions), "question": list(released.questions.values())}
    made = make.decorated_fn(
        SimpleNamespace(
            run=SimpleNamespace(run_id="r"), partition_key="compact", asset_key=keys.ARM_ANSWERS
        ),
        arm_plan=ArmPlan(
            arms=("teacher", "student", "routed"), tiers=TIERS, is_released=is_released
        ),
        experiments={},
        pipeline_parts=site.parts,
        students=released.shelf,
        home=site.home,
        progress=NoProgress(),
        golden_cases=pl.DataFrame(cases),
        vector_index=site.index if index is None else index,
        labelled_examples=tables.LABELLED_EXAMPLES.to_frame(),
        student_adapter=site.read("students/student_adapter", "compact"),
        calibration=site.read("students/calibration", "compact"),
        operating_points=tables.OPERATING_POINTS.to_frame(),
    )
    assert made.metadata["cascade_teacher_ratio"] == pytest.approx(1 / 3)
    return made.value


def answer_suites(released: Released, index: pl.DataFrame) -> None:
    """Make the asset suite_answers, over no case."""
    site, cases = released.site, tables.SUITE_CASES.to_frame()
    make: Any = suite_answers.op.compute_fn
    make.decorated_fn(
        cases, cases, cases, index, site.read("students/student_adapter", "compact"),
        site.read("students/calibration", "compact"), site.parts,
        ArmPlan(arms=("teacher", "student", "routed"), tiers=TIERS), released.shelf, site.home,
        NoProgress(),
    )  # fmt: skip


def make_bundle(released: Released, index: pl.DataFrame) -> None:
    """Make the asset release_bundle of the site as it is, over an index."""
    site = copy(released.site)
    site.index = index
    site.release("compact", tiers=TIERS)


@pytest.mark.parametrize(
    "make",
    [
        lambda released, index: answer_arms(released, index=index),
        answer_suites,
        make_bundle,
    ],
    ids=["arm_answers", "suite_answers", "release_bundle"],
)
def test_nothing_is_looked_up_in_an_index_of_another_embedder(released, make):
    """Its vectors may be as long: a student would be judged by answers from chunks at random."""
    index = released.site.index.with_columns(embedder_fingerprint=pl.lit("other"))
    with pytest.raises(InvalidInputError, match="found vectors of other") as refused:
        make(released, index)
    assert "--select corpus" in refused.value.next_step


async def test_users_are_answered_as_the_judged_arm_was_by_each_of_the_three(released, tmp_path):
    """Judged by the asset, released by the factory, loaded by the server's loader, over HTTP."""
    judged = await asyncio.to_thread(answer_arms, released)
    settings = ServerSettings(home=released.site.home.root)
    app = create_app(
        engine=await load_engine(settings),
        settings=settings,
        writer=SegmentWriter(tmp_path / "segments"),
    )
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.005)
        bodies = {
            name: (await client.post("/ask", json={"question": question})).json()
            for name, question in released.questions.items()
        }
    traces = {
        trace["trace_id"]: trace
        for path in (tmp_path / "segments").iterdir()
        for trace in read_segment(path)
    }
    smaller, student = released.names["smaller"], released.names["student"]
    asked = {
        "smaller": [smaller], "student": [smaller, student],
        "teacher": [smaller, student, "extractive-v1"],
    }  # fmt: skip
    prices = {smaller: PRICES["tinier"], student: PRICES["tiny"], "extractive-v1": PRICES[""]}
    routed = {row["case_id"]: row for row in judged.filter(arm="routed", repeat=0).to_dicts()}
    for name, body in bodies.items():
        trace, row = traces[body["trace_id"]], routed[name]
        role = "teacher" if name == "teacher" else "student"
        assert (body["served_by"], body["model"]) == (role, asked[name][-1])
        assert (row["served_by"], row["model"]) == (body["served_by"], body["model"])
        assert row["route_reason"] == body["route_reason"]
        assert [attempt["model"] for attempt in trace["attempts"]] == asked[name]
        paid = [
            prices[attempt["model"]].cost_usd(
                attempt["prompt_tokens"], attempt["completion_tokens"]
            )
            for attempt in trace["attempts"]
        ]
        assert all(cost > 0 for cost in paid)
        assert trace["cost_usd"] == pytest.approx(sum(paid))
        if role == "student":
            assert row["cost_usd"] == pytest.approx(trace["cost_usd"])
            assert row["confidence"] == pytest.approx(trace["confidence"], abs=1e-4)
            assert row["answer"] == body["answer"]


def test_the_judged_arm_is_the_derived_one_and_names_both_students(released):
    site, judged = released.site, answer_arms(released)
    tried = answer_arms(released, is_released=False)
    assert set(judged["arm"]) == {"teacher", "student", "routed", "smaller"}
    assert set(tried["arm"]) == {*judged["arm"], "cascade"}
    assert describe_cascade(judged) == describe_cascade(tried)
    checked = derived_routes_equal_executed_ones(
        arm_answers=judged,
        student_adapter=site.read("students/student_adapter", "compact"),
        calibration=site.read("students/calibration", "compact"),
        arm_plan=ArmPlan(tiers=TIERS, is_released=True),
        pipeline_parts=site.parts,
        home=site.home,
    )
    assert checked.passed
    verdict = site.read("releases/gate_verdict", "compact")
    assert read_candidate(judged) == read_candidate(verdict)
    assert judged_answers_are_the_candidates(verdict, judged).passed
    other = judged_answers_are_the_candidates(verdict, tried)
    assert not other.passed
    assert "parity/arm_answers --force" in str(other.description)


def test_a_student_that_is_asked_first_is_never_published_by_itself(released):
    row = released.site.release("little", tiers=TIERS)
    assert (row["verdict"], row["is_current"]) == ("PROMOTE", False)


def test_without_tiers_the_same_student_is_released_alone(tmp_path):
    site = SkilledSite(tmp_path)
    site.judge("compact", seed=1)
    row = site.release("compact")
    text = (Path(row["folder"]) / "manifest.json").read_text(encoding="utf-8")
    manifest = ReleaseManifest.model_validate_json(text)
    assert (list(manifest.students), manifest.tiers) == (["tiny"], ())


def test_a_verdict_on_another_smaller_student_stops_the_release(tmp_path):
    site = SkilledSite(tmp_path)
    other = make_base(tmp_path / "other", seed=9)
    site.judge("little", seed=3, base=other, student="tinier")
    site.judge("compact", seed=1, before=("little",))
    before = site.release("compact", tiers=TIERS)["release_id"]
    site.judge("little", seed=4, base=other, student="tinier")
    told = r"(?s)releasing the recipe compact.*students of today.*run --recipe compact"
    with pytest.raises(ReleaseError, match=told):
        site.release("compact", tiers=TIERS)
    assert read_release(site.home).release_id == before
    with pytest.raises(ReleaseError, match=told):
        site.release("compact")  # nor is a verdict on both one on the last of them alone


STANDS = calibrate(0.4)
TAUGHT = replace(SOUND, trained_example_count=9)


@pytest.mark.parametrize(
    ("calibration", "integrity", "outcome", "told"),
    [
        (STANDS, TAUGHT, "PASS", "little@1 is asked first"),
        (calibrate(None), TAUGHT, "INCONCLUSIVE", "no threshold is certified"),
        (STANDS, replace(TAUGHT, lane="contaminated"), "FAIL", "lane is contaminated"),
        (STANDS, replace(TAUGHT, unguarded_example_count=1), "FAIL", "1 of which never passed"),
        (
            STANDS,
            replace(TAUGHT, trained_example_count=0),
            "INCONCLUSIVE",
            "training set is missing",
        ),
        (STANDS, replace(TAUGHT, calibration_is_of_student=False), "FAIL", "of another student"),
        (STANDS, replace(TAUGHT, calibrated_case_count=0), "INCONCLUSIVE", "confidence of this"),
    ],
)
def test_a_student_asked_first_has_to_be_sound_and_certified(
    released, calibration, integrity, outcome, told
):
    tier = TierStudent(adapter={"adapter": "little@1"}, fitted=state_fitted(calibration))
    gate = check_smaller_student(tier, integrity, released.site.router)
    assert (gate.outcome, gate.is_gating) == (outcome, True)
    assert told in gate.detail


def test_losses_of_each_student_are_told_under_its_name():
    report = make_report(**{"student-teacher|exact_match|all": {"value": -0.2, "upper": -0.1}})
    smaller = report.filter(arm="student-teacher").with_columns(arm=pl.lit("smaller-teacher"))
    told = state_losses(pl.concat([report, smaller]), ("smaller", "student"))
    assert [text for text in told if "exact match is" in text] == [
        text.replace("the student's", f"the {name}'s")
        for name in ("smaller student", "student")
        for text in state_losses(report)[:1]
    ]


def test_a_training_set_that_the_weights_have_not_seen_is_none(tmp_path):
    home = Home(tmp_path)
    adapter = {"recipe": "little", "kind": "alora", "adapter": "tinier@1"}
    papers = home.adapters / "tinier@1" / "provenance.json"
    path = home.table("students/training_set", "little")
    for folder in (papers.parent, path.parent):
        folder.mkdir(parents=True)
    seen = make_row(tables.TRAINING_SET, example_id="e1", split="train", weight=1.0)
    papers.write_text(json.dumps({"data_hash": hash_training_inputs(seen, None)[0]}))
    seen.write_parquet(path)
    assert_frame_equal(read_training_set(home, adapter), seen)
    seen.with_columns(weight=pl.lit(2.0)).write_parquet(path)
    assert read_training_set(home, adapter).is_empty()
    assert read_training_set(home, adapter | {"kind": "few_shot"}).height == 1  # it saw no weights
    seen.write_parquet(path)
    for lost in ("{", "{}"):
        papers.write_text(lost)
        assert read_training_set(home, adapter).is_empty()
    papers.unlink()
    assert read_training_set(home, adapter).is_empty()
