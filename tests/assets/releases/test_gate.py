"""Each verdict recreated from a parity table made by hand."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from assets import tables
from assets.parity.metrics import METRICS, SLICES
from assets.parity.prices import find_missing_price
from assets.parity.suite_evidence import CandidateIdentity
from assets.releases.baseline import COMPARED, Baseline, ParentRelease, compare_with_parent
from assets.releases.gate import GateVerdict, decide
from assets.releases.gates import GatePolicy, GateResult, IntegrityEvidence
from assets.statistics import clustered_bootstrap, tango_interval, wilson_interval
from orchestration.bindings import Bindings
from orchestration.config import read_config
from serving.errors import InvalidInputError
from serving.models.protocols import NoProgress
from tests.product import write_product

SOUND = IntegrityEvidence(
    golden_lock_matches=True,
    golden_case_count=150,
    training_question_count=900,
    leaked_question_count=0,
    calibrated_case_count=60,
    calibration_is_of_student=True,
    threshold="none is in force",
)
CANDIDATE = CandidateIdentity(adapter_sha256="a" * 64, pipeline_fingerprint="b" * 16)
SLICE_SIZES = {
    "all": 150, "answerable": 90, "boundary": 30, "out_of_scope": 30, "seen_chunk": 75,
    "unseen_chunk": 15,
}  # fmt: skip


def make_report(**changes: dict[str, Any]) -> pl.DataFrame:
    """A report every gate passes; `changes` are keyed `arm|metric|slice`, as in the table."""
    rows = []
    for slice_name in SLICES:
        for metric in METRICS:
            for arm in ("teacher", "student", "routed"):
                rows.append(_arm_row(arm, metric.name, slice_name))
            for arm in ("student-teacher", "routed-teacher"):
                rows.append(_difference_row(arm, metric.name, slice_name))
        rows.append(_row("ratio", "routed/teacher", "usd_per_1k", slice_name, 0.3, 0.25, 0.35))
    for row in rows:
        row |= changes.pop(f"{row['arm']}|{row['metric']}|{row['slice']}", {})
    assert not changes, f"no such row: {list(changes)}"
    return pl.DataFrame(rows, schema=tables.PARITY_REPORT)


def _row(
    kind: str, arm: str, metric: str, slice_name: str, value: float, lower: float, upper: float
) -> dict[str, Any]:
    return {
        "kind": kind, "arm": arm, "metric": metric, "slice": slice_name, "value": value,
        "lower": lower, "upper": upper, "n": SLICE_SIZES[slice_name], "inconclusive_count": 0,
    }  # fmt: skip


def _arm_row(arm: str, metric: str, slice_name: str) -> dict[str, Any]:
    n = 45 if metric == "refusal_recall" else SLICE_SIZES[slice_name]
    wilson = wilson_interval(n - 1, n)
    row = _row("arm", arm, metric, slice_name, wilson.value, wilson.lower, wilson.upper)
    if metric.endswith("_ms"):
        row["value"] = 900.0 if arm == "teacher" else 300.0
    return row | {"n": n, "numerator": float(n - 1)}


def _difference_row(arm: str, metric: str, slice_name: str) -> dict[str, Any]:
    if metric.endswith("_ms"):
        return _row("difference", arm, metric, slice_name, -600, -650, -550)
    return _row("difference", arm, metric, slice_name, 0, -0.05, 0.05) | {"n10": 4, "n01": 4}


def discordant(n10: int, n01: int, **more: Any) -> dict[str, Any]:
    tango = tango_interval(n10, n01, 150)
    counts = {"n10": n10, "n01": n01, "value": tango.value}
    return counts | {"lower": tango.lower, "upper": tango.upper} | more


def judge(integrity: IntegrityEvidence = SOUND, **changes: dict[str, Any]) -> GateVerdict:
    return decide(make_report(**changes), integrity=integrity, policy=GatePolicy())


def gate_of(verdict: GateVerdict, name: str) -> GateResult:
    return next(gate for gate in verdict.gates if gate.name == name)


POOLED = "routed-teacher|exact_match|all"


def test_promote_when_every_gate_passes() -> None:
    verdict = judge()
    assert verdict.verdict == "PROMOTE"
    assert [gate.name for gate in verdict.gates] == [
        "golden_lock", "no_leaked_training_text", "lane", "calibration", "refusal_recall",
        "slice_answerable", "slice_boundary", "slice_out_of_scope", "pooled_non_inferiority",
        "cost_ratio", "latency_p50",
    ]  # fmt: skip
    assert {gate.outcome for gate in verdict.gates} == {"PASS"}
    assert verdict.more_cases is None
    assert verdict.statement.startswith("All 11 gates passed")


@pytest.mark.parametrize(
    ("changes", "gate", "outcome"),
    [
        ({"golden_lock_matches": False}, "golden_lock", "FAIL"),
        ({"golden_case_count": 0}, "golden_lock", "INCONCLUSIVE"),
        ({"leaked_question_count": 1}, "no_leaked_training_text", "FAIL"),
        ({"unguarded_example_count": 1}, "no_leaked_training_text", "FAIL"),
        ({"training_question_count": 0}, "no_leaked_training_text", "INCONCLUSIVE"),
        ({"calibration_is_of_student": False}, "calibration", "FAIL"),
        ({"lane": "contaminated"}, "lane", "FAIL"),
        ({"calibrated_case_count": 0}, "calibration", "INCONCLUSIVE"),
    ],
)
def test_broken_integrity_is_never_promoted(
    changes: dict[str, Any], gate: str, outcome: str
) -> None:
    verdict = judge(IntegrityEvidence(**(vars(SOUND) | changes)))
    assert gate_of(verdict, gate).outcome == outcome
    assert verdict.verdict == ("HOLD" if outcome == "FAIL" else "INCONCLUSIVE")


def test_the_gate_on_leaks_says_what_was_let_through_and_what_was_trained_on() -> None:
    taught = IntegrityEvidence(
        **(vars(SOUND) | {"trained_example_count": 192, "unguarded_example_count": 7})
    )
    gate = gate_of(judge(taught), "no_leaked_training_text")
    assert (gate.number, gate.n) == (7.0, 900)
    assert gate.detail == (
        "0 of 900 questions that may be trained on stand too near a protected case (golden or "
        "suite); the student learned from 192 examples, 7 of which never passed the guard"
    )


@pytest.mark.parametrize(
    ("refused", "n", "unknown", "outcome"),
    [
        (45, 45, 0, "PASS"),
        (42, 45, 0, "INCONCLUSIVE"),
        (33, 45, 0, "FAIL"),
        (43, 43, 6, "INCONCLUSIVE"),
        (0, 0, 0, "INCONCLUSIVE"),
        (0, 0, 45, "INCONCLUSIVE"),
    ],
)
def test_refusal_recall_is_judged_by_its_bounds(
    refused: int, n: int, unknown: int, outcome: str
) -> None:
    value = refused / n if n else None
    row = {"numerator": float(refused), "n": n, "value": value, "inconclusive_count": unknown}
    verdict = judge(**{"routed|refusal_recall|all": row})
    assert gate_of(verdict, "refusal_recall").outcome == outcome


@pytest.mark.parametrize(
    ("right", "n", "unknown", "outcome", "is_gating"),
    [
        (15, 30, 0, "PASS", True),
        (9, 30, 0, "FAIL", True),
        (0, 29, 0, "INCONCLUSIVE", False),
        (0, 0, 0, "INCONCLUSIVE", False),
        (29, 29, 1, "INCONCLUSIVE", True),
    ],
)
def test_slices_under_thirty_are_shown_and_never_gated(
    right: int, n: int, unknown: int, outcome: str, is_gating: bool
) -> None:
    value = right / n if n else None
    row = {"numerator": float(right), "n": n, "value": value, "inconclusive_count": unknown}
    verdict = judge(**{"routed|exact_match|boundary": row})
    gate = gate_of(verdict, "slice_boundary")
    assert (gate.outcome, gate.is_gating) == (outcome, is_gating)
    expected = "PROMOTE" if not is_gating or outcome == "PASS" else "INCONCLUSIVE"
    assert verdict.verdict == ("HOLD" if outcome == "FAIL" else expected)


@pytest.mark.parametrize(
    ("n10", "n01", "unknown", "outcome"),
    [
        (5, 5, 0, "PASS"),
        (0, 0, 0, "PASS"),
        (0, 8, 0, "PASS"),  # worse at p < 0.01, but wholly inside the margin: the page's order
        (5, 13, 0, "INCONCLUSIVE"),
        (5, 20, 0, "FAIL"),  # the point is at -10 pp and the upper bound below 0
        (1, 14, 0, "FAIL"),  # McNemar p = 0.001, point short of the margin
        (5, 5, 30, "INCONCLUSIVE"),  # thirty ungraded cases could all be losses
    ],
)
def test_pooled_non_inferiority(n10: int, n01: int, unknown: int, outcome: str) -> None:
    verdict = judge(**{POOLED: discordant(n10, n01, inconclusive_count=unknown)})
    gate = gate_of(verdict, "pooled_non_inferiority")
    assert gate.outcome == outcome
    worst = tango_interval(n10, n01 + unknown, 150 + unknown, alpha=0.10)
    assert gate.number == worst.lower
    assert gate.limit == -0.10


def test_pooled_without_pairs_is_inconclusive() -> None:
    empty = {"n": 0, "value": None, "lower": None, "upper": None, "n10": None, "n01": None}
    verdict = judge(**{POOLED: empty})
    assert verdict.verdict == "INCONCLUSIVE"
    assert verdict.more_cases is None


def test_inconclusive_says_how_many_more_cases_would_decide() -> None:
    verdict = judge(**{POOLED: discordant(5, 13)})
    assert verdict.verdict == "INCONCLUSIVE"
    assert verdict.more_cases is not None
    scale = (150 + verdict.more_cases) / 150
    counts = (round(5 * scale), round(13 * scale))
    assert tango_interval(*counts, 150 + verdict.more_cases, alpha=0.10).lower > -0.10
    assert f"about {verdict.more_cases} more golden cases" in verdict.statement
    need = f"about {verdict.more_cases} more golden cases at these rates would decide"
    assert need in gate_of(verdict, "pooled_non_inferiority").detail


FEW_REFUSED = {"numerator": 48.0, "n": 54, "value": 48 / 54, "inconclusive_count": 0}
OPEN_COST = {"value": 0.6, "lower": 0.5, "upper": 0.7}


def test_what_refusals_need_is_counted_in_golden_cases() -> None:
    """48 of 54 refused: 175 more to refuse, and of 150 golden cases 54 are to be refused."""
    verdict = judge(**{"routed|refusal_recall|all": FEW_REFUSED})
    more = 175
    assert wilson_interval(48 / 54 * (54 + more), 54 + more, alpha=0.10).lower >= 0.85
    assert wilson_interval(48 / 54 * (53 + more), 53 + more, alpha=0.10).lower < 0.85
    assert verdict.more_cases == math.ceil(more * 150 / 54) == 487
    assert "about 487 more golden cases at the same rates" in verdict.statement
    needed = {row["gate"]: row["needed_cases"] for row in verdict.to_frame(CANDIDATE).to_dicts()}
    assert (needed["refusal_recall"], needed["cost_ratio"]) == (more, None)
    assert gate_of(verdict, "refusal_recall").detail.endswith(
        "about 175 more cases to refuse at these rates would decide, which is 487 more golden "
        "cases as they are mixed now"
    )


def test_of_two_open_gates_the_greater_need_in_golden_cases_decides() -> None:
    both = judge(**{POOLED: discordant(5, 13), "routed|refusal_recall|all": FEW_REFUSED})
    pooled = judge(**{POOLED: discordant(5, 13)}).more_cases
    assert pooled is not None
    assert both.more_cases == max(pooled, 487)


def test_a_gates_need_is_told_while_others_are_open_and_while_one_fails() -> None:
    cost = {"routed/teacher|usd_per_1k|all": OPEN_COST}
    verdict = judge(**{POOLED: discordant(5, 13), **cost})
    assert verdict.verdict == "INCONCLUSIVE"
    assert verdict.more_cases is None
    assert "more cases alone would not decide" in verdict.statement
    assert "more golden cases" in gate_of(verdict, "pooled_non_inferiority").detail
    assert "more golden cases" not in gate_of(verdict, "cost_ratio").detail
    held = judge(replace(SOUND, lane="contaminated"), **{POOLED: discordant(5, 13)})
    assert (held.verdict, held.more_cases) == ("HOLD", None)
    assert "more golden cases" in gate_of(held, "pooled_non_inferiority").detail


@pytest.mark.parametrize(
    ("value", "lower", "upper", "outcome"),
    [
        (0.5, 0.4, 0.6, "PASS"),
        (0.59, 0.5, 0.65, "INCONCLUSIVE"),
        (0.9, 0.8, 1.0, "FAIL"),
        (None, None, None, "INCONCLUSIVE"),
    ],
)
def test_cost_ratio(
    value: float | None, lower: float | None, upper: float | None, outcome: str
) -> None:
    row = {"value": value, "lower": lower, "upper": upper}
    verdict = judge(**{"routed/teacher|usd_per_1k|all": row})
    assert gate_of(verdict, "cost_ratio").outcome == outcome


def test_a_teacher_that_is_faster_holds_the_release() -> None:
    """The embedded teacher quotes in milliseconds: honest arithmetic says HOLD."""
    verdict = judge(
        **{
            "teacher|p50_latency_ms|all": {"value": 3.0},
            "routed-teacher|p50_latency_ms|all": {"value": 297, "lower": 290, "upper": 305},
            POOLED: discordant(5, 13),
        }
    )
    assert verdict.verdict == "HOLD"
    assert gate_of(verdict, "latency_p50").detail.startswith("300 ms against the teacher's 3.0 ms")
    assert verdict.statement == "1 gate fails (latency p50): the teacher keeps answering."
    assert verdict.more_cases is None


@pytest.mark.parametrize(
    ("lower", "upper", "outcome"), [(-9, -1, "PASS"), (-5, 5, "INCONCLUSIVE"), (0, 9, "FAIL")]
)
def test_latency(lower: float, upper: float, outcome: str) -> None:
    row = {"value": (lower + upper) / 2, "lower": lower, "upper": upper}
    verdict = judge(**{"routed-teacher|p50_latency_ms|all": row})
    assert gate_of(verdict, "latency_p50").outcome == outcome


def test_losses_are_sentences_with_numbers_and_silence_is_bounded() -> None:
    lost = {"value": -0.12, "lower": -0.2, "upper": -0.04, "n10": 2, "n01": 13}
    slower = {"value": 42.0, "lower": 10.0, "upper": 60.0}
    verdict = judge(
        **{
            "student-teacher|exact_match|answerable": lost,
            "student-teacher|p95_latency_ms|all": slower,
        }
    )
    assert verdict.losses == (
        "On answerable cases the student's exact match is 12.0 pp below the teacher's "
        "(interval \u221220.0 to \u22124.0 pp, n = 90).",
        "Over all cases the student's latency p95 is 42.0 ms above the teacher's "
        "(interval +10.0 to +60.0 ms, n = 150).",
        "On 150 cases a loss of exact match of up to 5.0 points is compatible with what was seen; "
        "behaviours no golden case asks for were not measured.",
    )


def test_the_verdict_becomes_one_row_per_gate() -> None:
    frame = judge().to_frame(CANDIDATE)
    assert frame.schema == tables.GATE_VERDICT
    assert frame["position"].to_list() == list(range(1, 12))
    assert set(frame["verdict"]) == {"PROMOTE"}


def test_bootstrap_agrees_with_the_cost_row_it_feeds() -> None:
    """The ratio row is a ratio of sums, so one dear case weighs as much as it costs."""
    ratio = clustered_bootstrap([1, 1, 10], ["a", "b", "c"], denominators=[10, 10, 20])
    assert ratio.value == pytest.approx(12 / 40)


def test_evidence_holds_the_policy_and_what_the_caller_adds() -> None:
    verdict = decide(
        make_report(), integrity=SOUND, policy=GatePolicy(margin_ratio=0.08), evidence={"a": 1}
    )
    frame = verdict.to_frame(CANDIDATE)
    (evidence,) = frame["evidence"].unique().to_list()
    assert json.loads(evidence)["policy"]["margin_ratio"] == 0.08
    assert json.loads(evidence)["a"] == 1


def test_a_contaminated_lane_is_held_however_good_its_numbers_are() -> None:
    verdict = judge(replace(SOUND, lane="contaminated"))
    assert verdict.verdict == "HOLD"
    assert verdict.statement.startswith("1 gate fails (lane)")


@pytest.mark.parametrize("outcome", ["FAIL", "INCONCLUSIVE", "PASS"])
def test_a_suite_of_its_own_is_counted_after_the_refusals(outcome: Any) -> None:
    suite = GateResult(
        name="critical_refusals", unit="count", relation="at most", outcome=outcome, number=0.0,
        limit=0.0, n=149, detail="0 of 149 lost",
    )  # fmt: skip
    verdict = decide(make_report(), integrity=SOUND, policy=GatePolicy(), suites=(suite,))
    names = [gate.name for gate in verdict.gates]
    assert names.index("critical_refusals") == names.index("refusal_recall") + 1
    expected = {"FAIL": "HOLD", "INCONCLUSIVE": "INCONCLUSIVE", "PASS": "PROMOTE"}
    assert verdict.verdict == expected[outcome]


def test_a_metric_without_rows_is_an_error_that_names_it() -> None:
    report = make_report().filter(pl.col("metric") != "p50_latency_ms")
    with pytest.raises(InvalidInputError, match="p50_latency_ms"):
        decide(report, integrity=SOUND, policy=GatePolicy())


def test_a_metric_without_numbers_is_inconclusive_in_every_gate_that_reads_it() -> None:
    empty = {"value": None, "lower": None, "upper": None, "n": 0, "numerator": None}
    verdict = judge(
        **{
            "routed|refusal_recall|all": empty,
            POOLED: empty | {"n10": None, "n01": None},
            "routed/teacher|usd_per_1k|all": empty,
            "routed-teacher|p50_latency_ms|all": empty,
        }
    )
    open_gates = {gate.name for gate in verdict.gates if gate.outcome == "INCONCLUSIVE"}
    assert open_gates == {
        "refusal_recall", "pooled_non_inferiority", "cost_ratio", "latency_p50",
    }  # fmt: skip
    assert (verdict.verdict, verdict.more_cases) == ("INCONCLUSIVE", None)
    numbers = {gate.name: gate.number for gate in verdict.gates if gate.name in open_gates}
    assert not {0.0} & set(numbers.values())


@pytest.mark.parametrize(
    ("n", "unknown", "outcome"), [(150, 0, "PASS"), (144, 6, "PASS"), (30, 120, "INCONCLUSIVE")]
)
def test_missing_prices_leave_the_cost_gate_open(n: int, unknown: int, outcome: str) -> None:
    """Where only the teacher has a price, the cases it served would make routing look dear."""
    verdict = judge(**{"routed/teacher|usd_per_1k|all": {"n": n, "inconclusive_count": unknown}})
    gate = gate_of(verdict, "cost_ratio")
    assert gate.outcome == outcome
    if outcome == "INCONCLUSIVE":
        assert gate.number is None
        assert "30 cases priced in both arms, of at least 10, 120 not" in gate.detail


def test_a_teacher_that_is_free_has_no_cost_to_take_a_share_of() -> None:
    empty = {"value": None, "lower": None, "upper": None, "n": 0}
    verdict = judge(
        **{"routed/teacher|usd_per_1k|all": empty, "teacher|usd_per_1k|all": {"value": 0.0}}
    )
    gate = gate_of(verdict, "cost_ratio")
    assert (gate.outcome, gate.number) == ("INCONCLUSIVE", None)
    assert gate.detail.startswith("the teacher's price is stated as 0")


def test_a_student_that_is_stated_as_free_passes_the_cost_gate(tmp_path: Path) -> None:
    path = write_product(tmp_path)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["teacher"]["price"] = {"input_usd_per_mtok": 3.0, "output_usd_per_mtok": 15.0}
    found = []
    for price in ({"input_usd_per_mtok": 0, "output_usd_per_mtok": 0}, {}):
        config["students"]["tiny"]["price"] = price
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        prices = Bindings(read_config(path), NoProgress()).economics_terms.prices
        missing = find_missing_price(prices, "tiny", is_paid_by_hour=False)
        verdict = decide(make_report(), integrity=SOUND, policy=GatePolicy(), missing_price=missing)
        found.append(gate_of(verdict, "cost_ratio").outcome)
    assert found == ["PASS", "INCONCLUSIVE"]


@pytest.mark.parametrize("section", ["teacher", "students.tiny"])
@pytest.mark.parametrize("stated", ["input_usd_per_mtok", "output_usd_per_mtok"])
def test_a_half_stated_price_is_no_price_of_zero(tmp_path: Path, section: str, stated: str) -> None:
    path = write_product(tmp_path)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    place = config["teacher"] if section == "teacher" else config["students"]["tiny"]
    place["price"] = {stated: 1.0}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    prices = Bindings(read_config(path), NoProgress()).economics_terms.prices
    missing = find_missing_price(prices, "tiny", is_paid_by_hour=False)
    verdict = decide(make_report(), integrity=SOUND, policy=GatePolicy(), missing_price=missing)
    gate = gate_of(verdict, "cost_ratio")
    assert (gate.outcome, gate.number, verdict.verdict) == ("INCONCLUSIVE", None, "INCONCLUSIVE")
    assert f"`{section}.price`" in gate.detail


def test_an_arm_that_crashed_midway_is_not_promoted() -> None:
    """Half of the routed answers failed: nothing is lost for certain, and nothing is proven."""
    half = {"n": 75, "inconclusive_count": 75}
    verdict = judge(
        **{
            POOLED: discordant(2, 2, **half),
            "routed|refusal_recall|all": {"n": 22, "numerator": 22.0, "inconclusive_count": 23},
        }
    )
    assert verdict.verdict == "INCONCLUSIVE"
    assert "75 could not be graded" in gate_of(verdict, "pooled_non_inferiority").detail


def test_a_gate_nobody_knows_is_refused_where_it_is_written(tmp_path: Path) -> None:
    path = write_product(tmp_path)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["gates"]["minimum_charm_ratio"] = 0.5
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(InvalidInputError) as error:
        read_config(path)
    assert "gates.minimum_charm_ratio" in error.value.found
    assert "maximum_cost_ratio" in error.value.found


BASELINE_NOW = Baseline(
    golden_set="abc", teacher="extractive v1", judge="j", judge_epoch="2026-11", rubric_version="1"
)


def make_parent(**changes: str) -> ParentRelease:
    evidence = {"baseline": asdict(replace(BASELINE_NOW, **changes))}
    verdict = decide(make_report(), integrity=SOUND, policy=GatePolicy(), evidence=evidence)
    return ParentRelease(release_id="0123456789ab", gates=verdict.to_frame(CANDIDATE).to_dicts())


def test_the_same_baseline_is_compared_gate_by_gate() -> None:
    found = compare_with_parent(judge().gates, BASELINE_NOW, make_parent())
    assert found.changed == ()
    assert [gate.name for gate in found.gates] == list(COMPARED)
    assert all(gate.number == gate.parent_number for gate in found.gates)


@pytest.mark.parametrize("changed", ["golden_set", "judge_epoch", "teacher", "judge"])
def test_a_changed_ruler_starts_a_new_baseline_and_says_so(changed: str) -> None:
    found = compare_with_parent(judge().gates, BASELINE_NOW, make_parent(**{changed: "other"}))
    assert (found.changed, found.gates) == ((changed,), ())
    assert f"the {changed.replace('_', ' ')} changed" in found.statement
    assert "starts a new baseline" in found.statement
    assert found.to_evidence()["parent"] == "0123456789ab"


def test_a_parent_without_a_baseline_and_no_parent_are_not_compared() -> None:
    old = ParentRelease(release_id="0123456789ab", gates=[{"gate": "cost_ratio", "number": 0.3}])
    found = compare_with_parent(judge().gates, BASELINE_NOW, old)
    assert (found.changed, found.gates) == (("baseline",), ())
    first = compare_with_parent(judge().gates, BASELINE_NOW, None)
    assert (first.parent, first.gates) == (None, ())
