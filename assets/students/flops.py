"""The least floating-point work a training step can do: the floor that a measured time is held to.

Counted are matrix products, a multiplication and an addition each, of real tokens only: padding and
everything elementwise is overhead. The frozen base takes no gradient of its weights, and states of
a prefix take none at all. Belongs here: counting. Does not belong here: timing (`bench`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes that decide how much work a token is.

    `backbone_parameters` are the frozen weights of the linear layers: no embedding, no head.
    `attention_width` is heads times head size: what one query meets one key with.
    """

    backbone_parameters: int
    lora_parameters: int
    layers: int
    attention_width: int
    hidden_size: int
    vocabulary_size: int


@dataclass(frozen=True, kw_only=True)
class RowShape:
    """One example's tokens: `prefix` from the cache, `trained` through the adapter, `answer`."""

    prefix: int
    trained: int
    answer: int


def measure_shape(model: Any) -> ModelShape:
    """Return the shape of a decoder, with LoRA layers in it or not."""
    import torch

    config = model.config.get_text_config()
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    frozen = trained = 0
    for name, module in model.get_decoder().named_modules():
        if isinstance(module, torch.nn.Linear):
            size = module.in_features * module.out_features  # packed weights hold fewer numbers
            if ".lora_" in name:
                trained += size
            else:
                frozen += size
    return ModelShape(
        backbone_parameters=frozen,
        lora_parameters=trained,
        layers=config.num_hidden_layers,
        attention_width=heads * head_size,
        hidden_size=config.hidden_size,
        vocabulary_size=model.get_output_embeddings().weight.shape[0],
    )


def count_step_flops(
    shape: ModelShape,
    rows: Iterable[RowShape],
    *,
    prefixes_read: Iterable[int] = (),
    is_recomputed: bool = False,
) -> int:
    """Return the floor of a step over `rows`.

    Args:
        shape: of the model.
        rows: the examples of the step.
        prefixes_read: lengths of the prefixes that the frozen base read for it.
        is_recomputed: whether gradient checkpointing runs the backbone forward twice.
    """
    trained = sum(count_row_flops(shape, row, is_recomputed=is_recomputed) for row in rows)
    return trained + sum(count_prefix_flops(shape, length) for length in prefixes_read)


def count_row_flops(shape: ModelShape, row: RowShape, *, is_recomputed: bool = False) -> int:
    """Return the floor of training one example: forward, and backward through the activations.

    A query meets a key in 2 products forward and 5 backward (the scores once more, and the
    gradients of probabilities, queries, keys and values); keys and values of a prefix need no
    gradient, which leaves 3. Causal attention meets half of the square.
    """
    s = row.trained
    backbone = (6 if is_recomputed else 4) * shape.backbone_parameters * s
    adapter = 6 * shape.lora_parameters * s
    attention = shape.layers * shape.attention_width * (7 * s * s + 10 * s * row.prefix)
    head = 4 * row.answer * shape.vocabulary_size * shape.hidden_size
    return backbone + adapter + attention + head


def count_prefix_flops(shape: ModelShape, length: int) -> int:
    """Return the floor of the frozen base reading a prefix: forward only, without the head."""
    attention = 2 * shape.layers * shape.attention_width * length * length
    return 2 * shape.backbone_parameters * length + attention


def compute_mfu_ratio(flops: float, *, seconds: float, peak_flops_per_second: float) -> float:
    """Return the share of the machine's measured matrix-product speed that reached the floor."""
    return flops / peak_flops_per_second / seconds
