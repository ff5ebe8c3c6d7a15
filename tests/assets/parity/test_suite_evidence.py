"""Which numbers of the suites a verdict may rest on: this student's, on the suites of today."""

from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
import pytest

from assets import tables
from assets.parity.last_release import LastStudent
from assets.parity.suite_evidence import (
    CandidateIdentity,
    choose_suite_gates,
    identify_candidate,
    read_candidate,
    read_suite_gates,
)
from assets.parity.suites import SuiteGate, SuiteLimits, hash_sets
from assets.parity.tiers import TierStudent, state_fitted
from serving.home import Home
from serving.pipeline.assembly import PipelineParts
from serving.pipeline.confidence import ConfidenceCalibration
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.router import RouterPolicy
from serving.pipeline.validator import ValidatorPolicy
from tests.assets.parity.test_behaviour_gates import REGISTRY
from tests.assets.parity.test_suite_gates import OVER, REFUSAL
from tests.counting_embedder import CountingEmbedder
from tests.serving.fakes import GOOD, TEACHER_PRICE, CannedChatModel

SUITES = {
    "refusal_suite": REFUSAL,
    "over_refusal_suite": OVER,
    "behaviour_registry": REGISTRY,
}
PASSED = SuiteGate(
    name="refusal_critical", unit="count", relation="at most", outcome="PASS", number=0.0,
    limit=0.0, n=160, detail="0 of 160",
)  # fmt: skip


CANDIDATE = CandidateIdentity(adapter_sha256="a" * 64, pipeline_fingerprint="p")


VS_LAST = replace(PASSED, name="refusal_vs_last_release")


def name_last(adapter: str) -> LastStudent:
    tier = TierStudent(adapter={"adapter": adapter}, fitted={"calibrator": None})
    return LastStudent(tiers=(tier,))


LIVE, OTHER = name_last("compact@111111111111"), name_last("compact@222222222222")


def measure(
    *gates: SuiteGate,
    adapter: str = "a" * 64,
    set_hash: str = "",
    fingerprint: str = "p",
    released: LastStudent | None = None,
) -> pl.DataFrame:
    identity = {
        "adapter_sha256": adapter,
        "pipeline_fingerprint": fingerprint,
        "set_hash": set_hash or hash_sets(REFUSAL, OVER, REGISTRY, limits=SuiteLimits()),
        "released_fingerprint": released.fingerprint if released else None,
    }
    rows = [asdict(gate) | identity for gate in gates or (PASSED,)]
    return pl.DataFrame(rows, schema=tables.SUITE_GATES)


def choose(measured: pl.DataFrame, last: LastStudent | None = None) -> tuple[SuiteGate, ...]:
    return choose_suite_gates(
        measured, candidate=CANDIDATE, last=last, limits=SuiteLimits(), **SUITES
    )


def test_what_was_measured_of_this_student_is_its_evidence():
    assert choose(measure()) == (PASSED,)


@pytest.mark.parametrize(
    "measured",
    [
        measure(adapter="b" * 64),
        measure(set_hash="old"),
        measure(fingerprint="another teacher"),
        tables.SUITE_GATES.to_frame(),
    ],
    ids=["another student", "another version of a suite", "another pipeline", "nothing"],
)
def test_what_was_not_measured_of_it_leaves_every_gate_open(measured):
    gates = choose(measured)
    assert {gate.outcome for gate in gates} == {"INCONCLUSIVE"}
    assert {"refusal_critical", "behaviour_keeps_secrets", "unregistered_disagreements"} <= {
        gate.name for gate in gates
    }


@pytest.mark.parametrize("released", [None, OTHER], ids=["none was released", "another student"])
def test_evidence_against_one_release_says_nothing_against_the_one_that_is_live(released):
    own, against_last = choose(measure(PASSED, VS_LAST, released=released), LIVE)
    assert own == PASSED  # what needs no release stands
    assert (against_last.outcome, against_last.is_gating) == ("INCONCLUSIVE", True)
    assert against_last.number is None
    assert "not compared with compact@111111111111" in against_last.detail


@pytest.mark.parametrize("last", [LIVE, None], ids=["it is still live", "no other student is live"])
def test_evidence_against_the_release_that_is_live_stands(last):
    assert choose(measure(PASSED, VS_LAST, released=LIVE), last) == (PASSED, VS_LAST)


def test_a_student_refitted_is_another_baseline():
    fitted = state_fitted(ConfidenceCalibration(
        adapter_sha256="b", engine="e", dtype="float32", method="constant", case_count=1,
    ))  # fmt: skip
    refitted = LastStudent(tiers=(replace(LIVE.tiers[0], fitted=fitted),))
    assert refitted.fingerprint != LIVE.fingerprint


@pytest.mark.parametrize(
    ("identities", "found"),
    [
        ([("a", "p"), ("a", "p")], CandidateIdentity(adapter_sha256="a", pipeline_fingerprint="p")),
        ([("a", "p"), ("b", "p")], None),
        ([("a", None)], None),
        ([], None),
    ],
    ids=["one", "two", "unnamed", "no answers"],
)
def test_answers_are_of_a_candidate_only_if_they_name_one(identities, found):
    schema = {
        name: tables.SUITE_ANSWERS[name] for name in ("adapter_sha256", "pipeline_fingerprint")
    }
    assert read_candidate(pl.DataFrame(identities, schema=schema, orient="row")) == found


def test_a_product_without_suites_has_no_gates_of_them():
    nothing = dict.fromkeys(SUITES, tables.SUITE_CASES.to_frame())
    assert (
        choose_suite_gates(
            measure(), candidate=CANDIDATE, last=None, limits=SuiteLimits(), **nothing
        )
        == ()
    )


def test_the_table_of_a_recipe_is_read_where_there_is_one(tmp_path):
    home = Home(tmp_path)
    assert read_suite_gates(home, "compact").is_empty()
    path = home.table("parity/suite_gates", "compact")
    path.parent.mkdir(parents=True)
    measure().write_parquet(path)
    assert choose(read_suite_gates(home, "compact")) == (PASSED,)


def test_a_table_of_an_older_version_is_no_evidence(tmp_path):
    home = Home(tmp_path)
    path = home.table("parity/suite_gates", "compact")
    path.parent.mkdir(parents=True)
    measure().drop("pipeline_fingerprint").write_parquet(path)
    assert read_suite_gates(home, "compact").is_empty()


PARTS = PipelineParts(
    index_folder=Path("index"),
    embedder=CountingEmbedder(),
    k=5,
    teacher=CannedChatModel("teacher-1", GOOD, price=TEACHER_PRICE),
    prompt=PromptFormat(),
    router=RouterPolicy(),
    validator=ValidatorPolicy(),
    count_tokens=len,
)


def make_tier(adapter: str, calibrator: str) -> TierStudent:
    return TierStudent(adapter={"adapter_sha256": adapter}, fitted={"calibrator_hash": calibrator})


def identify(
    parts=PARTS, *smaller: TierStudent, index="i", adapter="a", calibrator="c"
) -> CandidateIdentity:
    tiers = (*smaller, make_tier(adapter, calibrator))
    return identify_candidate(parts, index_fingerprint=index, tiers=tiers)


@pytest.mark.parametrize(
    "other",
    [
        identify(replace(PARTS, teacher=CannedChatModel("teacher-2", GOOD, price=TEACHER_PRICE))),
        identify(replace(PARTS, prompt=PromptFormat(max_answer_tokens=77))),
        identify(replace(PARTS, router=RouterPolicy(min_retrieval_score=0.61))),
        identify(replace(PARTS, k=6)),
        identify(index="j"),
        identify(adapter="b"),
        identify(calibrator="d"),
        identify(PARTS, make_tier("s", "t")),
    ],
    ids=["teacher", "prompt", "router", "k", "index", "student", "calibration", "asked first"],
)
def test_whatever_decides_an_answer_makes_another_candidate(other):
    assert identify() == identify()
    assert other != identify()


def test_a_student_asked_first_is_told_apart_by_weights_and_by_calibration():
    pairs = [make_tier(*pair) for pair in (("s", "t"), ("s", "u"), ("r", "t"))]
    found = [identify(PARTS, tier) for tier in pairs]
    assert {one.adapter_sha256 for one in found} == {"a"}, "the candidate is the last one's"
    assert len({one.pipeline_fingerprint for one in found}) == 3


def test_what_was_judged_by_other_limits_leaves_the_gates_open():
    stricter = SuiteLimits(margin_ratio=0.02)
    gates = choose_suite_gates(measure(), candidate=CANDIDATE, last=None, limits=stricter, **SUITES)
    assert {gate.outcome for gate in gates} == {"INCONCLUSIVE"}
    assert {gate.limit for gate in gates if gate.name.startswith("refusal_vs")} == {-0.02}
