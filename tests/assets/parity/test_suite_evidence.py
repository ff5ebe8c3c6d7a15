"""Which numbers of the suites a verdict may rest on: this student's, on the suites of today."""

from dataclasses import asdict

import polars as pl
import pytest

from assets import tables
from assets.parity.suite_evidence import choose_suite_gates, read_suite_gates
from assets.parity.suites import SuiteGate, hash_sets
from serving.home import Home
from tests.assets.parity.test_behaviour_gates import REGISTRY
from tests.assets.parity.test_suite_gates import OVER, REFUSAL

SUITES = {
    "refusal_suite": REFUSAL,
    "over_refusal_suite": OVER,
    "behaviour_registry": REGISTRY,
}
PASSED = SuiteGate(
    name="refusal_critical", unit="count", relation="at most", outcome="PASS", number=0.0,
    limit=0.0, n=160, detail="0 of 160",
)  # fmt: skip


def measure(*, adapter: str = "a" * 64, set_hash: str = "") -> pl.DataFrame:
    identity = {
        "adapter_sha256": adapter,
        "set_hash": set_hash or hash_sets(REFUSAL, OVER, REGISTRY),
    }
    return pl.DataFrame([asdict(PASSED) | identity], schema=tables.SUITE_GATES)


def choose(measured: pl.DataFrame) -> tuple[SuiteGate, ...]:
    return choose_suite_gates(measured, adapter_sha256="a" * 64, **SUITES)


def test_what_was_measured_of_this_student_is_its_evidence():
    assert choose(measure()) == (PASSED,)


@pytest.mark.parametrize(
    "measured",
    [measure(adapter="b" * 64), measure(set_hash="old"), tables.SUITE_GATES.to_frame()],
    ids=["another student", "another version of a suite", "nothing"],
)
def test_what_was_not_measured_of_it_leaves_every_gate_open(measured):
    gates = choose(measured)
    assert {gate.outcome for gate in gates} == {"INCONCLUSIVE"}
    assert {"refusal_critical", "behaviour_keeps_secrets", "unregistered_disagreements"} <= {
        gate.name for gate in gates
    }


def test_a_product_without_suites_has_no_gates_of_them():
    nothing = dict.fromkeys(SUITES, tables.SUITE_CASES.to_frame())
    assert choose_suite_gates(measure(), adapter_sha256="a" * 64, **nothing) == ()


def test_the_table_of_a_recipe_is_read_where_there_is_one(tmp_path):
    home = Home(tmp_path)
    assert read_suite_gates(home, "compact").is_empty()
    path = home.table("parity/suite_gates", "compact")
    path.parent.mkdir(parents=True)
    measure().write_parquet(path)
    assert choose(read_suite_gates(home, "compact")) == (PASSED,)
