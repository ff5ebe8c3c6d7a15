"""Distillation losses by arm: ours, peers by their libraries, peers by their published formulas.

An arm takes a case and the number of tokens of the whole step, and returns a loss to differentiate
with respect to `case.hidden`. Arms marked `library` call the installed package. Arms marked
`formula` were written for this bench from the definition in the peer's source, because that peer
does not install beside our pins (axolotl pins another torch; DistillKit is on no index) or offers
the loss only inside a trainer. An arm without a hard term computes the soft one alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from assets.students.loss import SoftTargets, distillation_loss


@dataclass(frozen=True, kw_only=True)
class KdCase:
    """Answer tokens, and what a teacher says of them.

    `ids` and `logp` [N, K] are the teacher's top ids and raw logprobs, `tail_logp` [N] the log of
    the mass outside them and the realised token, `y_logp` [N] of the realised token itself.
    `tempered_logp` [N, K] are logprobs of the same ids after the teacher's whole distribution was
    tempered. `teacher_hidden` times `head` are the teacher's logits, for arms that need them all.
    """

    hidden: Tensor
    head: Tensor
    targets: Tensor
    ids: Tensor
    logp: Tensor
    y_logp: Tensor
    tail_logp: Tensor
    tempered_logp: Tensor
    teacher_hidden: Tensor
    alpha: float
    temperature: float


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A loss, where it comes from, and what it holds in memory or needs of a teacher."""

    run: Callable[[KdCase, int], Tensor]
    origin: str
    note: str


def run_ours(case: KdCase, tokens: int) -> Tensor:
    """Fused, chunked, analytic; coarsened, then tempered."""
    is_inside = (case.ids == case.targets[:, None]).any(dim=1)
    extra = torch.where(is_inside, -1, case.targets)
    soft = SoftTargets(
        torch.cat([case.ids, extra[:, None]], dim=1),
        torch.cat([case.logp, case.y_logp[:, None]], dim=1),
        case.tail_logp,
    )
    ones = torch.ones(len(case.targets), device=case.hidden.device)
    loss = distillation_loss(
        case.hidden, case.head, case.targets, soft=soft, alpha=ones * case.alpha, weight=ones,
        normaliser=float(tokens), temperature=case.temperature,
    )  # fmt: skip
    return loss.total


def run_naive(case: KdCase, _tokens: int) -> Tensor:
    """Gather log-softmax over V, divide by T, compare with the renormalised top K; mean of rows."""
    t = case.temperature
    log_q = functional.log_softmax(case.hidden @ case.head.T, dim=-1)
    hard = functional.nll_loss(log_q, case.targets)
    log_p = functional.log_softmax(case.logp / t, dim=-1)
    kl = (log_p.exp() * (log_p - log_q.gather(1, case.ids) / t)).sum(dim=1).mean()
    return case.alpha * hard + (1 - case.alpha) * t * t * kl


def run_distillkit(case: KdCase, tokens: int) -> Tensor:
    """Student tempered over V, teacher tempered and renormalised over K (its default)."""
    return _run_distillkit(case, tokens, has_tail=False)


def run_distillkit_tail(case: KdCase, tokens: int) -> Tensor:
    """The same with its tail: the teacher's mass outside K is tempered as if it were one token."""
    return _run_distillkit(case, tokens, has_tail=True)


def _run_distillkit(case: KdCase, tokens: int, *, has_tail: bool) -> Tensor:
    t = case.temperature
    logits = case.hidden @ case.head.T
    hard = functional.cross_entropy(logits.float(), case.targets, reduction="sum")
    tempered = logits * (1 / t)
    lse = tempered.float().logsumexp(dim=-1, keepdim=True)
    log_q = tempered.gather(1, case.ids).float() - lse
    mass = (case.logp / t).exp().sum(dim=1, keepdim=True)
    if has_tail:
        mass = mass + (1 - case.logp.exp().sum(dim=1, keepdim=True)).clamp(0, 1) ** (1 / t)
    log_p = case.logp / t - mass.log()
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=1)
    if has_tail:
        rest_p, rest_q = _log_rest(log_p), _log_rest(log_q)
        kl = kl + rest_p.exp() * (rest_p - rest_q)
    return (case.alpha * hard + (1 - case.alpha) * t * t * kl.sum()) / tokens


def _log_rest(inside: Tensor) -> Tensor:
    """Return log(1 - sum of exp): what a tail is when it is taken as a difference."""
    return torch.log(-torch.expm1(inside.logsumexp(dim=1).clamp(max=-1e-6)))


def run_axolotl(case: KdCase, tokens: int) -> Tensor:
    """Student tempered over V, teacher renormalised over K, tempered, renormalised; no T^2."""
    t = case.temperature
    logits = case.hidden @ case.head.T
    hard = functional.cross_entropy(logits.float(), case.targets, reduction="sum")
    log_q = functional.log_softmax(logits.float() / t, dim=-1).gather(1, case.ids)
    log_p = functional.log_softmax(case.logp / t, dim=-1)
    kl = (log_p.exp() * (log_p - log_q)).sum()
    return (case.alpha * hard + (1 - case.alpha) * kl) / tokens


class _AxolotlFused(torch.autograd.Function):
    """Gradients by autograd inside the forward, of the unscaled KL; the printed KL is times T^2.

    The original also sums a gradient of the head. It is left out here, in this peer's favour.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, case: KdCase) -> Tensor:
        t = case.temperature
        with torch.enable_grad():
            leaf = hidden.detach().requires_grad_()
            logits = leaf @ case.head.T
            hard = functional.cross_entropy(logits, case.targets, reduction="sum")
            tempered = (logits / t).float()
            inside = tempered.gather(1, case.ids) - tempered.logsumexp(dim=-1, keepdim=True)
            log_q = functional.log_softmax(inside, dim=-1)
            log_p = functional.log_softmax(case.logp / t, dim=-1)
            kl = (log_p.exp() * (log_p - log_q)).sum()
            trained = case.alpha * hard + (1 - case.alpha) * kl
            (gradient,) = torch.autograd.grad(trained, leaf)
        ctx.save_for_backward(gradient)
        return (case.alpha * hard + (1 - case.alpha) * t * t * kl).detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None


def run_axolotl_fused(case: KdCase, tokens: int) -> Tensor:
    """Both sides renormalised over K, blind to the tail; T^2 multiplies the printed loss only."""
    return _AxolotlFused.apply(case.hidden, case) / tokens  # type: ignore[no-untyped-call]


def run_trl_gkd(case: KdCase, tokens: int) -> Tensor:
    """`GKDTrainer.generalized_jsd_loss` at beta 0: the whole vocabulary on both sides, no T^2."""
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    with torch.no_grad():
        teacher = case.teacher_hidden @ case.head.T
    return GKDTrainer.generalized_jsd_loss(
        (case.hidden @ case.head.T)[None], teacher[None], beta=0, temperature=case.temperature,
        num_items_in_batch=tokens,
    )  # fmt: skip


def run_trl_chunked(case: KdCase, tokens: int) -> Tensor:
    """`DistillationTrainer`'s chunked divergence at beta 0: both models' heads, tile by tile."""
    import torch.distributed.tensor  # the function asks for DTensor by name
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    mask = torch.ones(1, len(case.targets), device=case.hidden.device)
    loss, _, _ = _chunked_divergence_loss(
        case.hidden[None], case.teacher_hidden[None], case.head, case.head, mask, 0.0,
        num_items_in_batch=tokens, temperature=case.temperature,
    )  # fmt: skip
    return loss


def run_trl_server(case: KdCase, _tokens: int) -> Tensor:
    """Tempered, then coarsened into K and a tail by difference; needs a tempered teacher; no T^2.

    Its trainer takes the mean over each micro-batch's own tokens.
    """
    log_q = functional.log_softmax(case.hidden @ case.head.T / case.temperature, dim=-1)
    log_q = log_q.gather(1, case.ids)
    rest_q, rest_p = _log_rest(log_q), _log_rest(case.tempered_logp)
    kl = (case.tempered_logp.exp() * (case.tempered_logp - log_q)).sum(dim=1)
    return (kl + rest_p.exp() * (rest_p - rest_q)).mean()


def run_liger(case: KdCase, _tokens: int) -> Tensor:
    """`LigerFusedLinearJSDLoss` at beta 0, eager, its own chunks; mean over the call's tokens."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=case.alpha, weight_soft_loss=1 - case.alpha, beta=0.0,
        temperature=case.temperature, compiled=False,
    )  # fmt: skip
    result: Tensor = loss(case.hidden, case.head, case.teacher_hidden, case.head, case.targets)
    return result


FORMULA, TRL, LIGER = "formula", "trl", "liger_kernel"
OURS = "ours"
ARMS = {
    OURS: Arm(run=run_ours, origin=OURS, note="top K + tail"),
    "naive": Arm(run=run_naive, origin=FORMULA, note="top K, whole logits"),
    "distillkit": Arm(run=run_distillkit, origin=FORMULA, note="top K, whole logits"),
    "distillkit tail": Arm(run=run_distillkit_tail, origin=FORMULA, note="top K + tail"),
    "axolotl": Arm(run=run_axolotl, origin=FORMULA, note="top K, whole logits"),
    "axolotl fused": Arm(run=run_axolotl_fused, origin=FORMULA, note="top K, one chunk of 1024"),
    "trl gkd": Arm(run=run_trl_gkd, origin=TRL, note="teacher's whole V; no CE"),
    "trl chunked": Arm(run=run_trl_chunked, origin=TRL, note="teacher's whole V, tiles; no CE"),
    "trl server": Arm(run=run_trl_server, origin=FORMULA, note="tempered top K + tail; no CE"),
    "liger": Arm(run=run_liger, origin=LIGER, note="teacher's whole V, dW of the head too"),
}


def find_arms() -> tuple[list[str], dict[str, str]]:
    """Return the arms that can run here, and the others with the module each one misses."""
    missing = {
        name: arm.origin
        for name, arm in ARMS.items()
        if arm.origin in (TRL, LIGER) and find_spec(arm.origin) is None
    }
    return [name for name in ARMS if name not in missing], missing
