"""The distillation loss: cross-entropy and a coarsened, tempered KL in one pass over answer tokens.

Per token, S is the teacher's top ids and the realised token, and one bucket stands for the rest.
Both sides are coarsened at temperature 1, then tempered. The gradient is written out, so logits
exist for one chunk of tokens at a time and no gradient of the frozen head is computed. Shapes: N
answer tokens, D hidden size, V vocabulary, K top ids. Belongs here: the loss of a batch, its chunks
and the head's products. Does not belong here: the formula of a row (`loss_terms`), refusals
(`loss_guards`), choosing alpha, weights and soft targets (`batches`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253 - defines an autograd.Function; nothing Dagster loads imports this

from assets.students.loss_guards import (
    DistillationLossError,
    refuse_batch,
    refuse_transformed_logits,
    refuse_unsupported_model,
)
from assets.students.loss_targets import GroupTargets, SoftTargets, is_real, make_no_targets
from assets.students.loss_terms import Rows, cut, reduce_rows
from serving.models.causal_lm import resolve_dtype

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CHUNK_TOKENS",
    "DistillationLossError",
    "GroupTargets",
    "Loss",
    "SoftTargets",
    "compute_logits",
    "distillation_loss",
    "refuse_transformed_logits",
    "refuse_unsupported_model",
]

CHUNK_TOKENS = 128  # 24 MiB of float32 logits at a 49k vocabulary; fewer make the products slow
TILE_BYTES = 2 * 1024**2  # of a head that is widened to float32 piece by piece


@dataclass(frozen=True, kw_only=True)
class Loss:
    """`total` is to be differentiated. The sums are weighted and not divided by the normaliser."""

    total: "Tensor"
    hard_sum: float
    soft_sum: float
    weight_sum: float
    soft_weight_sum: float


def distillation_loss(
    hidden: "Tensor",
    head_weight: "Tensor",
    targets: "Tensor",
    *,
    soft: SoftTargets | GroupTargets | None = None,
    alpha: "Tensor",
    weight: "Tensor",
    normaliser: float,
    temperature: float = 2.0,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Loss:
    """Return (1/Z) sum over tokens of w [alpha CE + (1 - alpha) T^2 KL].

    Args:
        hidden: [N, D] states that predict the answer tokens, after the final norm.
        head_weight: [V, D] of the frozen output head. Rows that no token has are part of the
            distribution too, as they are for whoever samples from the model or scores with it.
        targets: [N] realised ids.
        soft: teacher distributions over tokens, or over groups of tokens where the teacher's
            tokenizer is another one; None is hard only (K = 0).
        alpha: [N] share of the hard term; must be 1 where a row has no soft target.
        weight: [N] weight of each token.
        normaliser: Z, the sum of weights over the whole step: all micro-batches, all ranks.
        temperature: T.
        chunk_tokens: tokens whose logits exist at once.

    Raises:
        DistillationLossError: empty answers, ids past the vocabulary, a head that wants a gradient,
            a normaliser that is not positive, alpha below 1 without a soft target.
    """
    if soft is None:
        soft = make_no_targets(targets)
    refuse_batch(
        hidden, head_weight, targets, soft, alpha, weight,
        normaliser=normaliser, temperature=temperature,
    )  # fmt: skip
    rows = Rows(targets, soft, alpha, weight / normaliser, temperature)
    total, sums = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden, head_weight, rows, chunk_tokens
    )
    has_soft = is_real(soft).any(dim=1)
    weights = torch.stack([weight.sum(), (weight * has_soft).sum()])
    numbers = torch.cat([sums * normaliser, weights.to(sums.dtype)]).tolist()
    names = ("hard_sum", "soft_sum", "weight_sum", "soft_weight_sum")
    return Loss(total=total, **dict(zip(names, numbers, strict=True)))


class _ChunkedLoss(torch.autograd.Function):
    """Computes the loss and, in the same pass, its gradient with respect to `hidden`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: "Tensor", head: "Tensor", rows: Rows, chunk_tokens: int
    ) -> tuple["Tensor", "Tensor"]:
        wants_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wants_gradient else None
        buffer = _make_buffer(hidden, head, min(chunk_tokens, len(hidden)))
        sums = torch.zeros(3, dtype=torch.float64, device=hidden.device)
        for part in cut(len(hidden), chunk_tokens):
            logits = buffer[: part.stop - part.start]
            _project(hidden[part], head, out=logits)
            chunk = rows.take(part, buffer.dtype)
            sums += reduce_rows(logits, chunk, wants_gradient=wants_gradient)
            if gradient is not None:
                _pull_back(logits, head, out=gradient[part])
        ctx.save_for_backward(gradient)
        total, parts = sums[0].to(buffer.dtype), sums[1:].clone()
        ctx.mark_non_differentiable(parts)
        return total, parts

    @staticmethod
    def backward(ctx: Any, grad_total: "Tensor", _: "Tensor") -> tuple["Tensor | None", ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_total.to(gradient.dtype), None, None, None


def compute_logits(hidden: "Tensor", head: "Tensor") -> "Tensor":
    """Return the logits that the loss computes of a few states: all of them at once."""
    logits = _make_buffer(hidden, head, len(hidden))
    _project(hidden, head, out=logits)
    return logits


def _make_buffer(hidden: "Tensor", head: "Tensor", count: int) -> "Tensor":
    """Return room for the logits of `count` tokens, in the dtype that the loss computes in."""
    precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    return hidden.new_empty(count, len(head), dtype=precise)


def _project(hidden: "Tensor", head: "Tensor", *, out: "Tensor") -> None:
    """Write `hidden @ head.T` into `out`, which may be of a wider dtype."""
    if hidden.dtype == out.dtype:
        torch.mm(hidden, head.T, out=out)
    elif _is_emulated(hidden):
        wide = hidden.to(out.dtype)
        for tile in _cut_head(head):
            torch.mm(wide, head[tile].to(out.dtype).T, out=out[:, tile])
    else:
        out.copy_(hidden @ head.T)


def _pull_back(gradient: "Tensor", head: "Tensor", *, out: "Tensor") -> None:
    """Write `gradient @ head` into `out`: from the gradient of logits to that of hidden states."""
    if gradient.dtype == out.dtype:
        torch.mm(gradient, head, out=out)
    elif _is_emulated(head):
        wide = gradient.new_zeros(out.shape)
        for tile in _cut_head(head):
            wide.addmm_(gradient[:, tile], head[tile].to(gradient.dtype))
        out.copy_(wide)
    else:
        torch.mm(gradient.to(head.dtype), head, out=out)


def _cut_head(head: "Tensor") -> Iterator[slice]:
    return cut(len(head), max(1, TILE_BYTES // (4 * head.shape[1])))


def _is_emulated(tensor: "Tensor") -> bool:
    """Return whether products in this dtype take several times as long as in float32 here."""
    if tensor.device.type != "cpu":
        return False
    return tensor.dtype == torch.float16 or resolve_dtype("auto") != torch.bfloat16
