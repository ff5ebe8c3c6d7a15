"""Training one adapter: frozen prefixes, a LoRA suffix, the distillation loss, the best epoch kept.

A plain callable on frames and a loaded base: notebooks, tests and the entry point `train` call it.
Belongs here: the loop, and the state it resumes from. Does not belong here: the loss of a batch
(`steps`), files (`adapters`, `checkpoints`), processes and progress bars (`train`).
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from assets import tables
from assets.students.batches import Example, choose_validation, make_examples, plan_epoch
from assets.students.checkpoints import Checkpoint, Checkpoints, decode_checkpoint
from assets.students.distributed import Workers
from assets.students.diverging import explain_batch, explain_validation
from assets.students.loss import compute_logits, refuse_transformed_logits
from assets.students.prefixes import (
    PREFIX_BYTES,
    PrefixReader,
    PrefixStore,
    read_with_transformers,
)
from assets.students.progress import (
    TRAINED_TOKEN_WORK,
    OnStep,
    StepReport,
    WorkMeter,
    measure_peak_memory_mb,
)
from assets.students.recipe import Recipe
from assets.students.soft_rows import ByteOrder
from assets.students.steps import BatchLoss, LossComputer
from assets.students.weights import TrainedWeights, add_lora

WARMUP_RATIO = 0.05


@dataclass(frozen=True, kw_only=True)
class TrainedAdapter:
    """A trained adapter and what it took. `model` is the peft model with the best weights."""

    model: Any
    curve: pl.DataFrame
    steps: int
    best_epoch: int
    best_validation_loss: float | None
    seconds: float
    train_count: int
    soft_count: int
    validation_count: int
    is_stopped_early: bool = False
    resumed_at_step: int = 0
    process_count: int = 1


def train_adapter(
    base: Any,
    frame: pl.DataFrame,
    logprobs: pl.DataFrame | None,
    recipe: Recipe,
    *,
    base_hash: str,
    prefix_bytes: int = PREFIX_BYTES,
    on_step: OnStep = lambda _report: None,
    checkpoints: Checkpoints | None = None,
    workers: Workers = Workers(),  # noqa: B008 - frozen
    byte_order: ByteOrder | None = None,
    open_reader: Callable[[Any], PrefixReader] = read_with_transformers,
) -> TrainedAdapter:
    """Train a LoRA adapter on the frame's train split.

    Args:
        base: the frozen causal LM; LoRA layers are put into it.
        frame: a training set (`training_set.TRAINING_SET`).
        logprobs: teacher logprobs, or None for hard targets only.
        recipe: every choice of the run.
        base_hash: identity of the base, to know a scorer that is the base itself.
        prefix_bytes: memory for prefix states; prefixes beyond it are read again each epoch.
        on_step: told after every optimizer step.
        checkpoints: where to go on from and what to write to; None keeps nothing.
        workers: the processes that train together; all of them call this with equal arguments.
        byte_order: needed where logprobs are of groups of tokens (`find_byte_order`).
        open_reader: given the frozen base, who reads its prefixes; by default itself.

    Raises:
        DivergedError: loss or gradient became NaN or infinite, of a batch or of validation; it
            names the examples.
        InvalidInputError: nothing to train on, or a model this loss is wrong for.
    """
    trained, held_out = (frame.filter(pl.col("split") == name) for name in ("train", "validation"))
    train = make_examples(trained, logprobs, recipe, base_hash, byte_order=byte_order)
    validation = make_examples(held_out, None, recipe, base_hash) if held_out.height else []
    validation = choose_validation(validation, recipe.max_validation_examples, recipe.seed)
    frozen = copy.deepcopy(base, {id(p): p for p in base.parameters()})  # shares every weight
    model = add_lora(base, recipe)
    refuse_transformed_logits(model.get_base_model(), compute_logits)
    computer = LossComputer(
        model.get_base_model(), PrefixStore(open_reader(frozen), prefix_bytes), recipe, workers
    )
    run = _Run(model, computer, recipe, workers, on_step, checkpoints)
    run.plan(train, validation)
    run.resume()
    while not run.is_over:
        run.train_epoch(train)
        run.close_epoch(validation)
    run.restore_best()
    computer.give_back()
    return TrainedAdapter(
        model=model,
        curve=pl.DataFrame(run.curve, schema=tables.TRAINING_CURVE),
        steps=run.step,
        best_epoch=run.best_epoch,
        best_validation_loss=run.best_loss if validation else None,
        seconds=run.meter.seconds,
        train_count=len(train),
        soft_count=sum(example.has_soft for example in train),
        validation_count=len(validation),
        is_stopped_early=run.is_stopped_early,
        resumed_at_step=run.resumed_at_step,
        process_count=workers.count,
    )


def learning_rate_at(step: int, total_steps: int, peak: float) -> float:
    """Return the rate of a 0-based step: linear warmup over 5 % of the steps, then linear decay."""
    warmup = max(1, round(total_steps * WARMUP_RATIO))
    return peak * min((step + 1) / warmup, (total_steps - step) / max(1, total_steps - warmup + 1))


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        model: Any,
        computer: LossComputer,
        recipe: Recipe,
        workers: Workers,
        on_step: OnStep,
        checkpoints: Checkpoints | None,
    ) -> None:
        self._computer = computer
        self._weights = TrainedWeights(model, recipe.learning_rate)
        self._recipe = recipe
        self._workers = workers
        self._on_step = on_step
        self._checkpoints = checkpoints
        self._total_steps = self._steps_per_epoch = 0
        self._closed_epochs = 0
        self._pending: StepReport | None = None
        self.meter = WorkMeter()
        self.step = self.resumed_at_step = 0
        self.curve: list[dict[str, Any]] = []
        self.best_epoch, self.best_loss = 0, math.inf

    def plan(self, train: Sequence[Example], validation: Sequence[Example]) -> None:
        """Count steps and work ahead."""
        self._steps_per_epoch = math.ceil(len(train) / self._recipe.batch_size)
        steps = self._recipe.epochs * self._steps_per_epoch
        self._total_steps = min(steps, self._recipe.max_steps or steps)
        self.meter.plan(train, validation, epochs=self._total_steps / self._steps_per_epoch)

    @property
    def is_over(self) -> bool:
        """Whether every planned step is done and validated, or validation stopped improving."""
        epochs = math.ceil(self._total_steps / self._steps_per_epoch)
        return self._closed_epochs >= epochs or self.is_stopped_early

    @property
    def is_stopped_early(self) -> bool:
        """Whether `patience` epochs in a row brought no lower validation loss."""
        patience = self._recipe.patience
        if patience is None or self.step >= self._total_steps:
            return False
        return self._closed_epochs - 1 - self.best_epoch >= patience

    def train_epoch(self, train: Sequence[Example]) -> None:
        """Take one optimizer step per batch. The epoch's last report waits for its validation."""
        recipe, epoch = self._recipe, self._closed_epochs
        batches = plan_epoch(train, recipe.batch_size, recipe.seed, epoch)
        for batch in batches[self.step - epoch * self._steps_per_epoch :]:
            if self.step >= self._total_steps:
                return
            self._flush()
            self._take_step(batch)
            self._save_if_due()

    def close_epoch(self, validation: Sequence[Example]) -> None:
        """Validate, keep the weights if they are the best so far, report the epoch's last step."""
        loss = self._validate(validation) if validation else None
        if loss is not None and not math.isfinite(loss):
            alone = {e.example_id: self._computer.measure_hard([e]).hard for e in validation}
            where = f"validating epoch {self._closed_epochs + 1}, after step {self.step}"
            raise explain_validation(where, alone, loss, last_good=self._weights.copy_best())
        if loss is None or loss < self.best_loss:
            self.best_epoch = self._closed_epochs
            self.best_loss = math.inf if loss is None else loss
            self._weights.keep_best()
        self._closed_epochs += 1
        self._flush(loss)

    def restore_best(self) -> None:
        """Put the best epoch's weights back into the model."""
        self._weights.restore_best()

    def resume(self) -> None:
        """Go on where an interrupted run of this training was, if it left a checkpoint."""
        if self._checkpoints is None:
            return
        data = self._workers.share(self._checkpoints.read_latest)
        if data:
            self._restore(decode_checkpoint(data))

    def _take_step(self, batch: Sequence[Example]) -> None:
        started = time.perf_counter()
        self._weights.forget_gradients()
        loss = self._computer.accumulate_gradient(batch)
        norm = self._weights.clip_gradients()
        if not (math.isfinite(loss.total) and math.isfinite(norm)):
            where = f"training step {self.step + 1} of {self._total_steps}"
            raise explain_batch(where, batch, loss.total, norm, last_good=self._weights.copy())
        rate = learning_rate_at(self.step, self._total_steps, self._recipe.learning_rate)
        self._weights.take_step(rate)
        self.step += 1
        self._pending = self._report(batch, loss, norm, time.perf_counter() - started)

    def _report(
        self, batch: Sequence[Example], loss: BatchLoss, norm: float, seconds: float
    ) -> StepReport:
        read = round(loss.prefix_tokens_read)
        trained = sum(example.trained_tokens for example in batch)
        self.meter.done += read + TRAINED_TOKEN_WORK * trained
        return StepReport(
            step=self.step,
            total_steps=self._total_steps,
            loss=loss.total,
            hard_loss=loss.hard,
            soft_loss=loss.soft,
            grad_norm=norm,
            tokens_per_second=(read + trained) / seconds,
            step_seconds=seconds,
            floor_flops=loss.floor_flops,
            peak_memory_mb=measure_peak_memory_mb(),
            eta_seconds=self.meter.seconds_left,
        )

    def _validate(self, validation: Sequence[Example]) -> float:
        loss = self._computer.measure_hard(validation)
        self.meter.done += round(loss.prefix_tokens_read)
        self.meter.done += sum(example.trained_tokens for example in validation)
        return loss.hard

    def _flush(self, validation_loss: float | None = None) -> None:
        if self._pending is None:
            return
        report = StepReport(**vars(self._pending) | {"validation_loss": validation_loss})
        self._pending = None
        self.curve.append({name: getattr(report, name) for name in tables.TRAINING_CURVE})
        self._on_step(report)

    def _save_if_due(self) -> None:
        if self._checkpoints is not None and self._workers.is_first:
            self._checkpoints.save_if_due(self.step, self._describe)

    def _describe(self) -> Checkpoint:
        progress = {
            "closed_epochs": self._closed_epochs,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "pending": vars(self._pending) if self._pending else None,
            "curve": self.curve,
            "seconds": self.meter.seconds,
            "done_work": self.meter.done,
        }
        return Checkpoint(step=self.step, tensors=self._weights.to_tensors(), progress=progress)

    def _restore(self, checkpoint: Checkpoint) -> None:
        progress = checkpoint.progress
        self._weights.load_tensors(checkpoint.tensors)
        self.step = self.resumed_at_step = checkpoint.step
        self._closed_epochs, self.best_epoch = progress["closed_epochs"], progress["best_epoch"]
        self.best_loss = math.inf if progress["best_loss"] is None else progress["best_loss"]
        self._pending = StepReport(**progress["pending"]) if progress["pending"] else None
        self.curve = progress["curve"]
        self.meter.resume(seconds=progress["seconds"], done=progress["done_work"])
