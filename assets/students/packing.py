"""Packing: examples one after the other in a row, without padding, none of which sees another.

Everything but attention looks at one token at a time, so only attention must know where an example
begins: it goes example by example, each over its own prefix and its own tokens, and positions start
anew. A block-diagonal mask over the whole row says the same, and pays for the square of the row.
Belongs here: who shares a row, the row's tensors, its forward pass. Does not belong here: the loss
(`steps`), padded batches (`serving.models.causal_lm`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253 - part of the loop; nothing that Dagster loads imports this

from assets.students.batches import Example
from serving.errors import InvalidInputError
from serving.models.causal_lm import PrefixStates

if TYPE_CHECKING:
    from torch import Tensor

IMPLEMENTATION = "understudy_packed"
"""The name under which transformers finds the attention of packed rows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedRow:
    """Examples one after the other. Each has `lengths` tokens after its prefix of `prefixes`."""

    input_ids: "Tensor"
    """[1, tokens]"""
    position_ids: "Tensor"
    lengths: tuple[int, ...]
    prefixes: tuple[PrefixStates, ...]
    masks: tuple["Tensor | None", ...]
    """[tokens, prefix + tokens] of an example, true where it looks; None without a prefix."""

    @property
    def starts(self) -> list[int]:
        """Where each example begins."""
        return [sum(self.lengths[:place]) for place in range(len(self.lengths))]


def plan_rows(examples: Sequence[Example], maximum_tokens: int) -> list[list[Example]]:
    """Return the examples in rows of at most so many tokens: the longest first, each where it fits.

    An example that is longer gets a row of its own: nothing is cut.
    """
    rows: list[list[Example]] = []
    room: list[int] = []
    for example in sorted(examples, key=lambda e: -e.trained_tokens):
        tokens = example.trained_tokens
        place = next((i for i, free in enumerate(room) if tokens <= free), None)
        if place is None:
            rows.append([example])
            room.append(maximum_tokens - tokens)
        else:
            rows[place].append(example)
            room[place] -= tokens
    return rows


def pack_row(
    examples: Sequence[Example],
    read_prefix: Callable[[tuple[int, ...]], PrefixStates],
    device: Any,
) -> PackedRow:
    """Return examples as one row, each with the states of its own prefix."""
    prefixes = tuple(read_prefix(example.prefix_ids) for example in examples)
    lengths = tuple(example.trained_tokens for example in examples)
    ids = [token for e in examples for token in (*e.suffix_ids, *e.answer_ids[:-1])]
    sizes = list(zip(map(len, prefixes), lengths, strict=True))
    positions = [before + j for before, length in sizes for j in range(length)]
    return PackedRow(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        lengths=lengths,
        prefixes=prefixes,
        masks=tuple(_look_back(before, length, device) for before, length in sizes),
    )


def run_packed(model: Any, row: PackedRow) -> "Tensor":
    """Return the hidden states [1, tokens, hidden] after the final norm."""
    hidden: Tensor = (
        model.get_decoder()(
            input_ids=row.input_ids,
            position_ids=row.position_ids,
            use_cache=False,
            packed_row=row,
        )
    ).last_hidden_state
    return hidden


def enable_packing(model: Any) -> None:
    """Let `model` attend example by example; it reads packed rows alone from then on.

    Raises:
        InvalidInputError: its attention is not full and causal in every layer, or cannot be chosen.
    """
    from transformers import AttentionInterface

    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    problems = [f"layers of {kind}" for kind in sorted(kinds)]
    if getattr(config, "sliding_window", None) is not None:
        problems.append(f"a sliding window of {config.sliding_window}")
    if not problems:
        AttentionInterface.register(IMPLEMENTATION, attend_by_example)
        model.set_attn_implementation(IMPLEMENTATION)
        if config._attn_implementation != IMPLEMENTATION:
            problems.append("attention that cannot be chosen")
    if problems:
        raise InvalidInputError(
            f"packing examples for {type(model).__name__}",
            expected="full causal attention in every layer, through transformers' interface",
            found="; ".join(problems),
            next_step="set packing: false in the recipe, which gives the same adapter",
        )


def disable_packing(model: Any) -> None:
    """Let `model` read batches again, as `load_causal_lm` made it."""
    model.set_attn_implementation("sdpa")


def attend_by_example(
    module: Any,
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    _: "Tensor | None",
    packed_row: PackedRow,
    **options: Any,
) -> tuple["Tensor", None]:
    """Attend within each example of a row: an attention function of transformers.

    Without a mask, torch takes the causal one and its fastest kernel.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    lengths = list(packed_row.lengths)
    parts = (torch.split(states, lengths, dim=2) for states in (query, key, value))
    found = []
    for q, k, v, prefix, mask in zip(*parts, packed_row.prefixes, packed_row.masks, strict=True):
        keys, values = k, v
        if prefix.keys is not None and prefix.values is not None:
            keys = torch.cat([prefix.keys[module.layer_idx][None], k], dim=2)
            values = torch.cat([prefix.values[module.layer_idx][None], v], dim=2)
        found.append(sdpa_attention_forward(module, q, keys, values, mask, **options)[0])
    return torch.cat(found, dim=1), None


def _look_back(before: int, length: int, device: Any) -> "Tensor | None":
    if not before:
        return None
    mask = torch.ones(length, before + length, dtype=torch.bool, device=device)
    return mask.tril(diagonal=before)[None, None]
