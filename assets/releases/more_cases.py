"""How many more golden cases would decide what is open, at the rates seen so far.

Belongs here: that search. Does not belong here: the rules it asks (`gates`).
"""

from collections.abc import Callable, Sequence
from typing import Any

from assets.releases.gates import (
    GatePolicy,
    GateResult,
    check_refusal_recall,
    judge_non_inferiority,
)

MAXIMUM_MORE_CASES = 100_000  # a need above it is said to be out of reach


def count_more_cases(
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
                return judge_non_inferiority(*scaled, 0, policy) != "INCONCLUSIVE"

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
