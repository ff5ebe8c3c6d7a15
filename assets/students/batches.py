"""Training examples with their soft targets, and the seeded order in which batches meet the model.

Belongs here: which token gets which alpha, joining logprobs to examples, bucketing by length,
turning a batch into tensors. Does not belong here: forward passes (`training`), the loss (`loss`).
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from assets.students.recipe import Recipe
from serving.errors import InvalidInputError
from serving.hashing import content_hash

if TYPE_CHECKING:
    import torch

    from assets.students.loss import SoftTargets

FULL_TRUST_PROBABILITY = 0.1
"""A teacher that gives its own token less than this is trusted less, in proportion."""

BUCKET_BATCHES = 8  # batches sorted by length together: less padding, order still nearly random

SoftRow = tuple[tuple[int, ...], tuple[float, ...], float]
"""Ids (top ids and the realised token), their logprobs, the log of the remaining mass."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One example ready for batching. `soft[j]` is None where token j is hard only (alpha 1)."""

    example_id: str
    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    alpha: tuple[float, ...]
    soft: tuple[SoftRow | None, ...]
    weight: float = 1.0

    @property
    def trained_tokens(self) -> int:
        """Tokens that pass through the adapter."""
        return len(self.suffix_ids) + len(self.answer_ids) - 1

    @property
    def has_soft(self) -> bool:
        """Whether any token has a soft target."""
        return any(row is not None for row in self.soft)


@dataclass(frozen=True, kw_only=True)
class BatchTargets:
    """A batch's targets: one entry per answer token, rows one after the other.

    `positions` index the flattened [batch, padded suffix] hidden states that predict them.
    """

    positions: "torch.Tensor"
    targets: "torch.Tensor"
    soft: "SoftTargets | None"
    alpha: "torch.Tensor"
    weight: "torch.Tensor"


def make_examples(
    frame: pl.DataFrame, logprobs: pl.DataFrame | None, recipe: Recipe, base_hash: str
) -> list[Example]:
    """Return the frame's rows as examples in id order, joined to logprobs by id and token hash.

    Raises:
        InvalidInputError: no examples, an empty answer, or logprobs that know the examples' ids but
            none of their tokens (another tokenizer or prompt).
    """
    rows = list(frame.sort("example_id").iter_rows(named=True))
    known = _index_logprobs(logprobs) if recipe.alpha < 1 and logprobs is not None else {}
    matched = [known.get((row["example_id"], row["token_hash"])) for row in rows]
    stale = {example_id for example_id, _ in known} & {row["example_id"] for row in rows}
    if stale and not any(matched):
        raise InvalidInputError(
            "joining teacher logprobs to the training set",
            expected="logprobs of the very tokens in the training set",
            found=f"{len(stale)} examples scored, all with another token hash",
            next_step="materialize labels/teacher_logprobs again",
        )
    empty = [row["example_id"] for row in rows if not row["answer_ids"]]
    if empty or not rows:
        raise InvalidInputError(
            "reading the training set",
            expected="examples, each with at least one answer token",
            found=f"{empty[0]} has none" if empty else "no examples",
            next_step="materialize students/training_set again",
        )
    return [
        _make_example(row, found, recipe, base_hash)
        for row, found in zip(rows, matched, strict=True)
    ]


def choose_validation(examples: Sequence[Example], maximum: int, seed: int) -> list[Example]:
    """Return at most `maximum` examples by hash order, sorted by length for batching."""
    drawn = sorted(examples, key=lambda e: content_hash(seed, e.example_id))[:maximum]
    return sorted(drawn, key=lambda e: (e.trained_tokens, e.example_id))


def plan_epoch(
    examples: Sequence[Example], batch_size: int, seed: int, epoch: int
) -> list[list[Example]]:
    """Return the epoch's batches: shuffled, alike in length within a batch, the same for a seed."""
    generator = random.Random(f"{seed}/{epoch}")  # noqa: S311 - an order, not a secret
    order = list(examples)
    generator.shuffle(order)
    window = batch_size * BUCKET_BATCHES
    batches: list[list[Example]] = []
    for start in range(0, len(order), window):
        bucket = sorted(order[start : start + window], key=lambda e: e.trained_tokens)
        batches += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
    generator.shuffle(batches)
    return batches


def make_targets(batch: Sequence[Example], *, hard_only: bool = False) -> BatchTargets:
    """Turn a batch into target tensors, padded to the widest soft row."""
    import torch

    from assets.students.loss import SoftTargets

    width = max(e.trained_tokens for e in batch)
    positions = [
        row * width + len(example.suffix_ids) - 1 + j
        for row, example in enumerate(batch)
        for j in range(len(example.answer_ids))
    ]
    weights = [example.weight for example in batch for _ in example.answer_ids]
    alpha = [1.0 if hard_only else value for example in batch for value in example.alpha]
    soft_rows = [None if hard_only else row for example in batch for row in example.soft]
    slots = max((len(row[0]) for row in soft_rows if row is not None), default=0)
    soft = None
    if slots:
        nothing: SoftRow = ((), (), 0.0)
        filled = [row or nothing for row in soft_rows]
        soft = SoftTargets(
            torch.tensor([[*ids, *[-1] * (slots - len(ids))] for ids, _, _ in filled]),
            torch.tensor([[*logp, *[0.0] * (slots - len(logp))] for _, logp, _ in filled]),
            torch.tensor([tail for _, _, tail in filled]),
        )
    return BatchTargets(
        positions=torch.tensor(positions),
        targets=torch.tensor([token for example in batch for token in example.answer_ids]),
        soft=soft,
        alpha=torch.tensor(alpha),
        weight=torch.tensor(weights),
    )


def _index_logprobs(logprobs: pl.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    return {(r["example_id"], r["token_hash"]): r for r in logprobs.iter_rows(named=True)}


def _make_example(
    row: Mapping[str, Any], found: Mapping[str, Any] | None, recipe: Recipe, base_hash: str
) -> Example:
    answer = tuple(row["answer_ids"])
    alpha = [1.0] * len(answer)
    soft: list[SoftRow | None] = [None] * len(answer)
    if found is not None:
        is_own_base = found["scorer_hash"] == base_hash
        for j, is_cite in enumerate(row["cite_mask"]):
            alpha[j] = _choose_alpha(recipe, found, j, is_cite=is_cite, is_own_base=is_own_base)
            if alpha[j] < 1:
                soft[j] = _coarsen(found, j, answer[j], recipe.top_k)
    return Example(
        example_id=row["example_id"],
        prefix_ids=tuple(row["prefix_ids"]),
        suffix_ids=tuple(row["suffix_ids"]),
        answer_ids=answer,
        alpha=tuple(alpha),
        soft=tuple(soft),
        weight=row["weight"],
    )


def _choose_alpha(
    recipe: Recipe, found: Mapping[str, Any], j: int, *, is_cite: bool, is_own_base: bool
) -> float:
    """Return the hard share of one token: boosted in citations, 1 where soft targets teach nothing.

    A scorer that is only the student's own base does not know citations. Where a scorer finds the
    realised token unlikely, its weight moves to the hard side in proportion.
    """
    if not found["soft_ok"][j] or (is_cite and is_own_base):
        return 1.0
    alpha = min(1.0, recipe.alpha * recipe.citation_boost) if is_cite else recipe.alpha
    trust = min(1.0, math.exp(found["y_logp"][j]) / FULL_TRUST_PROBABILITY)
    return 1.0 - (1.0 - alpha) * trust


def _coarsen(found: Mapping[str, Any], j: int, realised: int, top_k: int) -> SoftRow:
    """Keep the first `top_k` ids and the realised one; the mass of the others joins the tail."""
    stored = dict(zip(found["top_ids"][j], found["top_logprobs"][j], strict=True))
    kept = {token: stored[token] for token in found["top_ids"][j][:top_k]}
    kept[realised] = found["y_logp"][j]
    dropped = sum(math.exp(value) for token, value in stored.items() if token not in kept)
    tail = math.log(math.exp(found["tail_logp"][j]) + dropped)
    return tuple(kept), tuple(kept.values()), tail
