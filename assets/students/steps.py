"""The loss of one batch and its gradient, in micro-batches and over all processes.

The normaliser is the weight of the whole batch, known to every process, so neither the size of a
micro-batch nor the number of processes changes the sum. Belongs here: from examples to a summed
gradient. Does not belong here: the optimizer and the epochs (`training`), the loss itself (`loss`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch  # noqa: TID253 - the computation itself; nothing that Dagster loads imports this

from assets.students.batches import Example, find_positions, make_targets
from assets.students.distributed import Workers
from assets.students.flops import RowShape, count_step_flops, measure_shape
from assets.students.loss import Loss, distillation_loss
from assets.students.packing import (
    disable_packing,
    enable_packing,
    pack_row,
    plan_rows,
    run_packed,
)
from assets.students.prefixes import PrefixStore
from assets.students.recipe import Recipe
from assets.students.recomputing import disable_recomputing, enable_recomputing, freeze_cache
from serving.models.causal_lm import pad_batch, run_decoder


@dataclass(frozen=True, kw_only=True)
class BatchLoss:
    """The loss of a batch over all processes. Sums are weighted, and not divided."""

    total: float
    hard_sum: float
    soft_sum: float
    weight_sum: float
    soft_weight_sum: float
    prefix_tokens_read: float
    floor_flops: float

    @property
    def hard(self) -> float:
        """Mean cross-entropy."""
        return self.hard_sum / self.weight_sum

    @property
    def soft(self) -> float | None:
        """Mean T^2 KL over the tokens that have a soft target; None without any."""
        return self.soft_sum / self.soft_weight_sum if self.soft_weight_sum else None


class LossComputer:
    """Computes losses of batches with one model; gradients gather in its parameters."""

    def __init__(self, model: Any, prefixes: PrefixStore, recipe: Recipe, workers: Workers) -> None:
        """Take the base model with LoRA layers in it, and the store that reads its prefixes."""
        self._model = model
        self._head = model.get_output_embeddings().weight
        self._prefixes = prefixes
        self._recipe = recipe
        self._workers = workers
        self._shape = measure_shape(model)
        self._trainable = [p for p in model.parameters() if p.requires_grad]
        if recipe.packing:
            enable_packing(model)
        if recipe.gradient_checkpointing:
            enable_recomputing(model)

    def accumulate_gradient(self, batch: Sequence[Example]) -> BatchLoss:
        """Return the loss of a batch, and leave its gradient in the parameters."""
        normaliser = _sum_weights(batch)
        share, losses = self._workers.take_share(batch), []
        for part in self._cut(share, self._recipe.micro_batch_size or len(batch)):
            loss = self._compute(part, normaliser, hard_only=False)
            loss.total.backward()  # type: ignore[no-untyped-call]
            losses.append(loss)
        self._workers.sum_gradients(self._trainable)
        return self._sum(losses, share)

    def measure_hard(self, examples: Sequence[Example]) -> BatchLoss:
        """Return the hard loss of examples, without a gradient."""
        recipe = self._recipe
        size = min(recipe.micro_batch_size or recipe.batch_size, recipe.batch_size)
        share = self._workers.take_share(examples)
        with torch.no_grad():
            losses = [
                self._compute(part, _sum_weights(part), hard_only=True)
                for part in self._cut(share, size)
            ]
        return self._sum(losses, share)

    def give_back(self) -> None:
        """Leave the model able to answer: it reads batches and grows caches again."""
        if self._recipe.packing:
            disable_packing(self._model)
        if self._recipe.gradient_checkpointing:
            disable_recomputing(self._model)

    def _compute(self, part: Sequence[Example], normaliser: float, *, hard_only: bool) -> Loss:
        device = self._model.device
        hidden, starts = self._run(part)
        targets = make_targets(part, hard_only=hard_only)
        states = hidden.flatten(0, 1).index_select(0, find_positions(part, starts).to(device))
        soft = targets.soft
        return distillation_loss(
            states,
            self._head,
            targets.targets.to(device),
            soft=None if soft is None else type(soft)(*(field.to(device) for field in soft)),
            alpha=targets.alpha.to(device),
            weight=targets.weight.to(device),
            normaliser=normaliser,
            temperature=self._recipe.temperature,
        )

    def _run(self, part: Sequence[Example]) -> tuple[torch.Tensor, Sequence[int]]:
        """Return hidden states, and where each example begins in them when they are flat."""
        if self._recipe.packing:
            row = pack_row(part, self._prefixes.read, self._model.device)
            return run_packed(self._model, row), row.starts
        batch = pad_batch(
            self._model,
            [self._prefixes.read(example.prefix_ids) for example in part],
            [(*example.suffix_ids, *example.answer_ids[:-1]) for example in part],
            pad_side="right",
        )
        starts = range(0, batch.input_ids.numel(), batch.input_ids.shape[1])
        if self._recipe.gradient_checkpointing:
            return run_decoder(self._model, freeze_cache(batch), grows=False), starts
        return run_decoder(self._model, batch), starts

    def _cut(self, examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
        """Yield what is computed at once: packed rows, or micro-batches of so many examples."""
        if self._recipe.packing:
            yield from plan_rows(examples, self._recipe.max_packed_tokens)
            return
        for start in range(0, len(examples), size):
            yield examples[start : start + size]

    def _sum(self, losses: Sequence[Loss], share: Sequence[Example]) -> BatchLoss:
        read = self._prefixes.take_lengths_read()
        rows = (
            RowShape(prefix=len(e.prefix_ids), trained=e.trained_tokens, answer=len(e.answer_ids))
            for e in share
        )
        sums = self._workers.sum_numbers(
            [
                sum(loss.total.item() for loss in losses),
                sum(loss.hard_sum for loss in losses),
                sum(loss.soft_sum for loss in losses),
                sum(loss.weight_sum for loss in losses),
                sum(loss.soft_weight_sum for loss in losses),
                sum(read),
                count_step_flops(
                    self._shape,
                    rows,
                    prefixes_read=read,
                    is_recomputed=self._recipe.gradient_checkpointing,
                ),
            ]
        )
        return BatchLoss(**dict(zip(BatchLoss.__dataclass_fields__, sums, strict=True)))


def _sum_weights(batch: Sequence[Example]) -> float:
    return sum(example.weight * len(example.answer_ids) for example in batch)
