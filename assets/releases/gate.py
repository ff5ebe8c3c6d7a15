"""The gate: from the parity table and the guard's counts to PROMOTE, HOLD or INCONCLUSIVE.

Every gate is computed and shown, in the order integrity, refusals, slices, pooled quality, cost,
latency. Too little evidence is INCONCLUSIVE, never PASS. A case that failed to be graded counts
against the student before refusal recall or pooled quality may pass; a slice fails only when its
collapse is proven; cost and latency are read from the report's own 95 % intervals. Belongs here:
decisions and their wording. Does not belong here: measuring (`parity`), publishing
(`release_bundle`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from assets import tables
from assets.parity.comparison import (
    BASELINE,
    BUCKETS,
    METRICS,
    SLICES,
    Metric,
    find_row,
    format_limits,
    format_value,
)
from assets.statistics import mcnemar_exact, tango_interval, wilson_interval

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Decision = Literal["PROMOTE", "HOLD", "INCONCLUSIVE"]
GateUnit = Literal["flag", "count", "ratio", "points", "times", "ms"]
"""How a gate's number is written: `points` are differences of ratios, `times` is a quotient."""

CANDIDATE = "routed"
"""What users would get: the student behind the router with its fallback, not the student alone."""

WORSE_P_LIMIT = 0.01  # McNemar's p below it, with more losses than gains: worse beyond doubt
MAXIMUM_MORE_CASES = 100_000  # a need above it is said to be out of reach


@dataclass(frozen=True, kw_only=True)
class GatePolicy:
    """Limits, declared in the config before the run, copied into the evidence. Ratios are 0-1."""

    margin_ratio: float = 0.10
    alpha: float = 0.05
    minimum_slice_cases: int = 30
    slice_floor_ratio: float = 0.50
    minimum_refusal_recall_ratio: float = 0.85
    maximum_cost_ratio: float = 0.60


@dataclass(frozen=True, kw_only=True)
class IntegrityEvidence:
    """What was counted before anything was measured."""

    golden_lock_matches: bool
    golden_case_count: int
    training_question_count: int
    leaked_question_count: int
    calibrated_case_count: int
    calibration_is_of_student: bool


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """One gate's number against its limit. With `is_gating` false it is shown, never counted.

    `relation` says how the number must stand to the limit: "at least", "at most", "above", "below".
    """

    name: str
    unit: GateUnit
    relation: str
    outcome: Outcome
    number: float | None
    limit: float | None
    n: int
    detail: str
    is_gating: bool = True


@dataclass(frozen=True, kw_only=True)
class GateVerdict:
    """The verdict, every gate behind it, and what the student is known to do worse."""

    verdict: Decision
    gates: tuple[GateResult, ...]
    statement: str
    more_cases: int | None
    losses: tuple[str, ...]

    def to_frame(self) -> pl.DataFrame:
        """Return one row per gate: the table releases/gate_verdict."""
        rows = [
            vars(gate)
            | {"position": position, "gate": gate.name, "verdict": self.verdict}
            | {"statement": self.statement, "more_cases": self.more_cases}
            for position, gate in enumerate(self.gates, start=1)
        ]
        return pl.DataFrame(rows, schema_overrides=tables.GATE_VERDICT).select(
            list(tables.GATE_VERDICT)
        )


def decide(
    report: pl.DataFrame, *, integrity: IntegrityEvidence, policy: GatePolicy
) -> GateVerdict:
    """Judge one parity table. HOLD if a gate fails, INCONCLUSIVE if one is open, else PROMOTE."""
    pooled = find_row(report, f"{CANDIDATE}-{BASELINE}", "exact_match")
    recall = find_row(report, CANDIDATE, "refusal_recall")
    slices = [find_row(report, CANDIDATE, "exact_match", name) for name in BUCKETS]
    gates = (
        check_golden_lock(integrity),
        check_no_leak(integrity),
        check_calibration(integrity),
        check_refusal_recall(recall, policy),
        *(check_slice(row, policy) for row in slices),
        check_non_inferiority(pooled, policy),
        check_cost(find_row(report, f"{CANDIDATE}/{BASELINE}", "usd_per_1k"), policy),
        check_latency(report),
    )
    counted = [gate for gate in gates if gate.is_gating]
    failed = [gate for gate in counted if gate.outcome == "FAIL"]
    open_gates = [gate for gate in counted if gate.outcome == "INCONCLUSIVE"]
    more_cases = None
    if open_gates and not failed:
        more_cases = _count_more_cases(open_gates, pooled, recall, policy)
    verdict: Decision = "HOLD" if failed else "INCONCLUSIVE" if open_gates else "PROMOTE"
    return GateVerdict(
        verdict=verdict,
        gates=gates,
        statement=_state_verdict(verdict, failed or open_gates, len(counted), more_cases),
        more_cases=more_cases,
        losses=state_losses(report),
    )


def check_golden_lock(integrity: IntegrityEvidence) -> GateResult:
    """The golden set is the one that was frozen; without cases there is nothing to lock."""
    n, matches = integrity.golden_case_count, integrity.golden_lock_matches
    detail = f"the hash of {n} golden cases {'matches' if matches else 'differs from'} the lock"
    outcome: Outcome = "FAIL" if not matches else "PASS" if n else "INCONCLUSIVE"
    gate = _describe("golden_lock", unit="flag", relation="at least", limit=1.0, n=n)
    return GateResult(**gate, outcome=outcome, number=float(matches), detail=detail)


def check_no_leak(integrity: IntegrityEvidence) -> GateResult:
    """No question that is trained on repeats or nearly repeats a golden case."""
    n, leaked = integrity.training_question_count, integrity.leaked_question_count
    outcome: Outcome = "FAIL" if leaked else "PASS" if n else "INCONCLUSIVE"
    detail = f"{leaked} of {n} training questions stand too near a golden case"
    gate = _describe("no_leaked_training_text", unit="count", relation="at most", limit=0.0, n=n)
    return GateResult(**gate, outcome=outcome, number=float(leaked), detail=detail)


def check_calibration(integrity: IntegrityEvidence) -> GateResult:
    """The student's confidence was calibrated, on this very student's answers.

    A student without a valid answer to calibrate on leaves it open.
    """
    n, is_own = integrity.calibrated_case_count, integrity.calibration_is_of_student
    outcome: Outcome = "FAIL" if not is_own else "PASS" if n else "INCONCLUSIVE"
    whose = "this student" if is_own else "another student"
    detail = f"confidence fitted and certified on {n} valid answers of {whose}"
    gate = _describe("calibration", unit="flag", relation="at least", limit=1.0, n=n)
    return GateResult(**gate, outcome=outcome, number=float(is_own), detail=detail)


def check_refusal_recall(row: dict[str, Any], policy: GatePolicy) -> GateResult:
    """Refusals survive: the one-sided Wilson lower bound of recall is at or above the limit.

    Fails when the upper bound is below it. Cases that could not be graded count as answered.
    """
    limit, unknown = policy.minimum_refusal_recall_ratio, row["inconclusive_count"]
    gate = _describe("refusal_recall", relation="at least", limit=limit, n=row["n"])
    if not row["n"]:
        return GateResult(
            **gate, outcome="INCONCLUSIVE", number=None, detail="no case that should be refused"
        )
    refused = row["numerator"]
    interval = wilson_interval(refused, row["n"], alpha=2 * policy.alpha)
    worst = wilson_interval(refused, row["n"] + unknown, alpha=2 * policy.alpha)
    outcome: Outcome = (
        "PASS" if worst.lower >= limit else "FAIL" if interval.upper < limit else "INCONCLUSIVE"
    )
    detail = (
        f"{refused:.0f} of {row['n']} refused, one-sided Wilson bounds "
        f"{format_value(interval.lower, 'ratio')} and {format_value(interval.upper, 'ratio')}"
        f"{_count_unknown(unknown)}"
    )
    return GateResult(**gate, outcome=outcome, number=worst.lower, detail=detail)


def check_slice(row: dict[str, Any], policy: GatePolicy) -> GateResult:
    """No slice collapses: its Wilson upper bound is not under the floor.

    A slice of fewer than `minimum_slice_cases` is shown and not counted; one that only became that
    small because answers failed stays open.
    """
    n, unknown, floor = row["n"], row["inconclusive_count"], policy.slice_floor_ratio
    is_gating = n + unknown >= policy.minimum_slice_cases
    gate = _describe(f"slice_{row['slice']}", relation="at least", limit=floor, n=n)
    upper = wilson_interval(row["numerator"], n, alpha=2 * policy.alpha).upper if n else None
    if upper is None or n < policy.minimum_slice_cases:
        reason = f"n = {n} is under {policy.minimum_slice_cases}{_count_unknown(unknown)}"
        shown = "too few graded answers" if is_gating else "shown, not gated"
        return GateResult(
            **gate,
            outcome="INCONCLUSIVE",
            number=upper,
            detail=f"{shown}: {reason}",
            is_gating=is_gating,
        )
    outcome: Outcome = "FAIL" if upper < floor else "PASS"
    detail = (
        f"{row['numerator']:.0f} of {n} right in the {CANDIDATE} arm, one-sided Wilson upper "
        f"bound {format_value(upper, 'ratio')}{_count_unknown(unknown)}"
    )
    return GateResult(**gate, outcome=outcome, number=upper, detail=detail)


def check_non_inferiority(row: dict[str, Any], policy: GatePolicy) -> GateResult:
    """The routed arm is not worse than the teacher by the margin, all cases pooled.

    In this order: PASS if Tango's one-sided lower bound is above minus the margin; FAIL if the
    upper bound is below 0 with the point at or past the margin, or McNemar says worse at p < 0.01.
    """
    n, unknown = row["n"], row["inconclusive_count"]
    gate = _describe(
        "pooled_non_inferiority", unit="points", relation="above", limit=-policy.margin_ratio, n=n
    )
    if not n:
        return GateResult(
            **gate, outcome="INCONCLUSIVE", number=None, detail="no case graded in both arms"
        )
    interval = tango_interval(row["n10"], row["n01"], n, alpha=2 * policy.alpha)
    worst = tango_interval(row["n10"], row["n01"] + unknown, n + unknown, alpha=2 * policy.alpha)
    outcome = _judge_non_inferiority(row["n10"], row["n01"], n, unknown, policy)
    detail = (
        f"exact match, {CANDIDATE} minus {BASELINE}: {row['n10']} gained, {row['n01']} lost, "
        f"Tango bounds {_points(interval.lower)} and {_points(interval.upper)}, "
        f"McNemar p = {mcnemar_exact(row['n10'], row['n01']):.3g}{_count_unknown(unknown)}"
    )
    return GateResult(**gate, outcome=outcome, number=worst.lower, detail=detail)


def _judge_non_inferiority(n10: int, n01: int, n: int, unknown: int, policy: GatePolicy) -> Outcome:
    margin, interval = policy.margin_ratio, tango_interval(n10, n01, n, alpha=2 * policy.alpha)
    worst = tango_interval(n10, n01 + unknown, n + unknown, alpha=2 * policy.alpha)
    if worst.lower > -margin:
        return "PASS"
    is_past = interval.upper < 0 and interval.value <= -margin
    is_worse = n01 > n10 and mcnemar_exact(n10, n01) < WORSE_P_LIMIT
    return "FAIL" if is_past or is_worse else "INCONCLUSIVE"


def check_cost(row: dict[str, Any], policy: GatePolicy) -> GateResult:
    """The routed arm costs at most the promised share of the teacher, whole interval included."""
    limit = policy.maximum_cost_ratio
    gate = _describe("cost_ratio", unit="times", relation="at most", limit=limit, n=row["n"])
    if row["value"] is None:
        detail = "no cost to divide by: the teacher's answers cost nothing or were not priced"
        return GateResult(**gate, outcome="INCONCLUSIVE", number=None, detail=detail)
    outcome: Outcome = (
        "PASS" if row["upper"] <= limit else "FAIL" if row["lower"] > limit else "INCONCLUSIVE"
    )
    detail = (
        f"mean cost, {CANDIDATE} over {BASELINE}: {row['value']:.3f}, interval {row['lower']:.3f} "
        f"to {row['upper']:.3f}{_count_unknown(row['inconclusive_count'])}"
    )
    return GateResult(**gate, outcome=outcome, number=row["upper"], detail=detail)


def check_latency(report: pl.DataFrame) -> GateResult:
    """The routed arm's median answer is faster than the teacher's, the whole interval included.

    It holds for any teacher. One that is no language model is hard to beat, and that is said, not
    worked around.
    """
    difference = find_row(report, f"{CANDIDATE}-{BASELINE}", "p50_latency_ms")
    routed = find_row(report, CANDIDATE, "p50_latency_ms")["value"]
    teacher = find_row(report, BASELINE, "p50_latency_ms")["value"]
    n = difference["n"]
    gate = _describe("latency_p50", unit="ms", relation="below", limit=teacher, n=n)
    if difference["value"] is None:
        return GateResult(
            **gate, outcome="INCONCLUSIVE", number=routed, detail="no case timed in both arms"
        )
    outcome: Outcome = (
        "PASS"
        if difference["upper"] < 0
        else "FAIL"
        if difference["lower"] >= 0
        else "INCONCLUSIVE"
    )
    detail = (
        f"{format_value(routed, 'ms')} against the {BASELINE}'s {format_value(teacher, 'ms')}, "
        f"difference {format_limits(difference, 'ms')}"
    )
    return GateResult(**gate, outcome=outcome, number=routed, detail=detail)


def _describe(
    name: str, *, relation: str, limit: float | None, n: int, unit: GateUnit = "ratio"
) -> dict[str, Any]:
    """Return the fields of a gate that hold whatever its outcome."""
    return {"name": name, "unit": unit, "relation": relation, "limit": limit, "n": n}


def state_losses(report: pl.DataFrame) -> tuple[str, ...]:
    """Say what the student, alone, is known to do worse than the teacher: one sentence per finding.

    Known: the whole interval of the difference lies on the worse side. The last sentence says how
    large a loss could have gone unseen, so that silence is not read as equality.
    """
    arm = f"student-{BASELINE}"
    sentences = [
        _state_loss(metric, row)
        for metric in METRICS
        for name in SLICES
        if _is_worse(metric, row := find_row(report, arm, metric.name, name))
    ]
    pooled = find_row(report, arm, "exact_match")
    if not pooled["n"]:
        return (*sentences, "Exact match was not compared: no case was graded in both arms.")
    unseen = max(0.0, -pooled["lower"])
    return (
        *sentences,
        f"On {pooled['n']} cases a loss of exact match of up to {100 * unseen:.1f} points is "
        "compatible with what was seen; behaviours no golden case asks for were not measured.",
    )


def _is_worse(metric: Metric, row: dict[str, Any]) -> bool:
    if row["value"] is None:
        return False
    return bool(row["upper"] < 0 if metric.is_higher_better else row["lower"] > 0)


def _state_loss(metric: Metric, row: dict[str, Any]) -> str:
    where = "Over all cases" if row["slice"] == "all" else f"On {row['slice']} cases"
    gap = format_value(abs(row["value"]), metric.unit, is_difference=True).lstrip("+")
    direction = "below" if metric.is_higher_better else "above"
    return (
        f"{where} the student's {metric.label[0].lower()}{metric.label[1:]} is {gap} {direction} "
        f"the {BASELINE}'s (interval {format_limits(row, metric.unit)}, n = {row['n']})."
    )


def _count_more_cases(
    open_gates: Sequence[GateResult],
    pooled: dict[str, Any],
    recall: dict[str, Any],
    policy: GatePolicy,
) -> int | None:
    """Return how many more golden cases would decide every open gate at the rates seen so far.

    Null where more cases of the same kind would not decide it: nothing measured, failed answers,
    or the gate is on cost or latency, whose intervals shrink with repeats as well.
    """
    needs: list[int | None] = []
    for gate in open_gates:
        if gate.name == "pooled_non_inferiority" and pooled["n"]:
            n10, n01, n = (pooled[name] for name in ("n10", "n01", "n"))

            def is_decided(k: float, a: int = n10, b: int = n01, m: int = n) -> bool:
                scaled = round(a * k), round(b * k), round(m * k)
                return _judge_non_inferiority(*scaled, 0, policy) != "INCONCLUSIVE"

            needs.append(_find_more(n, is_decided))
        elif gate.name == "refusal_recall" and recall["n"]:

            def is_recall_decided(k: float) -> bool:
                scaled = recall | {"n": round(recall["n"] * k), "inconclusive_count": 0}
                scaled["numerator"] = min(recall["numerator"] * k, scaled["n"])
                return check_refusal_recall(scaled, policy).outcome != "INCONCLUSIVE"

            needs.append(_find_more(recall["n"], is_recall_decided))
        else:
            needs.append(None)
    known = [need for need in needs if need is not None]
    return max(known) if known and len(known) == len(needs) else None


def _find_more(n: int, is_decided: Callable[[float], bool]) -> int | None:
    """Return the least number of cases on top of n that decide, by doubling and then bisecting."""
    if is_decided(1.0):
        return None
    low, high = 0, 1
    while not is_decided((n + high) / n):
        low, high = high, 2 * high
        if high > MAXIMUM_MORE_CASES:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_decided((n + middle) / n) else (middle, high)
    return high


def _state_verdict(
    verdict: Decision, reasons: Sequence[GateResult], counted: int, more_cases: int | None
) -> str:
    if verdict == "PROMOTE":
        return f"All {counted} gates passed: the routed student may replace the teacher."
    names = ", ".join(gate.name.replace("_", " ") for gate in reasons)
    if verdict == "HOLD":
        verb = "gate fails" if len(reasons) == 1 else "gates fail"
        return f"{len(reasons)} {verb} ({names}): the teacher keeps answering."
    verb = "gate is" if len(reasons) == 1 else "gates are"
    need = (
        f"about {more_cases} more cases at the same rates would decide"
        if more_cases
        else "more cases alone would not decide"
    )
    return f"{len(reasons)} {verb} undecided ({names}): {need}; until then the teacher answers."


def _count_unknown(count: int) -> str:
    return f"; {count} could not be graded" if count else ""


def _points(value: float) -> str:
    return format_value(value, "ratio", is_difference=True)
