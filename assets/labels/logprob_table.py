"""The table of soft targets: which examples are in it, and how an answer's targets become a row.

One row per training example that fits the student's context. Row j of an answer predicts its token
j. `top_*` are student tokens (alignment `exact`), `group_*` intervals of the vocabulary sorted by
bytes (`bytes`); without any soft target the alignment is `none` and `reason` says why. Belongs
here: tokenised examples and rows. Does not belong here: who supplies the numbers (`scoring`,
`teacher_tokens`), what is refused (`logprob_rows`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
import polars as pl

from assets import tables
from assets.labels.answer_tokens import AnswerTokens, encode_answer, token_hash
from serving.models.chat_tokens import ChatTokens, split_chat, tokenizer_fingerprint
from serving.models.protocols import ScoreRequest

Source = Literal["scorer", "teacher", "none"]
Alignment = Literal["exact", "bytes", "none"]

ROWS_PER_FRAME = 256
"""Rows become columns in slices of this size: an answer is 25 kB as Python lists, 5 as columns."""


@dataclass(frozen=True, kw_only=True)
class TokenisedExample:
    """A training example as the student's ids."""

    example_id: str
    chat: ChatTokens
    answer: AnswerTokens

    @property
    def request(self) -> ScoreRequest:
        """What a scorer is asked."""
        return ScoreRequest(
            prefix_ids=self.chat.prefix_ids,
            suffix_ids=self.chat.suffix_ids,
            answer_ids=self.answer.ids,
        )


@dataclass(frozen=True, kw_only=True)
class Supplier:
    """Whose numbers a row holds."""

    source: Source
    supplier_id: str = ""
    supplier_hash: str = ""
    dtype: str = "unknown"


@dataclass(frozen=True, kw_only=True)
class AnswerTargets:
    """The soft targets of one answer, an entry per token; empty lists where there is none.

    `top` holds (id, logprob), most likely first; `groups` (low, high, group) and `group_logprobs`
    a projected row. `y_logp` and `tail_logp` are None where a token has no soft target.
    """

    alignment: Alignment
    y_logp: Sequence[float | None]
    tail_logp: Sequence[float | None]
    top: Sequence[Sequence[tuple[int, float]]] = ()
    groups: Sequence[Sequence[tuple[int, int, int]]] = ()
    group_logprobs: Sequence[Sequence[float]] = ()
    vocabulary_id: str = ""
    reason: str = ""
    soft_ok: Sequence[bool] = field(init=False)

    def __post_init__(self) -> None:
        """Derive which tokens have a usable soft target."""
        is_known = [value is not None and np.isfinite(value) for value in self.y_logp]
        object.__setattr__(self, "soft_ok", [bool(value) for value in is_known])


def leave_hard(count: int, *, reason: str) -> AnswerTargets:
    """Return the targets of an answer without any soft one."""
    nothing = (None,) * count
    return AnswerTargets(alignment="none", y_logp=nothing, tail_logp=nothing, reason=reason)


def tokenise_examples(
    examples: pl.DataFrame, tokenizer: Any, *, context_tokens: int
) -> Iterator[TokenisedExample]:
    """Yield the examples that fit the context, in the frame's order; training drops the others."""
    wanted = examples.select("example_id", "messages", "completion")
    for row in wanted.iter_rows(named=True):
        chat = split_chat(tokenizer, row["messages"])
        answer = encode_answer(tokenizer, row["completion"])
        if len(chat) + len(answer.ids) <= context_tokens:
            yield TokenisedExample(example_id=row["example_id"], chat=chat, answer=answer)


def tabulate_targets(
    targets: Iterable[tuple[TokenisedExample, AnswerTargets]],
    supplier: Supplier,
    *,
    tokenizer: Any,
) -> pl.DataFrame:
    """Return the table of the given examples, in their order."""
    fingerprint = tokenizer_fingerprint(tokenizer)
    rows = (_write_row(item, found, supplier, fingerprint) for item, found in targets)
    frames = [tables.TEACHER_LOGPROBS.to_frame()]
    while part := list(islice(rows, ROWS_PER_FRAME)):
        frames.append(pl.DataFrame(part, schema=tables.TEACHER_LOGPROBS))
    return pl.concat(frames)


def _write_row(
    item: TokenisedExample, found: AnswerTargets, supplier: Supplier, fingerprint: str
) -> dict[str, Any]:
    ids = item.answer.ids
    top = found.top or [()] * len(ids)
    groups = found.groups or [()] * len(ids)
    return {
        "example_id": item.example_id,
        "token_hash": token_hash(fingerprint, item.chat.whole, ids),
        "tokenizer_id": fingerprint,
        "token_ids": list(ids),
        "top_ids": [[token for token, _ in row] for row in top],
        "top_logprobs": [[logp for _, logp in row] for row in top],
        "y_logp": list(found.y_logp),
        "tail_logp": list(found.tail_logp),
        "soft_ok": list(found.soft_ok),
        "cite": list(item.answer.cite_mask),
        "source": supplier.source,
        "alignment": found.alignment,
        "temperature": 1.0,
        "scorer_id": supplier.supplier_id,
        "scorer_hash": supplier.supplier_hash,
        "scorer_dtype": supplier.dtype,
        "group_low": [[low for low, _, _ in row] for row in groups],
        "group_high": [[high for _, high, _ in row] for row in groups],
        "group_number": [[group for *_, group in row] for row in groups],
        "group_logprobs": [list(row) for row in found.group_logprobs or [()] * len(ids)],
        "vocabulary_id": found.vocabulary_id,
        "soft_token_ratio": sum(found.soft_ok) / len(ids),
        "reason": found.reason,
    }
