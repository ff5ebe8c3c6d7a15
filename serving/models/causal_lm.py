"""A frozen causal language model as the student side uses it: load, read a prefix, decode.

Training, scoring and serving read prompts through these functions, so a prefix's key/value states
are the same everywhere. torch and transformers are imported inside functions: importing this module
is cheap. Belongs here: loading, prefix states, padding, the decoding loop. Does not belong here:
adapters and queues (`local_student`), losses and optimizers (`assets.students`).
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.errors import InvalidInputError
from serving.hashing import content_hash, file_sha256

if TYPE_CHECKING:
    import torch

BASE_FILES = (
    "*.safetensors",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""The files that decide what a base model computes. Receipts and readmes do not count."""

GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes of transformers that do what `tokenizer.json` says and nothing else."""

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})


def hash_base_model(folder: Path) -> str:
    """Return the identity of a base model: a hash over its weights, config and tokenizer files.

    Raises:
        InvalidInputError: the folder holds no safetensors weights or no config.
    """
    files = {p.name: p for pattern in BASE_FILES for p in folder.glob(pattern)}
    if "config.json" not in files or not any(n.endswith(".safetensors") for n in files):
        raise InvalidInputError(
            f"hashing the base model in {folder}",
            expected="config.json and *.safetensors",
            found=str(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "no folder",
            next_step="prepare the model with `make setup`, or point at a transformers folder",
        )
    return content_hash({name: file_sha256(files[name]) for name in sorted(files)}, digits=64)


def resolve_dtype(name: str) -> "torch.dtype":
    """Return the dtype for `auto`, `bfloat16` or `float32`.

    `auto` is bfloat16 where the hardware multiplies it natively: emulated, float32 is faster.
    """
    import torch

    if name != "auto":
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    capabilities = torch.cpu.get_capabilities()
    native = any(capabilities.get(flag) for flag in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


def load_causal_lm(folder: Path, dtype: str = "auto") -> Any:
    """Return the model in `folder`: eval mode, no gradients, safetensors only, no network."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=resolve_dtype(dtype),
        attn_implementation="sdpa",
        local_files_only=True,
        use_safetensors=True,
    )
    model.requires_grad_(requires_grad=False)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(folder: Path) -> Any:
    """Return the fast tokenizer in `folder`, without network.

    Where `tokenizer.json` says everything, no torch is imported: a server whose students are
    compiled starts seconds sooner and holds 260 MB less.
    """
    if _is_whole_in_json(folder):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _is_whole_in_json(folder: Path) -> bool:
    """Say whether no class with rules of its own is named beside `tokenizer.json`."""
    if not (folder / "tokenizer.json").is_file():
        return False
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    return config.get("tokenizer_class") in GENERIC_TOKENIZERS and "auto_map" not in config


@dataclass(frozen=True, kw_only=True)
class PrefixStates:
    """Key and value states of one prefix, [layers, heads, tokens, head size]; None if empty."""

    keys: "torch.Tensor | None"
    values: "torch.Tensor | None"

    def __len__(self) -> int:
        """Return the number of prefix tokens."""
        return 0 if self.keys is None else int(self.keys.shape[2])

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return 0 if self.keys is None else 2 * self.keys.numel() * self.keys.element_size()


def read_prefix(model: Any, prefix_ids: Sequence[int]) -> PrefixStates:
    """Run the frozen model over a prefix and return its states."""
    import torch
    from transformers import DynamicCache

    if not prefix_ids:
        return PrefixStates(keys=None, values=None)
    cache: Any = DynamicCache()
    with torch.no_grad():
        ids = torch.tensor([list(prefix_ids)], device=model.device)
        model.get_decoder()(input_ids=ids, past_key_values=cache, use_cache=True)
        return PrefixStates(
            keys=torch.stack([layer.keys[0] for layer in cache.layers]),
            values=torch.stack([layer.values[0] for layer in cache.layers]),
        )


@dataclass(frozen=True, kw_only=True)
class PaddedBatch:
    """Inputs of one forward pass over suffixes after their prefixes."""

    input_ids: "torch.Tensor"
    mask: "torch.Tensor"
    """[batch, prefix + suffix] ones where a token is real."""
    position_ids: "torch.Tensor"
    cache: Any


def pad_batch(
    model: Any,
    prefixes: Sequence[PrefixStates],
    suffixes: Sequence[Sequence[int]],
    *,
    pad_side: str,
    room: int = 0,
) -> PaddedBatch:
    """Join prefix states (padded on the left) and suffix ids (on `pad_side`) into one batch.

    With `room`, the cache has buffers for so many tokens after the suffix, and allows no gradient.
    """
    import torch

    device = model.device
    before, after = max(map(len, prefixes)), max(map(len, suffixes))
    ids = torch.zeros(len(suffixes), after, dtype=torch.long)
    mask = torch.zeros(len(suffixes), before + after, dtype=torch.long)
    for row, (prefix, suffix) in enumerate(zip(prefixes, suffixes, strict=True)):
        start = after - len(suffix) if pad_side == "left" else 0
        ids[row, start : start + len(suffix)] = torch.tensor(list(suffix))
        mask[row, before - len(prefix) : before] = 1
        mask[row, before + start : before + start + len(suffix)] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, before:]
    return PaddedBatch(
        input_ids=ids.to(device),
        mask=mask.to(device),
        position_ids=positions.to(device),
        cache=_join(model, prefixes, before, after + room if room else 0),
    )


def run_decoder(model: Any, batch: PaddedBatch, *, grows: bool = True) -> "torch.Tensor":
    """Return the hidden states [batch, suffix, hidden] after the final norm.

    With `grows`, the cache holds the suffixes afterwards; else it must be one that only reads.
    """
    hidden: torch.Tensor = (
        model.get_decoder()(
            input_ids=batch.input_ids,
            attention_mask=batch.mask,
            position_ids=batch.position_ids,
            past_key_values=batch.cache,
            use_cache=grows,
        )
    ).last_hidden_state
    return hidden


def _join(model: Any, prefixes: Sequence[PrefixStates], longest: int, room: int) -> Any:
    """Return a cache of the prefixes side by side; `room` is for tokens after them."""
    from transformers import DynamicCache

    from serving.models.growing_cache import make_growing_cache

    layer_count = model.config.get_text_config().num_hidden_layers
    filled = [
        (row, p.keys, p.values)
        for row, p in enumerate(prefixes)
        if p.keys is not None and p.values is not None
    ]
    if not filled:
        return make_growing_cache(layer_count, room, None, 0) if room else DynamicCache()
    layers, heads, _, size = filled[0][1].shape
    joined = filled[0][1].new_zeros(2, layers, len(prefixes), heads, longest + room, size)
    for row, keys, values in filled:
        joined[0, :, row, :, longest - keys.shape[2] : longest] = keys
        joined[1, :, row, :, longest - keys.shape[2] : longest] = values
    if room:
        return make_growing_cache(layer_count, longest + room, joined, longest)
    return DynamicCache(list(zip(joined[0], joined[1], strict=True)))


@dataclass(kw_only=True)
class Generation:
    """What one row of a batch produced. `ids` ends with the stop token if there was one."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    """How much more probable each token was than the runner-up, in natural log."""
    first_token_at: float = 0.0
    """`time.perf_counter` when the first token was known."""
    finish_reason: str = "length"


def decode_greedily(
    model: Any,
    prefixes: Sequence[PrefixStates],
    suffixes: Sequence[Sequence[int]],
    *,
    max_tokens: Sequence[int],
    stop_ids: frozenset[int],
    is_abandoned: Callable[[int], bool] = lambda _row: False,
    on_token: Callable[[int, int], None] = lambda _row, _token: None,
) -> list[Generation]:
    """Continue every row with its most probable token until a stop token or its own `max_tokens`.

    Rows that finish, or that `is_abandoned` names, leave the batch at once, so no row pays for
    another's length. `on_token` is told the row and token of every step as it is made.
    """
    import torch

    results = [Generation() for _ in suffixes]
    rows = list(range(len(suffixes)))
    with torch.inference_mode():
        batch = pad_batch(model, prefixes, suffixes, pad_side="left", room=max(max_tokens))
        head = model.get_output_embeddings()
        while True:
            logits = head(run_decoder(model, batch)[:, -1]).float()
            tokens = logits.argmax(dim=-1)
            logprobs = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)
            best_two = logits.topk(2, dim=-1).values
            margins = best_two[:, 0] - best_two[:, 1]
            now = time.perf_counter()
            steps = zip(tokens.tolist(), logprobs.tolist(), margins.tolist(), strict=True)
            for row, step in zip(rows, steps, strict=True):
                append_step(results[row], step, now, stop_ids)
                on_token(row, step[0])
            keep = [
                i
                for i, row in enumerate(rows)
                if results[row].finish_reason != "stop"
                and len(results[row].ids) < max_tokens[row]
                and not is_abandoned(row)
            ]
            if not keep:
                return results
            batch = _advance(batch, tokens, keep)
            rows = [rows[i] for i in keep]


def append_step(
    result: Generation, step: tuple[int, float, float], now: float, stop_ids: frozenset[int]
) -> None:
    """Add a token with its logprob and margin to what a row produced."""
    token, logprob, margin = step
    result.first_token_at = result.first_token_at or now
    result.ids.append(token)
    result.logprobs.append(logprob)
    result.margins.append(margin)
    if token in stop_ids:
        result.finish_reason = "stop"


def _advance(batch: PaddedBatch, tokens: "torch.Tensor", keep: list[int]) -> PaddedBatch:
    import torch

    mask, positions = batch.mask, batch.position_ids[:, -1:]
    if len(keep) < len(tokens):
        chosen = torch.tensor(keep, device=tokens.device)
        batch.cache.batch_select_indices(chosen)
        mask, positions, tokens = mask[chosen], positions[chosen], tokens[chosen]
    return PaddedBatch(
        input_ids=tokens[:, None],
        mask=torch.cat([mask, mask.new_ones(len(keep), 1)], dim=1),
        position_ids=positions + 1,
        cache=batch.cache,
    )
