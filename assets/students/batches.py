"""Training examples with their soft targets, and the seeded order in which batches meet the model.

Belongs here: which token gets which alpha, joining logprobs to examples, bucketing by length,
turning a batch into tensors. Does not belong here: how soft targets are packed (`soft_rows`),
forward passes (`training`), the loss (`loss`).
"""

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

from assets.students.recipe import Recipe
from assets.students.soft_rows import ByteOrder, GroupRows, SoftRows, pack_soft, read_soft
from serving.errors import InvalidInputError
from serving.hashing import content_hash

if TYPE_CHECKING:
    import torch

    from assets.students.loss import GroupTargets, SoftTargets

FULL_TRUST_PROBABILITY = 0.1
"""A scorer that gives the teacher's token less than this is trusted less, in proportion."""

BUCKET_BATCHES = 8  # batches sorted by length together: less padding, order still nearly random


@dataclass(frozen=True, kw_only=True)
class Example:
    """One example ready for batching. Token j has a soft target only where alpha[j] is below 1."""

    example_id: str
    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    alpha: tuple[float, ...]
    soft: SoftRows | GroupRows | None = field(default=None, compare=False, repr=False)
    weight: float = 1.0

    @property
    def trained_tokens(self) -> int:
        """Tokens that pass through the adapter."""
        return len(self.suffix_ids) + len(self.answer_ids) - 1

    @property
    def has_soft(self) -> bool:
        """Whether any token has a soft target."""
        return self.soft is not None and any(value < 1 for value in self.alpha)


@dataclass(frozen=True, kw_only=True)
class BatchTargets:
    """A batch's targets: one entry per answer token, examples one after the other."""

    targets: "torch.Tensor"
    soft: "SoftTargets | GroupTargets | None"
    alpha: "torch.Tensor"
    weight: "torch.Tensor"


def make_examples(
    frame: pl.DataFrame,
    logprobs: pl.DataFrame | None,
    recipe: Recipe,
    base_hash: str,
    *,
    byte_order: ByteOrder | None = None,
) -> list[Example]:
    """Return the frame's rows as examples in id order, joined to logprobs by id and token hash.

    Args:
        frame: rows of a training set.
        logprobs: rows of `labels/teacher_logprobs`, or None for hard targets only.
        recipe: alpha, boost and top-k.
        base_hash: identity of the student's base, to know a scorer that is the base itself.
        byte_order: needed where a row's targets are groups of tokens (`find_byte_order`).

    Raises:
        InvalidInputError: no examples, an empty answer, logprobs that know the examples' ids but
            none of their tokens (another tokenizer or prompt), or groups over another vocabulary.
    """
    rows = list(frame.sort("example_id").iter_rows(named=True))
    usable = logprobs if recipe.alpha < 1 and logprobs is not None else None
    known = _index_logprobs(usable)
    places = [known.get((row["example_id"], row["token_hash"])) for row in rows]
    stale = {example_id for example_id, _ in known} & {row["example_id"] for row in rows}
    if stale and all(place is None for place in places):
        raise InvalidInputError(
            "joining teacher logprobs to the training set",
            expected="logprobs of the very tokens in the training set",
            found=f"{len(stale)} examples with soft targets, all of another prompt or tokenizer",
            next_step="materialize labels/teacher_logprobs again; they are made with the tokenizer "
            "of the first local student of the config, and a recipe for a student with another one "
            "needs alpha: 1",
        )
    empty = [row["example_id"] for row in rows if not row["answer_ids"]]
    if empty or not rows:
        raise InvalidInputError(
            "reading the training set",
            expected="examples, each with at least one answer token",
            found=f"{empty[0]} has none" if empty else "no examples",
            next_step="materialize students/training_set again",
        )
    examples = []
    for row, place in zip(rows, places, strict=True):
        found = None if usable is None or place is None else usable.row(place, named=True)
        examples.append(_make_example(row, found, recipe, base_hash, byte_order))
    return examples


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


def find_positions(batch: Sequence[Example], starts: Sequence[int]) -> "torch.Tensor":
    """Return where the states that predict answer tokens lie, example by example.

    `starts` is where each example's tokens begin among the flattened states.
    """
    import torch

    return torch.tensor(
        [
            start + len(example.suffix_ids) - 1 + j
            for start, example in zip(starts, batch, strict=True)
            for j in range(len(example.answer_ids))
        ]
    )


def make_targets(batch: Sequence[Example], *, hard_only: bool = False) -> BatchTargets:
    """Turn a batch into target tensors, padded to the widest soft row.

    Examples with tokens, with groups of tokens and without soft targets may meet in one batch.
    """
    import torch

    weights = [example.weight for example in batch for _ in example.answer_ids]
    alpha = [1.0 if hard_only else value for example in batch for value in example.alpha]
    soft = [(None if hard_only else example.soft, len(example.answer_ids)) for example in batch]
    return BatchTargets(
        targets=torch.tensor([token for example in batch for token in example.answer_ids]),
        soft=pack_soft(soft),
        alpha=torch.tensor(alpha),
        weight=torch.tensor(weights),
    )


def _index_logprobs(logprobs: pl.DataFrame | None) -> dict[tuple[str, str], int]:
    """Return where the rows with a soft target lie; the others say no more than their absence."""
    if logprobs is None:
        return {}
    keys = logprobs.select("example_id", "token_hash", pl.col("soft_ok").list.any()).rows()
    return {
        (example_id, key): place
        for place, (example_id, key, has_soft) in enumerate(keys)
        if has_soft
    }


def _make_example(
    row: Mapping[str, Any],
    found: Mapping[str, Any] | None,
    recipe: Recipe,
    base_hash: str,
    byte_order: ByteOrder | None,
) -> Example:
    answer = tuple(row["answer_ids"])
    alpha = [1.0] * len(answer)
    soft = None
    if found is not None:
        boosted = choose_boosted(row["cite_mask"], recipe, example_id=row["example_id"])
        silent = row["cite_mask"] if found["scorer_hash"] == base_hash else [False] * len(answer)
        for j, (is_boosted, is_silent) in enumerate(zip(boosted, silent, strict=True)):
            if not is_silent:
                alpha[j] = _choose_alpha(recipe, found, j, is_boosted=is_boosted)
        is_soft = [value < 1 for value in alpha]
        soft = read_soft(found, answer, is_soft, top_k=recipe.top_k, byte_order=byte_order)
    return Example(
        example_id=row["example_id"],
        prefix_ids=tuple(row["prefix_ids"]),
        suffix_ids=tuple(row["suffix_ids"]),
        answer_ids=answer,
        alpha=tuple(alpha),
        soft=soft,
        weight=row["weight"],
    )


def choose_boosted(cite_mask: Sequence[bool], recipe: Recipe, *, example_id: str) -> list[bool]:
    """Return the tokens whose alpha is boosted: the citations, or the placebo's spans.

    A placebo boosts as many spans of the same lengths, anywhere in the answer but on its end of
    turn: what it changes is owed to boosting as such, not to citations.
    """
    if recipe.citation_boost_on == "citations":
        return list(cite_mask)
    lengths = _measure_runs(cite_mask)
    generator = random.Random(f"{recipe.seed}/{example_id}")  # noqa: S311 - spans, not a secret
    generator.shuffle(lengths)
    free = len(cite_mask) - 1 - sum(lengths)
    boosted, used = [False] * len(cite_mask), 0
    for start in sorted(generator.randint(0, free) for _ in lengths):
        length = lengths.pop()
        boosted[start + used : start + used + length] = [True] * length
        used += length
    return boosted


def _measure_runs(mask: Sequence[bool]) -> list[int]:
    return [len(list(run)) for value, run in itertools.groupby(mask) if value]


def _choose_alpha(recipe: Recipe, found: Mapping[str, Any], j: int, *, is_boosted: bool) -> float:
    """Return the hard share of one token, 1 where it has no usable soft target.

    A scorer that finds the realised token unlikely is trusted less: its weight moves to the hard
    side in proportion. A teacher does not disagree with its own text, so it is trusted fully.
    """
    if not found["soft_ok"][j]:
        return 1.0
    alpha = min(1.0, recipe.alpha * recipe.citation_boost) if is_boosted else recipe.alpha
    if found["source"] == "teacher":
        return alpha
    trust = min(1.0, math.exp(found["y_logp"][j]) / FULL_TRUST_PROBABILITY)
    return 1.0 - (1.0 - alpha) * trust
