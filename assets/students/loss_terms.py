"""From the logits of some answer tokens to their loss, with the gradient written over the logits.

One log-sum-exp serves the hard and the soft term; one scalar per row times the softmax is the
gradient outside the teacher's ids, and those are overwritten. Rows are c answer tokens, V the
vocabulary, K the slots of a row. Belongs here: the formula. Does not belong here: the head's matrix
products and the chunks (`loss`).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch  # noqa: TID253 - the formula itself; nothing that Dagster loads imports this

from assets.students.loss_targets import GroupTargets, SoftTargets, is_real, take_rows

if TYPE_CHECKING:
    from torch import Tensor

GROUP_ROWS = 16  # rows whose tokens are labelled at once: three integers per row and vocabulary id


class Rows(NamedTuple):
    """The rows' targets. `weight` is already divided by the normaliser."""

    targets: "Tensor"
    soft: SoftTargets | GroupTargets
    alpha: "Tensor"
    weight: "Tensor"
    temperature: float

    def take(self, part: slice, dtype: torch.dtype) -> "Rows":
        """Return some of the rows, in the dtype that the loss computes in."""
        return Rows(
            self.targets[part],
            take_rows(self.soft, part, dtype),
            self.alpha[part].to(dtype),
            self.weight[part].to(dtype),
            self.temperature,
        )


def reduce_rows(logits: "Tensor", rows: Rows, *, wants_gradient: bool) -> "Tensor":
    """Return [loss, weighted CE, weighted T^2 KL] and overwrite `logits`.

    With `wants_gradient` they become the gradient of the loss, else nothing of use.
    """
    soft = rows.soft
    if isinstance(soft, SoftTargets):
        return _reduce_tokens(logits, rows, soft, wants_gradient=wants_gradient)
    rank = soft.order.argsort()
    total = torch.zeros(3, dtype=torch.float64, device=logits.device)
    for part in cut(len(logits), GROUP_ROWS):
        few = rows.take(part, logits.dtype)
        total += _reduce_groups(logits[part], few, rank, wants_gradient=wants_gradient)
    return total


def cut(count: int, size: int) -> Iterator[slice]:
    """Yield slices of at most `size` that cover `count`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _reduce_tokens(
    logits: "Tensor", rows: Rows, soft: SoftTargets, *, wants_gradient: bool
) -> "Tensor":
    """Reduce rows whose soft targets are tokens.

    The logits in S are taken out first, so one exponential pass over V gives the tail's exact mass
    (never as 1 - sum) and the softmax outside S; S itself is K entries per row.
    """
    realised, real = rows.targets[:, None], is_real(soft)
    target_logit = logits.gather(1, realised)
    has_soft, slots, anchor = _fill_padding(soft.ids, real, realised)
    inside = logits.gather(1, slots).masked_fill(~real, -torch.inf)
    taken_out = target_logit.masked_fill(has_soft, -torch.inf)
    logits.scatter_(1, slots, taken_out.expand_as(slots))

    peak = logits.amax(dim=-1)
    peak = torch.where(torch.isfinite(peak), peak, 0.0)  # every id is in S: the tail is empty
    outside = logits.sub_(peak[:, None]).exp_()
    outside_sum = outside.sum(dim=-1)
    tail = outside_sum.log() + peak
    lse = torch.logaddexp(tail, inside.logsumexp(dim=-1))
    hard = lse - target_logit[:, 0]
    kl, pull_inside, pull_tail = _coarse_kl(inside - lse[:, None], tail - lse, rows)
    plain, share = rows.weight * rows.alpha, rows.weight * (1 - rows.alpha)
    if wants_gradient:
        # q_v = outside * exp(peak - lse); q_v / q_tail = outside / outside_sum
        factor = plain * (peak - lse).exp()
        factor = factor + share * pull_tail / outside_sum.where(outside_sum > 0, 1.0)
        outside.mul_(factor[:, None])
        entries = plain[:, None] * (inside - lse[:, None]).exp() + share[:, None] * pull_inside
        padding = torch.where(has_soft, entries.gather(1, anchor), outside.gather(1, realised))
        outside.scatter_(1, slots, torch.where(real, entries, padding))
        outside.scatter_add_(1, realised, -plain[:, None])
    return _sum_up(plain * hard + share * kl, rows.weight * hard, rows.weight * kl)


def _fill_padding(
    ids: "Tensor", real: "Tensor", realised: "Tensor"
) -> tuple["Tensor", "Tensor", "Tensor"]:
    """Return which rows have a soft target, ids without padding, and a slot that is no padding.

    Padding repeats an id of its own row (the realised one where the row has none), so a scatter
    that gives repeated ids equal values needs no mask, and a GPU need not wait for one.
    """
    has_soft = real.any(dim=1, keepdim=True)
    anchor = real.int().argmax(dim=1, keepdim=True)
    filler = torch.where(has_soft, ids.gather(1, anchor), realised)
    return has_soft, torch.where(real, ids, filler), anchor


def _reduce_groups(
    logits: "Tensor", rows: Rows, rank: "Tensor", *, wants_gradient: bool
) -> "Tensor":
    """Reduce rows whose soft targets are groups: log q of a group is the LSE over its members.

    Every token carries the number of its group (K: the tail), so masses are one scatter and the
    gradient is each token's share q_v / q_group of its group's pull.
    """
    assert isinstance(rows.soft, GroupTargets)  # noqa: S101 - reduce_rows chose this by type
    realised = rows.targets[:, None]
    target_logit = logits.gather(1, realised)[:, 0]
    labels = _label_tokens(rows.soft, rank)
    peak = logits.amax(dim=-1)
    scaled = logits.sub_(peak[:, None]).exp_()
    tiny = torch.finfo(scaled.dtype).tiny
    mass = scaled.new_zeros(len(scaled), rows.soft.logp.shape[1] + 1)
    mass.scatter_add_(1, labels, scaled).clamp_(min=tiny)
    total = scaled.sum(dim=-1)
    hard = total.log() + peak - target_logit
    log_q = mass.log() - total.log()[:, None]
    kl, pull_inside, pull_tail = _coarse_kl(log_q[:, :-1], log_q[:, -1], rows)
    plain, share = rows.weight * rows.alpha, rows.weight * (1 - rows.alpha)
    if wants_gradient:
        pull = torch.cat([pull_inside, pull_tail[:, None]], dim=1)
        factor = (plain / total)[:, None] + share[:, None] * pull / mass
        scaled.mul_(factor.gather(1, labels))
        scaled.scatter_add_(1, realised, -plain[:, None])
    return _sum_up(plain * hard + share * kl, rows.weight * hard, rows.weight * kl)


def _label_tokens(groups: GroupTargets, rank: "Tensor") -> "Tensor":
    """Return the group of every token, [c, V]; K, the number of groups, is the tail."""
    tail = groups.logp.shape[1]
    steps = groups.low.new_zeros(len(groups.low), len(rank) + 1)
    away = torch.where(groups.low < groups.high, groups.group - tail, 0)
    steps.scatter_add_(1, groups.low, away).scatter_add_(1, groups.high, -away)
    sorted_labels = steps[:, :-1].cumsum(dim=1).add_(tail)
    return sorted_labels[:, rank]


def _coarse_kl(
    log_q: "Tensor", log_q_tail: "Tensor", rows: Rows
) -> tuple["Tensor", "Tensor", "Tensor"]:
    """Return T^2 KL over S and the tail, and its gradient T (q - p) for the slots and the tail.

    Both sides come coarsened at temperature 1 and are tempered here.
    """
    t = rows.temperature
    is_slot = is_real(rows.soft)
    has_soft = is_slot.any(dim=1, keepdim=True)
    # rows without a target: one certain bucket on both sides, KL 0
    is_tail = torch.isfinite(log_q_tail)[:, None] | ~has_soft
    real = torch.cat([is_slot, is_tail], dim=1)

    def temper(inside: "Tensor", tail: "Tensor") -> "Tensor":
        both = torch.cat([inside, tail[:, None]], dim=1) / t
        return both.where(has_soft, 0.0).masked_fill(~real, -torch.inf).log_softmax(dim=-1)

    log_p, log_q = temper(rows.soft.logp, rows.soft.tail_logp), temper(log_q, log_q_tail)
    p = log_p.exp()
    kl = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(dim=-1)
    pull = t * (log_q.exp() - p)
    return t * t * kl, pull[:, :-1], pull[:, -1]


def _sum_up(*parts: "Tensor") -> "Tensor":
    return torch.stack([part.sum(dtype=torch.float64) for part in parts])
