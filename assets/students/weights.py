"""The weights that a training changes: where they are put, their optimizer, the best so far.

Belongs here: LoRA layers, stepping, keeping, what a checkpoint holds of them. Does not belong here:
when they are the best (`training`), files (`checkpoints`).
"""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253 - part of the loop; nothing that Dagster loads imports this

from assets.students.loss import refuse_unsupported_model
from assets.students.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

MAXIMUM_GRADIENT_NORM = 1.0

Weights = dict[str, "Tensor"]


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
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), warnings.catch_warnings():
        # peft 0.21 reads a name that transformers 5.23 renamed; nothing a user could change
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        torch.manual_seed(recipe.seed)
        model: Any = get_peft_model(base, config)
    refuse_unsupported_model(model.get_base_model())
    return model.eval()


class TrainedWeights:
    """The parameters of a model that require a gradient, in the order of the model."""

    def __init__(self, model: Any, learning_rate: float) -> None:
        """Make an optimizer for what is trainable in `model`."""
        self._parameters: dict[str, Any] = {
            name: p for name, p in model.named_parameters() if p.requires_grad
        }
        self._optimizer = torch.optim.AdamW(
            list(self._parameters.values()), lr=learning_rate, weight_decay=0.0, fused=True
        )
        self._best: Weights = {}

    def forget_gradients(self) -> None:
        """Drop the gradients of the step before."""
        self._optimizer.zero_grad(set_to_none=True)

    def clip_gradients(self) -> float:
        """Scale the gradients down to the largest norm that is allowed; return what it was."""
        parameters = self._parameters.values()
        return float(torch.nn.utils.clip_grad_norm_(parameters, MAXIMUM_GRADIENT_NORM))

    def take_step(self, learning_rate: float) -> None:
        """Change the weights by their gradients."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()

    def copy(self) -> Weights:
        """Return the weights as they are now."""
        return {name: p.detach().clone() for name, p in self._parameters.items()}

    def keep_best(self) -> None:
        """Remember the weights as they are now as the best so far."""
        self._best = self.copy()

    def copy_best(self) -> Weights:
        """Return the best weights so far; before the first, the weights as they are now."""
        return {name: value.clone() for name, value in self._best.items()} or self.copy()

    def restore_best(self) -> None:
        """Put the best weights back into the model."""
        with torch.no_grad():
            for name, value in self._best.items():
                self._parameters[name].copy_(value)

    def to_tensors(self) -> Weights:
        """Return all that the next step depends on, and the best weights so far."""
        tensors: Weights = {f"weights/{name}": p for name, p in self._parameters.items()}
        tensors |= {f"best/{name}": value for name, value in self._best.items()}
        for name, parameter in self._parameters.items():
            for slot, value in self._optimizer.state[parameter].items():
                tensors[f"optimizer.{slot}/{name}"] = value
        return tensors

    def load_tensors(self, tensors: Mapping[str, "Tensor"]) -> None:
        """Take over what `to_tensors` gave."""
        for name, parameter in self._parameters.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"weights/{name}"])
        self._best = {}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            own = value.to(self._parameters[name].device, copy=True)
            if kind == "best":
                self._best[name] = own
            elif kind.startswith("optimizer."):
                self._optimizer.state[self._parameters[name]][kind.partition(".")[2]] = own
