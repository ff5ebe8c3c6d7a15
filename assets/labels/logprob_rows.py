"""What training must not read: the rules a table of soft targets is held to when it is written.

Belongs here: the rules. Does not belong here: how answers are scored (`scoring`).
"""

import itertools
import math
from typing import Any

import polars as pl

from serving.errors import InvalidInputError
from serving.models.chat_tokens import defuse_special_tokens

MINIMUM_MEAN_PROBABILITY = 0.02  # of the realised tokens; below: rows are shifted or foreign
MAXIMUM_MEAN_PROBABILITY = 0.9999  # of a teacher's own tokens; above: tempered towards 0
SUM_TOLERANCE = 2e-3  # float16 rounds each probability by up to 5e-4 of itself
PER_TOKEN = (
    "top_ids", "top_logprobs", "y_logp", "tail_logp", "soft_ok", "cite",
    "group_low", "group_high", "group_number", "group_logprobs",
)  # fmt: skip

_Problem = tuple[str, str] | None
"""What was expected and what was found."""


def check_logprob_rows(
    frame: pl.DataFrame,
    *,
    completions: dict[str, str] | None = None,
    tokenizer: Any = None,
    minimum_mean_probability: float = MINIMUM_MEAN_PROBABILITY,
) -> None:
    """Refuse a table that training must not read.

    Refused: row counts that differ within an example, duplicate ids in a row, groups that overlap,
    probabilities that sum over 1 (groups and their tail: to anything but 1) or ascend, a
    temperature other than 1, tokens that do not decode to the completion, and for each source a
    mean probability of the realised tokens under the floor (rows shifted by one show there) or, of
    a teacher's own tokens, next to 1 (a server that sends what it sampled from).

    Raises:
        InvalidInputError: names the example and the rule.
    """
    totals: dict[str, list[float]] = {}
    for row in frame.iter_rows(named=True):
        problem = _find_problem(row)
        if problem is None and completions is not None:
            problem = _find_mismatch(row, completions, tokenizer)
        if problem is not None:
            raise InvalidInputError(
                f"checking the logprobs of example {row['example_id']}",
                expected=problem[0],
                found=problem[1],
                next_step="score the answers again; if it stays, the scorer's tokenizer differs",
            )
        known = [y for y, ok in zip(row["y_logp"], row["soft_ok"], strict=True) if ok]
        total = totals.setdefault(row["source"], [0.0, 0])
        total[0] += sum(map(math.exp, known))
        total[1] += len(known)
    for source, (mass, count) in totals.items():
        if count:
            _check_mean(source, mass / count, int(count), minimum_mean_probability)


def _check_mean(source: str, mean: float, count: int, minimum: float) -> None:
    if mean < minimum:
        raise InvalidInputError(
            "checking the logprobs of all examples",
            expected=f"a mean probability of the teacher's tokens of at least {minimum}",
            found=f"{mean:.4f} over {count} tokens of source {source}",
            next_step="check that row j predicts token j, and that the scorer saw the same prompt",
        )
    if source == "teacher" and mean > MAXIMUM_MEAN_PROBABILITY:
        raise InvalidInputError(
            "checking the logprobs of all examples",
            expected="a teacher's logprobs at temperature 1, before sampling changes them",
            found=f"a mean probability of its own tokens of {mean:.6f} over {count} tokens",
            next_step="make the server send raw logprobs (vLLM: --logprobs-mode raw_logprobs), or "
            "set teacher.top_logprobs to 0",
        )


def _find_problem(row: dict[str, Any]) -> _Problem:
    length = len(row["token_ids"])
    counts = {name: len(row[name]) for name in PER_TOKEN}
    if not length or set(counts.values()) != {length}:
        return f"{length} rows, one per answer token (at least 1)", str(counts)
    if row["temperature"] != 1.0:
        return "logprobs at temperature 1", f"temperature {row['temperature']}"
    for j in range(length):
        problem = _find_row_problem(row, j)
        if problem is not None:
            return problem[0], f"{problem[1]} at row {j}"
    return None


def _find_row_problem(row: dict[str, Any], j: int) -> _Problem:
    ids, logprobs = row["top_ids"][j], row["top_logprobs"][j]
    has_soft = bool(ids or row["group_logprobs"][j])
    if row["soft_ok"][j] and not has_soft:
        return "a soft target wherever soft_ok says so", "none"
    if row["soft_ok"][j] and (row["y_logp"][j] is None or row["tail_logp"][j] is None):
        return "y_logp and tail_logp wherever soft_ok says so", "null"
    if len(ids) != len(logprobs) or len(set(ids)) != len(ids):
        return "distinct top ids, one logprob each", str(ids)
    mass = sum(map(math.exp, logprobs))
    if not mass <= 1 + SUM_TOLERANCE:  # also refuses NaN
        return "probabilities that sum to at most 1", f"{mass:.4f}"
    if any(a < b for a, b in itertools.pairwise(logprobs)):
        return "logprobs in descending order", str(logprobs)
    return _find_group_problem(row, j) if row["group_logprobs"][j] else None


def _find_group_problem(row: dict[str, Any], j: int) -> _Problem:
    lows, highs, numbers = (row[f"group_{name}"][j] for name in ("low", "high", "number"))
    logprobs = row["group_logprobs"][j]
    if not len(lows) == len(highs) == len(numbers):
        return "as many lows as highs and numbers", f"{len(lows)}, {len(highs)}, {len(numbers)}"
    bounds = [bound for pair in zip(lows, highs, strict=True) for bound in pair]
    is_disjoint = all(low < high for low, high in zip(lows, highs, strict=True))
    if not is_disjoint or bounds != sorted(bounds) or bounds[0] < 0:
        return "disjoint intervals in ascending order", str(bounds)
    if set(numbers) != set(range(len(logprobs))):
        return f"an interval for each of {len(logprobs)} groups", str(numbers)
    mass = sum(map(math.exp, [*logprobs, row["tail_logp"][j]]))
    if not abs(mass - 1) <= SUM_TOLERANCE:
        return "groups and a tail that sum to 1", f"{mass:.4f}"
    return None


def _find_mismatch(row: dict[str, Any], completions: dict[str, str], tokenizer: Any) -> _Problem:
    expected = defuse_special_tokens(tokenizer, completions[row["example_id"]])
    decoded = tokenizer.decode(row["token_ids"][:-1], clean_up_tokenization_spaces=False)
    if decoded != expected or row["token_ids"][-1] != tokenizer.eos_token_id:
        return f"tokens of {expected!r} and the end of turn", repr(decoded)
    return None
