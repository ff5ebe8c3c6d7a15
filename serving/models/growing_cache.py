"""A key/value cache for decoding that writes in place instead of copying itself for every token.

transformers' dynamic cache concatenates each new token to all earlier ones: half of a batch's
decoding time on a CPU. In-place writes do not go with gradients, so training keeps the dynamic one.
Imports torch and transformers: import it inside functions. Belongs here: the cache alone.
"""

from typing import Any

import torch  # noqa: TID253 - defines a cache layer; imported by `causal_lm` inside functions
from transformers.cache_utils import (  # noqa: TID253
    Cache,
    DynamicLayer,
)


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, in buffers with room for the tokens to come.

    Args:
        room: tokens the buffers hold; they double when it is not enough.
        buffers: keys and values [batch, heads, room, head size] whose first `length` are filled.
        length: how many tokens are filled.
    """

    def __init__(
        self,
        room: int,
        buffers: "tuple[torch.Tensor, torch.Tensor] | None" = None,
        length: int = 0,
    ) -> None:
        """Take filled buffers, or allocate them at the first update."""
        super().__init__()
        self._room = room
        self._buffers = buffers
        self._length = length
        self._show()

    def update(
        self, key_states: "torch.Tensor", value_states: "torch.Tensor", *_: Any, **__: Any
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Append states and return all of them."""
        end = self._length + key_states.shape[-2]
        keys, values = self._make_room(key_states, end)
        keys[:, :, self._length : end] = key_states
        values[:, :, self._length : end] = value_states
        self._length = end
        self._show()
        return keys[:, :, :end], values[:, :, :end]

    def batch_select_indices(self, indices: "torch.Tensor") -> None:
        """Keep only these rows of the batch."""
        if self._buffers is not None:
            keys, values = self._buffers
            self._buffers = (keys[indices], values[indices])
            self._show()

    def _make_room(self, like: "torch.Tensor", end: int) -> "tuple[torch.Tensor, torch.Tensor]":
        if self._buffers is None or end > self._buffers[0].shape[2]:
            self._room = max(self._room, end if self._buffers is None else 2 * end)
            batch, heads, _, size = like.shape
            larger = like.new_zeros(2, batch, heads, self._room, size)
            if self._buffers is not None:
                for new, old in zip(larger, self._buffers, strict=True):
                    new[:, :, : self._length] = old[:, :, : self._length]
            self._buffers = (larger[0], larger[1])
        return self._buffers

    def _show(self) -> None:
        """Point the names that transformers reads at the filled part."""
        if self._buffers is not None:
            self.keys, self.values = (b[:, :, : self._length] for b in self._buffers)
            self.dtype, self.device = self.keys.dtype, self.keys.device
            self.is_initialized = True


def make_growing_cache(
    layer_count: int, room: int, joined: "torch.Tensor | None", length: int
) -> Any:
    """Return a cache; `joined` are keys and values [layers, batch, heads, room, head size]."""
    if joined is None:
        return Cache(layers=[GrowingLayer(room) for _ in range(layer_count)])
    pairs = zip(joined[0], joined[1], strict=True)
    return Cache(layers=[GrowingLayer(room, pair, length) for pair in pairs])
