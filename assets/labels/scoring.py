"""Soft targets: an open-weights model that shares the student's tokenizer scores teacher answers.

Row j of an example predicts `token_ids[j]`. Values are natural logs at temperature 1, never
renormalised. Belongs here: what is scored, and how scores become rows. Does not belong here: who
scores (`local_scoring`, `resources/scorers`), what the table refuses (`logprob_rows`), the loss
that reads the table (`assets.students`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl

from assets import tables
from assets.labels.answer_tokens import AnswerTokens, encode_answer, token_hash
from assets.labels.logprob_rows import MINIMUM_MEAN_PROBABILITY, check_logprob_rows
from serving.hashing import content_hash
from serving.models.chat_tokens import ChatTokens, split_chat, tokenizer_fingerprint
from serving.models.protocols import NoProgress, Progress, ScoreRequest, TokenScores

TAIL_FLOOR = 1e-7


class TokenScorer(Protocol):
    """A frozen model that scores given tokens, and what is recorded about it."""

    @property
    def scorer_id(self) -> str:
        """The pinned model."""
        ...

    @property
    def scorer_hash(self) -> str:
        """Identity of its weights, or of the server that holds them."""
        ...

    @property
    def scorer_dtype(self) -> str:
        """What it computes in; `unknown` where a server does not say."""
        ...

    @property
    def tokenizer(self) -> Any:
        """The student's tokenizer, which the scorer shares."""
        ...

    def score(self, requests: Iterable[ScoreRequest], *, top_k: int) -> Iterator[TokenScores]:
        """Yield the scores of each request's answer, in order; equal prefixes are neighbours."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Fitting:
    example_id: str
    chat: ChatTokens
    answer: AnswerTokens

    @property
    def request(self) -> ScoreRequest:
        return ScoreRequest(
            prefix_ids=self.chat.prefix_ids,
            suffix_ids=self.chat.suffix_ids,
            answer_ids=self.answer.ids,
        )


def score_answers(
    examples: pl.DataFrame,
    scorer: TokenScorer,
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
        scorer: who scores.
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
    fitting = _tokenise(examples, scorer.tokenizer, context_tokens, maximum_examples, seed)
    scored = scorer.score((item.request for item in fitting), top_k=top_k)
    rows = []
    for done, (item, scores) in enumerate(zip(fitting, scored, strict=True), start=1):
        rows.append(_tabulate(item, scores, scorer, fingerprint))
        (progress or NoProgress()).advance("scoring answers", done, len(fitting))
    frame = pl.DataFrame(rows, schema=tables.TEACHER_LOGPROBS).sort("example_id")
    check_logprob_rows(
        frame,
        completions=dict(zip(examples["example_id"], examples["completion"], strict=True)),
        tokenizer=scorer.tokenizer,
        minimum_mean_probability=minimum_mean_probability,
    )
    return frame


def _tokenise(
    examples: pl.DataFrame,
    tokenizer: Any,
    context_tokens: int,
    maximum_examples: int | None,
    seed: int,
) -> list[_Fitting]:
    """Tokenise a seeded sample of what fits, in prefix order: equal prefixes are neighbours."""
    rows = sorted(
        examples.select("example_id", "messages", "completion").iter_rows(named=True),
        key=lambda row: content_hash(seed, row["example_id"]),
    )
    chosen: list[_Fitting] = []
    for row in rows:
        if maximum_examples is not None and len(chosen) == maximum_examples:
            break
        chat = split_chat(tokenizer, row["messages"])
        answer = encode_answer(tokenizer, row["completion"])
        if len(chat) + len(answer.ids) <= context_tokens:
            chosen.append(_Fitting(example_id=row["example_id"], chat=chat, answer=answer))
    return sorted(chosen, key=lambda item: (item.chat.prefix_ids, item.example_id))


def _tabulate(
    item: _Fitting, scores: TokenScores, scorer: TokenScorer, fingerprint: str
) -> dict[str, Any]:
    answer, y_logp = item.answer, scores.y_logprobs
    return {
        "example_id": item.example_id,
        "token_hash": token_hash(fingerprint, item.chat.whole, answer.ids),
        "tokenizer_id": fingerprint,
        "token_ids": list(answer.ids),
        "top_ids": scores.top_ids.tolist(),
        "top_logprobs": scores.top_logprobs.tolist(),
        "y_logp": y_logp.tolist(),
        "tail_logp": find_tail(scores, answer.ids).tolist(),
        "soft_ok": np.isfinite(y_logp).tolist(),
        "cite": list(answer.cite_mask),
        "source": "scorer",
        "alignment": "exact",
        "temperature": 1.0,
        "scorer_id": scorer.scorer_id,
        "scorer_hash": scorer.scorer_hash,
        "scorer_dtype": scorer.scorer_dtype,
    }


def find_tail(scores: TokenScores, answer_ids: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return [A] logs of the mass outside the top ids and the realised token, in float64."""
    realised = np.asarray(answer_ids)[:, None]
    is_outside = (scores.top_ids != realised).all(axis=1)
    mass = np.exp(scores.top_logprobs).sum(axis=1)
    mass += np.where(is_outside, np.exp(scores.y_logprobs), 0.0)
    tail: np.ndarray[Any, Any] = np.log(np.maximum(1.0 - mass, TAIL_FLOOR))
    return tail
