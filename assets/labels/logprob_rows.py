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
SUM_TOLERANCE = 2e-3  # float16 rounds each probability by up to 5e-4 of itself


def check_logprob_rows(
    frame: pl.DataFrame,
    *,
    completions: dict[str, str] | None = None,
    tokenizer: Any = None,
    minimum_mean_probability: float = MINIMUM_MEAN_PROBABILITY,
) -> None:
    """Refuse a table that training must not read.

    Refused: row counts that differ within an example, duplicate ids in a row, probabilities that
    sum over 1 or ascend, a temperature other than 1, tokens that do not decode to the completion,
    and a mean probability of the realised tokens under the floor (rows shifted by one show there).

    Raises:
        InvalidInputError: names the example and the rule.
    """
    total, count = 0.0, 0
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
        total += sum(math.exp(value) for value in row["y_logp"])
        count += len(row["y_logp"])
    if count and total / count < minimum_mean_probability:
        raise InvalidInputError(
            "checking the logprobs of all examples",
            expected=f"a mean probability of the teacher's tokens of at least "
            f"{minimum_mean_probability}",
            found=f"{total / count:.4f} over {count} tokens",
            next_step="check that row j predicts token j, and that the scorer saw the same prompt",
        )


def _find_problem(row: dict[str, Any]) -> tuple[str, str] | None:
    length = len(row["token_ids"])
    per_token = ("top_ids", "top_logprobs", "y_logp", "tail_logp", "soft_ok", "cite")
    counts = {name: len(row[name]) for name in per_token}
    if not length or set(counts.values()) != {length}:
        return f"{length} rows, one per answer token (at least 1)", str(counts)
    if row["temperature"] != 1.0:
        return "logprobs at temperature 1", f"temperature {row['temperature']}"
    for j, (ids, logprobs) in enumerate(zip(row["top_ids"], row["top_logprobs"], strict=True)):
        if len(ids) != len(logprobs) or len(set(ids)) != len(ids):
            return "distinct top ids, one logprob each", f"{ids} at row {j}"
        mass = sum(math.exp(value) for value in logprobs)
        if not mass <= 1 + SUM_TOLERANCE:  # also refuses NaN
            return "probabilities that sum to at most 1", f"{mass:.4f} at row {j}"
        if any(a < b for a, b in itertools.pairwise(logprobs)):
            return "logprobs in descending order", f"{logprobs} at row {j}"
    return None


def _find_mismatch(
    row: dict[str, Any], completions: dict[str, str], tokenizer: Any
) -> tuple[str, str] | None:
    expected = defuse_special_tokens(tokenizer, completions[row["example_id"]])
    decoded = tokenizer.decode(row["token_ids"][:-1], clean_up_tokenization_spaces=False)
    if decoded != expected or row["token_ids"][-1] != tokenizer.eos_token_id:
        return f"tokens of {expected!r} and the end of turn", repr(decoded)
    return None
