"""Soft targets: an open-weights model that shares the student's tokenizer scores teacher answers.

Row j of an example predicts `token_ids[j]`. Values are natural logs at temperature 1, never
renormalised. Belongs here: what is scored, and how scores become rows. Does not belong here: who
scores (`local_scoring`, `resources/scorers`), what the table refuses (`logprob_rows`), the loss
that reads the table (`assets.students`).
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from assets.labels.logprob_rows import MINIMUM_MEAN_PROBABILITY, check_logprob_rows
from assets.labels.logprob_table import (
    AnswerTargets,
    Supplier,
    TokenisedExample,
    tabulate_targets,
    tokenise_examples,
)
from serving.hashing import content_hash
from serving.models.protocols import (
    NoProgress,
    Progress,
    TokenScorer,
    TokenScores,
)

TAIL_FLOOR = 1e-7


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
    fitting = _choose(examples, scorer.tokenizer, context_tokens, maximum_examples, seed)
    scored = scorer.score((item.request for item in fitting), top_k=top_k)

    def read() -> Iterator[tuple[TokenisedExample, AnswerTargets]]:
        for done, (item, scores) in enumerate(zip(fitting, scored, strict=True), start=1):
            yield item, _read_targets(scores, item.answer.ids)
            (progress or NoProgress()).advance("scoring answers", done, len(fitting))

    supplier = Supplier(
        source="scorer",
        supplier_id=scorer.scorer_id,
        supplier_hash=scorer.scorer_hash,
        dtype=scorer.scorer_dtype,
    )
    frame = tabulate_targets(read(), supplier, tokenizer=scorer.tokenizer).sort("example_id")
    check_logprob_rows(
        frame,
        completions=dict(zip(examples["example_id"], examples["completion"], strict=True)),
        tokenizer=scorer.tokenizer,
        minimum_mean_probability=minimum_mean_probability,
    )
    return frame


def _choose(
    examples: pl.DataFrame,
    tokenizer: Any,
    context_tokens: int,
    maximum_examples: int | None,
    seed: int,
) -> list[TokenisedExample]:
    """Tokenise a seeded sample of what fits, in prefix order: equal prefixes are neighbours."""
    order = pl.Series(
        "order", [content_hash(seed, i) for i in examples["example_id"]], dtype=pl.String
    )
    drawn = examples.with_columns(order).sort("order")
    fitting = tokenise_examples(drawn, tokenizer, context_tokens=context_tokens)
    chosen = itertools.islice(fitting, maximum_examples)
    return sorted(chosen, key=lambda item: (item.chat.prefix_ids, item.example_id))


def _read_targets(scores: TokenScores, answer_ids: tuple[int, ...]) -> AnswerTargets:
    return AnswerTargets(
        alignment="exact",
        y_logp=scores.y_logprobs.tolist(),
        tail_logp=find_tail(scores, answer_ids).tolist(),
        top=[
            list(zip(ids, logprobs, strict=True))
            for ids, logprobs in zip(
                scores.top_ids.tolist(), scores.top_logprobs.tolist(), strict=True
            )
        ],
    )


def find_tail(scores: TokenScores, answer_ids: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return [A] logs of the mass outside the top ids and the realised token, in float64."""
    realised = np.asarray(answer_ids)[:, None]
    is_outside = (scores.top_ids != realised).all(axis=1)
    mass = np.exp(scores.top_logprobs).sum(axis=1)
    mass += np.where(is_outside, np.exp(scores.y_logprobs), 0.0)
    tail: np.ndarray[Any, Any] = np.log(np.maximum(1.0 - mass, TAIL_FLOOR))
    return tail
