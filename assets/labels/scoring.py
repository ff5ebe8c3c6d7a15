"""Soft targets: an open-weights model that shares the student's tokenizer scores teacher answers.

Row j of an example predicts `token_ids[j]`. Values are natural logs at temperature 1, never
renormalised. Belongs here: scoring and what the table refuses. Does not belong here: the loss that
reads the table (`assets.students`).
"""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from assets import tables
from assets.labels.answer_tokens import AnswerTokens, encode_answer, token_hash
from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.models.causal_lm import (
    PrefixStates,
    hash_base_model,
    load_causal_lm,
    load_tokenizer,
    pad_batch,
    read_prefix,
    run_decoder,
)
from serving.models.chat_tokens import (
    ChatTokens,
    defuse_special_tokens,
    split_chat,
    tokenizer_fingerprint,
)
from serving.models.protocols import NoProgress, Progress

TAIL_FLOOR = 1e-7
MINIMUM_MEAN_PROBABILITY = 0.02  # of the realised tokens; below: rows are shifted or foreign
SUM_TOLERANCE = 2e-3  # float16 rounds each probability by up to 5e-4 of itself


@dataclass(frozen=True, kw_only=True)
class AnswerScorer:
    """A frozen model that scores answers, and what is recorded about it."""

    model: Any
    tokenizer: Any
    scorer_id: str
    scorer_hash: str

    @classmethod
    def load(cls, folder: Path, *, scorer_id: str, dtype: str = "auto") -> "AnswerScorer":
        """Load the scorer from a transformers folder."""
        return cls(
            model=load_causal_lm(folder, dtype),
            tokenizer=load_tokenizer(folder),
            scorer_id=scorer_id,
            scorer_hash=hash_base_model(folder),
        )


def score_answers(
    examples: pl.DataFrame,
    scorer: AnswerScorer,
    *,
    top_k: int = 20,
    context_tokens: int = 2048,
    maximum_examples: int | None = None,
    seed: int = 0,
    minimum_mean_probability: float = MINIMUM_MEAN_PROBABILITY,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Score each example's completion under its own prompt; one row per scored example.

    Args:
        examples: columns example_id, messages, completion.
        scorer: the model that scores.
        top_k: logprobs kept per answer token.
        context_tokens: longer examples get no row (training drops them too).
        maximum_examples: a seeded sample of this size is scored, the rest get no row.
        seed: of the sample.
        minimum_mean_probability: floor of the realised tokens' mean probability over the table.
        progress: told after each example.

    Raises:
        InvalidInputError: a row breaks a rule of `check_logprob_rows`.
    """
    fingerprint = tokenizer_fingerprint(scorer.tokenizer)
    texts = dict(zip(examples["example_id"], examples["completion"], strict=True))
    fitting = _tokenise(examples, scorer.tokenizer, context_tokens, maximum_examples, seed)
    reader = _PrefixReader(scorer.model)
    rows = []
    for done, (example_id, chat, answer) in enumerate(fitting, start=1):
        rows.append(
            _score_one(scorer, reader.read(chat.prefix_ids), chat, answer, top_k)
            | {
                "example_id": example_id,
                "token_hash": token_hash(fingerprint, chat.whole, answer.ids),
                "tokenizer_id": fingerprint,
            }
        )
        (progress or NoProgress()).advance("scoring answers", done, len(fitting))
    frame = pl.DataFrame(rows, schema=tables.TEACHER_LOGPROBS).sort("example_id")
    check_logprob_rows(
        frame,
        completions=texts,
        tokenizer=scorer.tokenizer,
        minimum_mean_probability=minimum_mean_probability,
    )
    return frame


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


def _tokenise(
    examples: pl.DataFrame,
    tokenizer: Any,
    context_tokens: int,
    maximum_examples: int | None,
    seed: int,
) -> list[tuple[str, ChatTokens, AnswerTokens]]:
    """Tokenise a seeded sample of what fits, in prefix order: equal prefixes are neighbours."""
    rows = sorted(
        examples.select("example_id", "messages", "completion").iter_rows(named=True),
        key=lambda row: content_hash(seed, row["example_id"]),
    )
    chosen: list[tuple[str, ChatTokens, AnswerTokens]] = []
    for row in rows:
        if maximum_examples is not None and len(chosen) == maximum_examples:
            break
        chat = split_chat(tokenizer, row["messages"])
        answer = encode_answer(tokenizer, row["completion"])
        if len(chat) + len(answer.ids) <= context_tokens:
            chosen.append((row["example_id"], chat, answer))
    return sorted(chosen, key=lambda item: (item[1].prefix_ids, item[0]))


class _PrefixReader:
    """Reads prefixes, keeping the last: examples come in prefix order."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._last: tuple[tuple[int, ...], PrefixStates] | None = None

    def read(self, prefix_ids: tuple[int, ...]) -> PrefixStates:
        if self._last is None or self._last[0] != prefix_ids:
            self._last = (prefix_ids, read_prefix(self._model, prefix_ids))
        return self._last[1]


def _score_one(
    scorer: AnswerScorer, prefix: PrefixStates, chat: ChatTokens, answer: AnswerTokens, top_k: int
) -> dict[str, Any]:
    import torch

    with torch.no_grad():
        suffix = (*chat.suffix_ids, *answer.ids[:-1])
        hidden = run_decoder(
            scorer.model, pad_batch(scorer.model, [prefix], [suffix], pad_side="right")
        )[0, len(chat.suffix_ids) - 1 :]
        logits = scorer.model.get_output_embeddings()(hidden).double()
        logprobs = logits.log_softmax(dim=-1)
        top = logprobs.topk(min(top_k, logprobs.shape[1]), dim=-1)
        realised = torch.tensor(answer.ids, device=logprobs.device)
        y_logp = logprobs.gather(1, realised[:, None])[:, 0]
        is_outside = (top.indices != realised[:, None]).all(dim=-1)
        mass = top.values.exp().sum(dim=-1) + torch.where(is_outside, y_logp.exp(), 0.0)
    return {
        "token_ids": list(answer.ids),
        "top_ids": top.indices.tolist(),
        "top_logprobs": top.values.tolist(),
        "y_logp": y_logp.tolist(),
        "tail_logp": (1.0 - mass).clamp(min=TAIL_FLOOR).log().tolist(),
        "soft_ok": torch.isfinite(y_logp).tolist(),
        "cite": list(answer.cite_mask),
        "source": "scorer",
        "alignment": "exact",
        "temperature": 1.0,
        "scorer_id": scorer.scorer_id,
        "scorer_hash": scorer.scorer_hash,
        "scorer_dtype": str(scorer.model.dtype).removeprefix("torch."),
    }
