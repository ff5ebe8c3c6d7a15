"""The distillation loss: cross-entropy and a coarsened, tempered KL in one pass over answer tokens.

Per token, S is the teacher's top ids and the realised token, and one bucket stands for the rest.
Both sides are coarsened at temperature 1, then tempered. The gradient is written out, so logits
exist for one chunk of tokens at a time and no gradient of the frozen head is computed. Shapes: N
answer tokens, D hidden size, V vocabulary, K top ids. Belongs here: the loss and its guards. Does
not belong here: choosing alpha, weights and soft targets (`batches`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch  # noqa: TID253 - defines an autograd.Function; nothing Dagster loads imports this

from serving.errors import InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_TOKENS = 256  # 50 MB of float32 logits at a 49k vocabulary; smaller GEMMs run slower


class DistillationLossError(InvalidInputError):
    """The model or the batch is one this loss would be wrong for."""


class SoftTargets(NamedTuple):
    """The teacher's distribution per answer token, raw at temperature 1.

    `ids` [N, K] holds the top ids and the realised token, distinct, padded with -1; `logp` [N, K]
    their logprobs (ignored where padded); `tail_logp` [N] the log of the mass outside them.
    """

    ids: "Tensor"
    logp: "Tensor"
    tail_logp: "Tensor"


class GroupTargets(NamedTuple):
    """A teacher's distribution over groups of student tokens, raw at temperature 1.

    Groups are made of M intervals of the vocabulary sorted by bytes: `low` and `high` [N, M]
    (half-open; equal where padded), `group` [N, M] which of K groups each belongs to. `logp` [N, K]
    are the groups' logprobs, -inf where padded; `tail_logp` [N] the log of the mass outside all
    groups. `order` [V] is the id at each sorted position.
    """

    low: "Tensor"
    high: "Tensor"
    group: "Tensor"
    logp: "Tensor"
    tail_logp: "Tensor"
    order: "Tensor"


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
    vocabulary_size: int | None = None,
) -> Loss:
    """Return (1/Z) sum over tokens of w [alpha CE + (1 - alpha) T^2 KL].

    Args:
        hidden: [N, D] states that predict the answer tokens, after the final norm.
        head_weight: [V, D] of the frozen output head.
        targets: [N] realised ids.
        soft: teacher distributions over tokens, or over groups of tokens where the teacher's
            tokenizer is another one; None is hard only (K = 0).
        alpha: [N] share of the hard term; must be 1 where a row has no soft target.
        weight: [N] weight of each token.
        normaliser: Z, the sum of weights over the whole step: all micro-batches, all ranks.
        temperature: T.
        chunk_tokens: tokens whose logits exist at once.
        vocabulary_size: rows of the head that are real; the rest is padding.

    Raises:
        DistillationLossError: empty answers, ids past the vocabulary, a head that wants a gradient,
            a normaliser that is not positive, alpha below 1 without a soft target.
    """
    size = head_weight.shape[0] if vocabulary_size is None else vocabulary_size
    _check_batch(hidden, head_weight, targets, soft, alpha, normaliser, size)
    if soft is None:
        soft = SoftTargets(
            targets.new_zeros(len(targets), 0), alpha.new_zeros(len(targets), 0), alpha * 0
        )
    total, hard_sum, soft_sum = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden,
        head_weight[:size],
        targets,
        soft,
        alpha,
        weight / normaliser,
        temperature,
        chunk_tokens,
    )
    has_soft = _is_real(soft).any(dim=1)
    return Loss(
        total=total,
        hard_sum=hard_sum.item() * normaliser,
        soft_sum=soft_sum.item() * normaliser,
        weight_sum=weight.sum().item(),
        soft_weight_sum=weight[has_soft].sum().item(),
    )


def refuse_unsupported_model(model: Any) -> None:
    """Refuse models whose logits are not `hidden @ head.T`, or whose head would need a gradient.

    Raises:
        DistillationLossError: names the attribute.
    """
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    transforms = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
    problems = [
        f"{name} = {getattr(config, name)}"
        for name in transforms
        if getattr(config, name, None) not in (None, 1, 1.0)
    ]
    if head is None:
        problems.append("no output head")
    elif getattr(head, "bias", None) is not None:
        problems.append("a head with bias")
    elif head.weight.requires_grad:
        problems.append("a head that is trained (embeddings are tied to it, or it is a target)")
    if hasattr(head, "lora_A") or hasattr(model.get_input_embeddings(), "lora_embedding_A"):
        problems.append("LoRA on the head or on the embeddings")
    if problems:
        raise DistillationLossError(
            f"preparing {type(model).__name__} for distillation",
            expected="a frozen head without bias, and logits without capping or scaling",
            found="; ".join(problems),
            next_step="take head and embeddings out of target_modules, or another base model",
        )


class _ChunkedLoss(torch.autograd.Function):
    """Computes the loss and, in the same pass, its gradient with respect to `hidden`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: "Tensor",
        head: "Tensor",
        targets: "Tensor",
        soft: SoftTargets | GroupTargets,
        alpha: "Tensor",
        weight: "Tensor",
        temperature: float,
        chunk_tokens: int,
    ) -> tuple["Tensor", "Tensor", "Tensor"]:
        wants_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wants_gradient else None
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        sums = torch.zeros(3, dtype=torch.float64, device=hidden.device)
        for start in range(0, len(hidden), chunk_tokens):
            part = slice(start, start + chunk_tokens)
            logits = (hidden[part] @ head.T).to(precise)
            chunk = _Chunk(
                targets[part],
                _take_rows(soft, part, precise),
                alpha[part].to(precise),
                weight[part].to(precise),
                temperature,
            )
            reduce = _reduce_groups if isinstance(soft, GroupTargets) else _reduce_tokens
            sums += reduce(logits, chunk, wants_gradient=wants_gradient)
            if gradient is not None:
                gradient[part] = logits.to(head.dtype) @ head
        ctx.save_for_backward(gradient)
        hard_sum, soft_sum = sums[1].clone(), sums[2].clone()
        ctx.mark_non_differentiable(hard_sum, soft_sum)
        return sums[0].to(precise), hard_sum, soft_sum

    @staticmethod
    def backward(ctx: Any, grad_total: "Tensor", *_: "Tensor") -> tuple["Tensor | None", ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_total.to(gradient.dtype), *[None] * 7)


class _Chunk(NamedTuple):
    targets: "Tensor"
    soft: Any
    alpha: "Tensor"
    weight: "Tensor"
    temperature: float


def _take_rows(
    soft: SoftTargets | GroupTargets, part: slice, dtype: torch.dtype
) -> SoftTargets | GroupTargets:
    precise = {"logp": soft.logp[part].to(dtype), "tail_logp": soft.tail_logp[part].to(dtype)}
    if isinstance(soft, SoftTargets):
        return soft._replace(ids=soft.ids[part], **precise)
    return soft._replace(
        low=soft.low[part], high=soft.high[part], group=soft.group[part], **precise
    )


def _is_real(soft: SoftTargets | GroupTargets) -> "Tensor":
    """Return which slots hold a token or a group, [N, K]; the others are padding."""
    return soft.ids >= 0 if isinstance(soft, SoftTargets) else torch.isfinite(soft.logp)


def _reduce_tokens(logits: "Tensor", chunk: _Chunk, *, wants_gradient: bool) -> "Tensor":
    """Return [loss, weighted CE, weighted T^2 KL] and overwrite `logits` with their gradient.

    The logits in S are taken out first, so one exponential pass over V gives the tail's exact mass
    (never as 1 - sum) and the softmax outside S; S itself is K entries per row.
    """
    realised = chunk.targets[:, None]
    target_logit = logits.gather(1, realised)[:, 0]
    is_real = _is_real(chunk.soft)
    slots = chunk.soft.ids.clamp(min=0)
    inside = logits.gather(1, slots).masked_fill(~is_real, -torch.inf)
    rows = torch.arange(len(logits), device=logits.device)[:, None].expand_as(slots)[is_real]
    logits[rows, slots[is_real]] = -torch.inf

    peak = logits.amax(dim=-1)
    peak = torch.where(torch.isfinite(peak), peak, 0.0)  # every id is in S: the tail is empty
    outside = logits.sub_(peak[:, None]).exp_()
    outside_sum = outside.sum(dim=-1)
    tail = outside_sum.log() + peak
    lse = torch.logaddexp(tail, inside.logsumexp(dim=-1)) if slots.shape[1] else tail
    hard = lse - target_logit
    soft, pull_inside, pull_tail = _coarse_kl(inside - lse[:, None], tail - lse, chunk)
    share = chunk.weight * (1 - chunk.alpha)
    loss = chunk.weight * chunk.alpha * hard + share * soft
    if wants_gradient:
        plain = chunk.weight * chunk.alpha
        # q_v = outside * exp(peak - lse); q_v / q_tail = outside / outside_sum
        factor = plain * (peak - lse).exp()
        factor = factor + share * pull_tail / outside_sum.where(outside_sum > 0, 1.0)
        outside.mul_(factor[:, None])
        entries = plain[:, None] * (inside - lse[:, None]).exp() + share[:, None] * pull_inside
        outside[rows, slots[is_real]] = entries[is_real]
        outside.scatter_add_(1, realised, -plain[:, None])
    return torch.stack(
        [part.sum(dtype=torch.float64) for part in (loss, chunk.weight * hard, chunk.weight * soft)]
    )


def _reduce_groups(logits: "Tensor", chunk: _Chunk, *, wants_gradient: bool) -> "Tensor":
    """Do the same over groups of tokens: log q of a group is the LSE over its members.

    Every token carries the number of its group (K: the tail), so masses are one scatter and the
    gradient is each token's share q_v / q_group of its group's pull.
    """
    realised = chunk.targets[:, None]
    target_logit = logits.gather(1, realised)[:, 0]
    labels = _label_tokens(chunk.soft, logits.shape[1])
    peak = logits.amax(dim=-1)
    scaled = logits.sub_(peak[:, None]).exp_()
    tiny = torch.finfo(scaled.dtype).tiny
    mass = scaled.new_zeros(len(scaled), chunk.soft.logp.shape[1] + 1)
    mass.scatter_add_(1, labels, scaled).clamp_(min=tiny)
    total = scaled.sum(dim=-1)
    hard = total.log() + peak - target_logit
    log_q = mass.log() - total.log()[:, None]
    soft, pull_inside, pull_tail = _coarse_kl(log_q[:, :-1], log_q[:, -1], chunk)
    share = chunk.weight * (1 - chunk.alpha)
    plain = chunk.weight * chunk.alpha
    if wants_gradient:
        pull = torch.cat([pull_inside, pull_tail[:, None]], dim=1)
        factor = (plain / total)[:, None] + share[:, None] * pull / mass
        scaled.mul_(factor.gather(1, labels))
        scaled.scatter_add_(1, realised, -plain[:, None])
    parts = (plain * hard + share * soft, chunk.weight * hard, chunk.weight * soft)
    return torch.stack([part.sum(dtype=torch.float64) for part in parts])


def _label_tokens(groups: GroupTargets, vocabulary_size: int) -> "Tensor":
    """Return the group of every token, [N, V]; K, the number of groups, is the tail."""
    tail = groups.logp.shape[1]
    steps = groups.low.new_zeros(len(groups.low), vocabulary_size + 1)
    away = torch.where(groups.low < groups.high, groups.group - tail, 0)
    steps.scatter_add_(1, groups.low, away).scatter_add_(1, groups.high, -away)
    sorted_labels = steps[:, :-1].cumsum(dim=1).add_(tail)
    return sorted_labels[:, groups.order.argsort()]


def _coarse_kl(
    log_q: "Tensor", log_q_tail: "Tensor", chunk: _Chunk
) -> tuple["Tensor", "Tensor", "Tensor"]:
    """Return T^2 KL over S and the tail, and its gradient T (q - p) for the slots and the tail."""
    t = chunk.temperature
    is_real = _is_real(chunk.soft)
    real = torch.cat([is_real, torch.isfinite(log_q_tail)[:, None]], dim=1)
    log_p = torch.cat([chunk.soft.logp, chunk.soft.tail_logp[:, None]], dim=1) / t
    log_q_all = torch.cat([log_q, log_q_tail[:, None]], dim=1) / t
    has_soft = is_real.any(dim=1)
    real[:, -1] |= ~has_soft  # rows without a target: one certain bucket on both sides, KL 0
    log_p = log_p.where(has_soft[:, None], 0.0).masked_fill(~real, -torch.inf).log_softmax(dim=-1)
    log_q_all = log_q_all.where(has_soft[:, None], 0.0).masked_fill(~real, -torch.inf)
    log_q_all = log_q_all.log_softmax(dim=-1)
    p = log_p.exp()
    kl = torch.where(p > 0, p * (log_p - log_q_all), 0.0).sum(dim=-1)
    pull = t * (log_q_all.exp() - p)
    return t * t * kl, pull[:, :-1], pull[:, -1]


def _check_batch(
    hidden: "Tensor",
    head_weight: "Tensor",
    targets: "Tensor",
    soft: SoftTargets | GroupTargets | None,
    alpha: "Tensor",
    normaliser: float,
    vocabulary_size: int,
) -> None:
    problem = None
    if not len(targets) or len(hidden) != len(targets):
        problem = (
            "one hidden state per answer token, at least one",
            f"{len(hidden)} states for {len(targets)} tokens",
        )
    elif head_weight.requires_grad:
        problem = ("a frozen head", "a head that requires a gradient, which is not computed here")
    elif not normaliser > 0:
        problem = ("a positive normaliser", str(normaliser))
    elif int(targets.min()) < 0 or int(targets.max()) >= vocabulary_size:
        problem = (f"ids in 0..{vocabulary_size - 1}", f"{targets.min()}..{targets.max()}")
    elif isinstance(soft, GroupTargets) and len(soft.order) != vocabulary_size:
        problem = (f"groups over {vocabulary_size} tokens", f"over {len(soft.order)}")
    elif isinstance(soft, SoftTargets) and _largest(soft.ids) >= vocabulary_size:
        problem = (f"soft ids below {vocabulary_size}", str(int(soft.ids.max())))
    else:
        has_soft = _is_real(soft).any(dim=1) if soft is not None else torch.zeros_like(alpha) > 0
        if bool((alpha[~has_soft] < 1).any()):
            problem = ("alpha 1 where a token has no soft target", "alpha below 1")
    if problem is not None:
        raise DistillationLossError(
            "computing the distillation loss",
            expected=problem[0],
            found=problem[1],
            next_step="check the training set and the logprobs this batch was made from",
        )


def _largest(ids: "Tensor") -> int:
    return int(ids.max()) if ids.numel() else -1
