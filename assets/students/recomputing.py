"""Gradient checkpointing: layers keep their inputs alone, and run again in the backward pass.

transformers has it, but lets go of the key/value cache with it, because a cache that grows would
grow twice. The states of a frozen prefix do not grow. Belongs here: turning it on, a cache that
only reads. Does not belong here: files of a training's state (`checkpoints`).
"""

from dataclasses import replace
from typing import Any

import torch  # noqa: TID253 - part of the loop; nothing that Dagster loads imports this
from transformers.cache_utils import (  # noqa: TID253 - as above
    Cache,
    DynamicLayer,
)
from transformers.modeling_layers import GradientCheckpointingLayer  # noqa: TID253 - as above

from serving.errors import InvalidInputError
from serving.models.causal_lm import PaddedBatch


class FrozenLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a prefix in one layer; an update returns a longer copy and keeps none."""

    def __init__(self, keys: "torch.Tensor", values: "torch.Tensor") -> None:
        """Take what the prefix has."""
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: "torch.Tensor", value_states: "torch.Tensor", *_: Any, **__: Any
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Return the prefix with the states after it."""
        keys = torch.cat([self.keys, key_states], dim=-2)
        return keys, torch.cat([self.values, value_states], dim=-2)


def enable_recomputing(model: Any) -> None:
    """Let every layer of `model` forget what it computed, and compute it again for the gradient.

    Raises:
        InvalidInputError: the model has no such layers.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers or not model.supports_gradient_checkpointing:
        raise InvalidInputError(
            f"preparing {type(model).__name__} for gradient checkpointing",
            expected="layers that transformers can run again in the backward pass",
            found="none",
            next_step="set gradient_checkpointing: false in the recipe, and save memory by "
            "micro_batch_size",
        )
    # Nothing here is random, so there is no generator to put back before a layer runs again.
    model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    model.disable_input_require_grads()  # for checkpoints that reenter; here it is work for nothing
    for layer in layers:
        layer.training = True  # it alone: what is in it stays as it answers, without dropout
        layer._can_checkpoint_with_cache = True  # one that `freeze_cache` made


def disable_recomputing(model: Any) -> None:
    """Let layers keep what they compute, and write to caches, again."""
    model.activation_checkpointing_disable()
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.training = layer._can_checkpoint_with_cache = False


def freeze_cache(batch: PaddedBatch) -> PaddedBatch:
    """Return the batch with a cache that is read and never written; None where it is empty."""
    layers = [FrozenLayer(layer.keys, layer.values) for layer in batch.cache.layers]
    return replace(batch, cache=Cache(layers=layers) if layers else None)
