"""How many more cases would decide what is open, at the rates seen so far.

Each gate counts cases of a kind: the pooled one golden cases, refusal recall those to refuse. What
one needs is told in its own detail, whatever other gates say; added up, all is counted in golden
cases, since those are what is written, of every kind as many as now. Belongs here: that search, and
its words. Does not belong here: the rules it asks (`gates`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from assets.releases.gates import (
    GatePolicy,
    GateResult,
    check_refusal_recall,
    judge_non_inferiority,
)

MAXIMUM_MORE_CASES = 100_000  # a need above it is said to be out of reach


@dataclass(frozen=True, kw_only=True)
class Need:
    """So many more cases of the kind that a gate counts, and what that is in golden cases."""

    cases: int
    golden_cases: int

    def describe(self) -> str:
        """Return it as a sentence's part."""
        if self.cases == self.golden_cases:
            return f"about {self.cases} more golden cases at these rates would decide"
        return (
            f"about {self.cases} more cases to refuse at these rates would decide, which is "
            f"{self.golden_cases} more golden cases as they are mixed now"
        )


def find_needs(
    gates: Sequence[GateResult],
    pooled: dict[str, Any],
    recall: dict[str, Any],
    policy: GatePolicy,
) -> dict[str, Need]:
    """Return what each open gate needs, by its name; a gate that more cases do not decide has none.

    That is one where nothing was measured or answers failed, or one on cost or latency, whose
    intervals shrink with repeats as well.

    Args:
        gates: all of a verdict.
        pooled: the parity table's row of the pooled difference.
        recall: its row of refusal recall.
        policy: the limits.
    """
    is_open = {gate.name for gate in gates if gate.is_gating and gate.outcome == "INCONCLUSIVE"}
    needs = {}
    if "pooled_non_inferiority" in is_open and (more := _need_pooled(pooled, policy)):
        needs["pooled_non_inferiority"] = Need(cases=more, golden_cases=more)
    if (
        "refusal_recall" in is_open
        and pooled["n"]
        and (more := _need_refusals(recall, policy)) is not None
    ):
        golden_cases = math.ceil(more * pooled["n"] / recall["n"])
        needs["refusal_recall"] = Need(cases=more, golden_cases=golden_cases)
    return needs


def tell_needs(gates: Sequence[GateResult], needs: dict[str, Need]) -> tuple[GateResult, ...]:
    """Return the gates, with its need in each that has one: as a number, and in the detail."""
    return tuple(
        replace(gate, needed_cases=need.cases, detail=f"{gate.detail}; {need.describe()}")
        if (need := needs.get(gate.name))
        else gate
        for gate in gates
    )


def count_more_cases(open_gates: Sequence[GateResult], needs: dict[str, Need]) -> int | None:
    """Return how many more golden cases would decide every open gate; None: they would not."""
    if not open_gates or any(gate.name not in needs for gate in open_gates):
        return None
    return max(needs[gate.name].golden_cases for gate in open_gates)


def _need_pooled(pooled: dict[str, Any], policy: GatePolicy) -> int | None:
    n10, n01, n = (pooled[name] for name in ("n10", "n01", "n"))

    def is_decided(k: float) -> bool:
        scaled = round(n10 * k), round(n01 * k), round(n * k)
        return judge_non_inferiority(*scaled, 0, policy) != "INCONCLUSIVE"

    return _find_more(n, is_decided) if n else None


def _need_refusals(recall: dict[str, Any], policy: GatePolicy) -> int | None:
    def is_decided(k: float) -> bool:
        scaled = recall | {"n": round(recall["n"] * k), "inconclusive_count": 0}
        scaled["numerator"] = min(recall["numerator"] * k, scaled["n"])
        return check_refusal_recall(scaled, policy).outcome != "INCONCLUSIVE"

    return _find_more(recall["n"], is_decided) if recall["n"] else None


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
