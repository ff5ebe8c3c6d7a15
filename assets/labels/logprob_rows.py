"""What training must not read: the rules a table of soft targets is held to when it is written.

Belongs here: the rules. Does not belong here: how answers are scored (`scoring`).
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import polars as pl

from serving.errors import InvalidInputError
from serving.models.chat_tokens import defuse_special_tokens

MINIMUM_MEAN_PROBABILITY = 0.05
"""Of the realised tokens; below: rows are shifted or foreign. SmolLM2-135M gives the embedded
teacher's answers .74, and .01 to .02 to the tokens before and after each."""
MAXIMUM_MEAN_PROBABILITY = 0.9999  # of a teacher's own tokens; above: tempered towards 0
SUM_TOLERANCE = 2e-3  # float16 moves the sum of 100 equal probabilities by up to 1.9e-3
LOGP_TOLERANCE = 1e-3  # of the value, or absolute near 0: float16 keeps 4.9e-4 of the value
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
    probabilities that sum over 1 (with the realised token and the tail: to anything but 1) or
    ascend, a realised token with another logprob of its own than among the top ids, a temperature
    other than 1, tokens that do not decode to the completion, and for each source a
    mean probability of the realised tokens under the floor or under that of the tokens before or
    after them (rows shifted by one show there) or, of a teacher's own tokens, next to 1 (a server
    that sends what it sampled from).

    Raises:
        InvalidInputError: names the example and the rule.
    """
    means: dict[str, _Means] = {}
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
        means.setdefault(row["source"], _Means()).add(row)
    for source, found in means.items():
        if found.count:
            _check_mean(source, found.own, found.count, minimum_mean_probability)
            _check_places(source, found)


@dataclass
class _Means:
    """What the rows of a source give the tokens of their own places and of the places beside."""

    count: int = 0
    own_mass: float = 0.0
    exact_count: int = 0
    exact_mass: float = 0.0
    before_mass: float = 0.0
    after_mass: float = 0.0

    @property
    def own(self) -> float:
        return self.own_mass / self.count

    def add(self, row: dict[str, Any]) -> None:
        ids = row["token_ids"]
        for j in (j for j, ok in enumerate(row["soft_ok"]) if ok):
            own = math.exp(row["y_logp"][j])
            self.count += 1
            self.own_mass += own
            top = dict(zip(row["top_ids"][j], row["top_logprobs"][j], strict=True))
            if top:
                self.exact_count += 1
                self.exact_mass += own
                self.before_mass += math.exp(top.get(ids[j - 1], -math.inf)) if j else 0.0
                self.after_mass += math.exp(top.get(ids[j + 1], -math.inf)) if ids[j + 1 :] else 0.0


def _check_places(source: str, found: _Means) -> None:
    """Refuse rows that predict the token before or after their own better than their own.

    Where nothing is likely, as of a random model, nothing can be told.
    """
    beside = {"before": found.before_mass, "after": found.after_mass}
    where, mass = max(beside.items(), key=lambda item: item[1])
    if mass > max(found.exact_mass, MINIMUM_MEAN_PROBABILITY * found.exact_count):
        raise InvalidInputError(
            "checking the logprobs of all examples",
            expected="rows that find the tokens of their own places more likely than the next ones",
            found=f"{found.exact_mass / found.exact_count:.4f} for these and "
            f"{mass / found.exact_count:.4f} for the tokens {where} them, over "
            f"{found.exact_count} tokens of source {source}",
            next_step="shift the rows: row j must predict token j",
        )


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
    if row["group_logprobs"][j]:
        return _find_group_problem(row, j)
    return _find_exact_problem(row, j) if row["soft_ok"][j] else None


def _find_exact_problem(row: dict[str, Any], j: int) -> _Problem:
    """Find a tail or a realised logprob of another row: the three then contradict each other."""
    token, own = row["token_ids"][j], row["y_logp"][j]
    top = dict(zip(row["top_ids"][j], row["top_logprobs"][j], strict=True))
    stored = top.get(token, own)
    if not math.isclose(stored, own, rel_tol=LOGP_TOLERANCE, abs_tol=LOGP_TOLERANCE):
        return f"the logprob {stored:.4f} that token {token} has among the top ids", f"{own:.4f}"
    mass = sum(map(math.exp, [*(top | {token: own}).values(), row["tail_logp"][j]]))
    if not abs(mass - 1) <= SUM_TOLERANCE:
        return "top ids, the realised token and a tail that sum to 1", f"{mass:.4f}"
    return None


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
