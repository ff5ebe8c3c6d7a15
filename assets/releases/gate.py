"""The gate: from the parity table and the guard's counts to PROMOTE, HOLD or INCONCLUSIVE.

Every gate is computed and shown, in the order integrity, security and refusals, slices, pooled
quality, agreement in shadow, cost, latency. Belongs here: which gates there are, what they add up
to, the verdict's words. Does not belong here: one gate's rule (`gates`), measuring (`parity`),
publishing (`release_bundle`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import polars as pl

from assets import tables
from assets.parity.arms import BASELINE, CANDIDATE
from assets.parity.comparison import find_row
from assets.parity.metrics import BUCKETS
from assets.parity.strategy import Quality
from assets.parity.suite_evidence import CandidateIdentity
from assets.releases.gates import (
    GatePolicy,
    GateResult,
    IntegrityEvidence,
    check_calibration,
    check_cost,
    check_golden_lock,
    check_lane,
    check_latency,
    check_no_leak,
    check_non_inferiority,
    check_refusal_recall,
    check_slice,
)
from assets.releases.losses import state_losses
from assets.releases.more_cases import count_more_cases, find_needs, tell_needs

Decision = Literal["PROMOTE", "HOLD", "INCONCLUSIVE"]
QUALITY_OF: Mapping[Decision, Quality] = {
    "PROMOTE": "proven",
    "HOLD": "failed",
    "INCONCLUSIVE": "unproven",
}
"""What a verdict says of the student to those who only ask whether it is good enough."""


@dataclass(frozen=True, kw_only=True)
class GateVerdict:
    """The verdict, every gate behind it, and what the student is known to do worse.

    `evidence` is what it rests on beside the numbers, as JSON values: the policy, and whatever the
    caller adds.
    """

    verdict: Decision
    gates: tuple[GateResult, ...]
    statement: str
    more_cases: int | None
    losses: tuple[str, ...]
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self, candidate: CandidateIdentity) -> pl.DataFrame:
        """Return one row per gate on this candidate: the table releases/gate_verdict."""
        evidence = json.dumps(self.evidence, sort_keys=True)
        rows = [
            vars(gate)
            | {"position": position, "gate": gate.name, "verdict": self.verdict}
            | {"statement": self.statement, "more_cases": self.more_cases, "evidence": evidence}
            | asdict(candidate)
            for position, gate in enumerate(self.gates, start=1)
        ]
        return pl.DataFrame(rows, schema_overrides=tables.GATE_VERDICT).select(
            list(tables.GATE_VERDICT)
        )


def decide(
    report: pl.DataFrame,
    *,
    integrity: IntegrityEvidence,
    policy: GatePolicy,
    suites: Sequence[GateResult] = (),
    agreement: GateResult | None = None,
    missing_price: str | None = None,
    evidence: Mapping[str, Any] | None = None,
) -> GateVerdict:
    """Judge one parity table. HOLD if a gate fails, INCONCLUSIVE if one is open, else PROMOTE.

    Args:
        report: the parity table.
        integrity: what was counted before anything was measured.
        policy: the limits.
        suites: gates that who measured them judged: refusals, behaviours, clusters in shadow.
        agreement: the gate on agreement in shadow; None: nobody looked.
        missing_price: why costs say nothing, where a price is not stated in full.
        evidence: what is kept with the verdict beside the policy.

    Raises:
        InvalidInputError: the table lacks a row that a gate is read from.
    """
    pooled = find_row(report, f"{CANDIDATE}-{BASELINE}", "exact_match")
    recall = find_row(report, CANDIDATE, "refusal_recall")
    slices = [find_row(report, CANDIDATE, "exact_match", name) for name in BUCKETS]
    gates = (
        check_golden_lock(integrity),
        check_no_leak(integrity),
        check_lane(integrity),
        check_calibration(integrity),
        check_refusal_recall(recall, policy),
        *suites,
        *(check_slice(row, policy) for row in slices),
        check_non_inferiority(pooled, policy),
        *([agreement] if agreement else ()),
        check_cost(
            find_row(report, f"{CANDIDATE}/{BASELINE}", "usd_per_1k"),
            policy,
            missing_price=missing_price,
            teacher_usd=find_row(report, BASELINE, "usd_per_1k")["value"],
        ),
        check_latency(report),
    )
    needs = find_needs(gates, pooled, recall, policy)
    gates = tell_needs(gates, needs)
    counted = [gate for gate in gates if gate.is_gating]
    failed = [gate for gate in counted if gate.outcome == "FAIL"]
    open_gates = [gate for gate in counted if gate.outcome == "INCONCLUSIVE"]
    more_cases = None
    if open_gates and not failed:
        more_cases = count_more_cases(open_gates, needs)
    verdict: Decision = "HOLD" if failed else "INCONCLUSIVE" if open_gates else "PROMOTE"
    return GateVerdict(
        verdict=verdict,
        gates=gates,
        statement=_state_verdict(verdict, failed or open_gates, len(counted), more_cases),
        more_cases=more_cases,
        losses=state_losses(report),
        evidence={"policy": asdict(policy), **(evidence or {})},
    )


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
        f"about {more_cases} more golden cases at the same rates would decide"
        if more_cases
        else "more cases alone would not decide"
    )
    return f"{len(reasons)} {verb} undecided ({names}): {need}; until then the teacher answers."
