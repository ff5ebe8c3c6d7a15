"""Training one adapter: frozen prefixes, a LoRA suffix, the distillation loss, the best epoch kept.

A plain callable on frames and a loaded base: notebooks, tests and the entry point `train` call it.
Belongs here: the loop and what it reports. Does not belong here: files (`adapters`), processes and
progress bars (`train`).
"""

import copy
import math
import resource
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl
import torch  # noqa: TID253 - the loop itself; nothing that Dagster loads imports this

from assets import tables
from assets.students.batches import (
    Example,
    choose_validation,
    make_examples,
    make_targets,
    plan_epoch,
)
from assets.students.loss import Loss, distillation_loss, refuse_unsupported_model
from assets.students.recipe import Recipe
from serving.errors import UnderstudyError
from serving.models.causal_lm import PrefixStates, pad_batch, read_prefix, run_decoder

if TYPE_CHECKING:
    from torch import Tensor

MAXIMUM_VALIDATION_EXAMPLES = 24
MAXIMUM_GRADIENT_NORM = 1.0
WARMUP_RATIO = 0.05
PREFIX_BYTES = 4 * 1024**3

Weights = dict[str, "Tensor"]


class DivergedError(UnderstudyError):
    """The loss or the gradient stopped being a number. `last_good` are the weights before that."""

    last_good: Weights


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Where the training is after a step."""

    step: int
    total_steps: int
    loss: float
    hard_loss: float
    soft_loss: float | None
    grad_norm: float
    tokens_per_second: float
    peak_memory_mb: float
    eta_seconds: float
    validation_loss: float | None = None

    def to_line(self) -> str:
        """Return the report as one log line."""
        parts = [f"step {self.step}/{self.total_steps}", f"loss {self.loss:.3f}"]
        parts.append(f"hard {self.hard_loss:.3f}")
        if self.soft_loss is not None:
            parts.append(f"soft {self.soft_loss:.3f}")
        if self.validation_loss is not None:
            parts.append(f"validation {self.validation_loss:.3f}")
        parts.append(f"{self.tokens_per_second:.0f} tokens/s")
        parts.append(f"{self.eta_seconds:.0f} s left")
        parts.append(f"{self.peak_memory_mb:.0f} MB")
        return " · ".join(parts)


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


def train_adapter(
    base: Any,
    frame: pl.DataFrame,
    logprobs: pl.DataFrame | None,
    recipe: Recipe,
    *,
    base_hash: str,
    prefix_bytes: int = PREFIX_BYTES,
    on_step: Callable[[StepReport], None] = lambda _report: None,
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

    Raises:
        DivergedError: loss or gradient became NaN or infinite; it names the batch.
        InvalidInputError: nothing to train on, or a model this loss is wrong for.
    """
    train, validation = _split(frame, logprobs, recipe, base_hash)
    frozen = copy.deepcopy(base, {id(p): p for p in base.parameters()})  # shares every weight
    model = add_lora(base, recipe)
    run = _Run(model, frozen, recipe, prefix_bytes, on_step)
    run.plan(train, validation)
    for epoch in range(recipe.epochs):
        if run.is_over:
            break
        run.train_epoch(train, epoch)
        run.close_epoch(validation, epoch)
    run.restore_best()
    return TrainedAdapter(
        model=model,
        curve=pl.DataFrame(run.curve, schema=tables.TRAINING_CURVE),
        steps=run.step,
        best_epoch=run.best_epoch,
        best_validation_loss=run.best_loss if validation else None,
        seconds=time.perf_counter() - run.started_at,
        train_count=len(train),
        soft_count=sum(example.has_soft for example in train),
        validation_count=len(validation),
    )


def add_lora(base: Any, recipe: Recipe) -> Any:
    """Return a peft model around `base` with freshly initialised LoRA layers (seeded)."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.lora_alpha,
        target_modules=list(recipe.target_modules),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # peft 0.21 reads a name that transformers 5.23 renamed; nothing a user could change
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        torch.manual_seed(recipe.seed)
        model: Any = get_peft_model(base, config)
    refuse_unsupported_model(model.get_base_model())
    return model.eval()


def learning_rate_at(step: int, total_steps: int, peak: float) -> float:
    """Return the rate of a 0-based step: linear warmup over 5 % of the steps, then linear decay."""
    warmup = max(1, round(total_steps * WARMUP_RATIO))
    return peak * min((step + 1) / warmup, (total_steps - step) / max(1, total_steps - warmup + 1))


def _split(
    frame: pl.DataFrame, logprobs: pl.DataFrame | None, recipe: Recipe, base_hash: str
) -> tuple[list[Example], list[Example]]:
    train = make_examples(frame.filter(pl.col("split") == "train"), logprobs, recipe, base_hash)
    held_out = frame.filter(pl.col("split") == "validation")
    validation = make_examples(held_out, None, recipe, base_hash) if held_out.height else []
    return train, choose_validation(validation, MAXIMUM_VALIDATION_EXAMPLES, recipe.seed)


class _PrefixStore:
    """Prefix states by ids, kept until the memory limit is reached and then read anew.

    Epochs visit every prefix once, so evicting the least recently used would evict what comes next.
    """

    def __init__(self, frozen: Any, maximum_bytes: int) -> None:
        self._frozen = frozen
        self._free = maximum_bytes
        self._states: dict[tuple[int, ...], PrefixStates] = {}
        self.tokens_read = 0

    def read(self, prefix_ids: tuple[int, ...]) -> PrefixStates:
        """Return the states of a prefix."""
        states = self._states.get(prefix_ids)
        if states is None:
            states = read_prefix(self._frozen, prefix_ids)
            self.tokens_read += len(prefix_ids)
            if states.nbytes <= self._free:
                self._free -= states.nbytes
                self._states[prefix_ids] = states
        return states


class _Run:
    """The state of one training run."""

    def __init__(
        self,
        model: Any,
        frozen: Any,
        recipe: Recipe,
        prefix_bytes: int,
        on_step: Callable[[StepReport], None],
    ) -> None:
        self._model = model.get_base_model()
        self._head = self._model.get_output_embeddings().weight
        self._trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._recipe = recipe
        self._prefixes = _PrefixStore(frozen, prefix_bytes)
        self._on_step = on_step
        self._optimizer = torch.optim.AdamW(
            list(self._trainable.values()), lr=recipe.learning_rate, weight_decay=0.0, fused=True
        )
        self._total_steps = 0
        self._planned_work = self._done_work = 0
        self._pending: StepReport | None = None
        self.step = 0
        self.curve: list[dict[str, Any]] = []
        self.best_epoch, self.best_loss = 0, math.inf
        self._best: Weights = {}
        self.started_at = time.perf_counter()

    def plan(self, train: Sequence[Example], validation: Sequence[Example]) -> None:
        """Count steps and work ahead. Work is in forward tokens; a trained token counts 3."""
        recipe = self._recipe
        per_epoch = math.ceil(len(train) / recipe.batch_size)
        self._total_steps = min(
            recipe.epochs * per_epoch, recipe.max_steps or recipe.epochs * per_epoch
        )
        epochs = self._total_steps / per_epoch
        trained = sum(example.trained_tokens for example in train)
        validated = sum(example.trained_tokens for example in validation)
        prefixes = {example.prefix_ids for example in (*train, *validation)}
        self._planned_work = round(epochs * (3 * trained + validated)) + sum(map(len, prefixes))

    @property
    def is_over(self) -> bool:
        """Whether the planned steps are done."""
        return self.step >= self._total_steps

    def train_epoch(self, train: Sequence[Example], epoch: int) -> None:
        """Take one optimizer step per batch. The epoch's last report waits for its validation."""
        for batch in plan_epoch(train, self._recipe.batch_size, self._recipe.seed, epoch):
            if self.is_over:
                return
            self._flush()
            self._take_step(batch)

    def close_epoch(self, validation: Sequence[Example], epoch: int) -> None:
        """Validate, keep the weights if they are the best so far, report the epoch's last step."""
        loss = self._validate(validation) if validation else None
        if loss is None or loss < self.best_loss:
            self.best_epoch, self.best_loss = epoch, math.inf if loss is None else loss
            self._best = self._copy_weights()
        self._flush(loss)

    def restore_best(self) -> None:
        """Put the best epoch's weights back into the model."""
        with torch.no_grad():
            for name, value in self._best.items():
                self._trainable[name].copy_(value)

    def _take_step(self, batch: Sequence[Example]) -> None:
        started, read_before = time.perf_counter(), self._prefixes.tokens_read
        loss = self._compute_loss(batch)
        self._optimizer.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self._trainable.values(), MAXIMUM_GRADIENT_NORM)
        if not (math.isfinite(loss.total.item()) and math.isfinite(norm.item())):
            raise self._diverged(batch, loss.total.item(), norm.item())
        rate = learning_rate_at(self.step, self._total_steps, self._recipe.learning_rate)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self.step += 1
        read = self._prefixes.tokens_read - read_before
        trained = sum(example.trained_tokens for example in batch)
        self._done_work += read + 3 * trained
        self._pending = StepReport(
            step=self.step,
            total_steps=self._total_steps,
            loss=loss.total.item(),
            hard_loss=loss.hard_sum / loss.weight_sum,
            soft_loss=loss.soft_sum / loss.soft_weight_sum if loss.soft_weight_sum else None,
            grad_norm=norm.item(),
            tokens_per_second=(read + trained) / (time.perf_counter() - started),
            peak_memory_mb=measure_peak_memory_mb(),
            eta_seconds=self._estimate_seconds_left(),
        )

    def _compute_loss(self, batch: Sequence[Example], *, hard_only: bool = False) -> Loss:
        device = self._model.device
        padded = pad_batch(
            self._model,
            [self._prefixes.read(example.prefix_ids) for example in batch],
            [(*example.suffix_ids, *example.answer_ids[:-1]) for example in batch],
            pad_side="right",
        )
        targets = make_targets(batch, hard_only=hard_only)
        hidden = run_decoder(self._model, padded)
        states = hidden.flatten(0, 1).index_select(0, targets.positions.to(device))
        soft = targets.soft
        return distillation_loss(
            states,
            self._head,
            targets.targets.to(device),
            soft=None if soft is None else type(soft)(*(part.to(device) for part in soft)),
            alpha=targets.alpha.to(device),
            weight=targets.weight.to(device),
            normaliser=targets.weight.sum().item(),
            temperature=self._recipe.temperature,
        )

    def _validate(self, validation: Sequence[Example]) -> float:
        size, read_before = self._recipe.batch_size, self._prefixes.tokens_read
        with torch.no_grad():
            losses = [
                self._compute_loss(validation[start : start + size], hard_only=True)
                for start in range(0, len(validation), size)
            ]
        self._done_work += self._prefixes.tokens_read - read_before
        self._done_work += sum(example.trained_tokens for example in validation)
        return sum(loss.hard_sum for loss in losses) / sum(loss.weight_sum for loss in losses)

    def _estimate_seconds_left(self) -> float:
        elapsed = time.perf_counter() - self.started_at
        return elapsed / self._done_work * max(0, self._planned_work - self._done_work)

    def _flush(self, validation_loss: float | None = None) -> None:
        if self._pending is None:
            return
        report = StepReport(**vars(self._pending) | {"validation_loss": validation_loss})
        self._pending = None
        self.curve.append({name: getattr(report, name) for name in tables.TRAINING_CURVE})
        self._on_step(report)

    def _copy_weights(self) -> Weights:
        return {name: p.detach().clone() for name, p in self._trainable.items()}

    def _diverged(self, batch: Sequence[Example], loss: float, norm: float) -> DivergedError:
        error = DivergedError(
            f"training step {self.step + 1} of {self._total_steps}",
            expected="a finite loss and gradient",
            found=f"loss {loss}, gradient norm {norm} on the batch of examples "
            f"{', '.join(example.example_id for example in batch)}",
            next_step="lower learning_rate, or look at these examples and their logprobs",
        )
        error.last_good = self._copy_weights()
        return error


def measure_peak_memory_mb() -> float:
    """Return the peak memory of this process (of the GPU where there is one) in MB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1024**2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)
