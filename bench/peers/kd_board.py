"""What a distillation loss must get right, measured for any arm: three numbers each.

Cases are small, with an identity for a head, so gradients are those of the logits. Belongs here:
the measures. Does not belong here: the arms (`kd`), timing (`kd_loss`).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.peers.kd import Arm, KdCase

TOKENS, VOCABULARY, K = 12, 2048, 20
TAIL_MASS = 0.17  # of SmolLM2 outside its top 20 on docs text, at T = 1


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How an arm did. At the fixed point loss and gradient are to be 0, the ratio is to be 1."""

    fixed_point_loss: float
    fixed_point_gradient: float
    finite_difference_ratio: float
    micro_batch_error: float

    @property
    def is_right(self) -> bool:
        """Whether all three hold to float32's accuracy."""
        return (
            abs(self.fixed_point_loss) < 1e-4
            and self.fixed_point_gradient < 1e-4
            and abs(self.finite_difference_ratio - 1) < 1e-2
            and self.micro_batch_error < 1e-4
        )


def judge(arm: Arm) -> Verdict:
    """Measure an arm's soft term in float32 at T = 2."""
    same = make_case(teacher_seed=0, alpha=0.0)
    loss, gradient = differentiate(arm, same, TOKENS)
    apart = make_case(teacher_seed=1, alpha=0.0)
    return Verdict(
        fixed_point_loss=loss,
        fixed_point_gradient=gradient.norm(dim=1).mean().item() * TOKENS,
        finite_difference_ratio=compare_with_differences(arm, apart),
        micro_batch_error=compare_micro_batches(arm, apart),
    )


def differentiate(arm: Arm, case: KdCase, tokens: int) -> tuple[float, Tensor]:
    """Return the loss and its gradient."""
    hidden = case.hidden.clone().requires_grad_()
    loss = arm.run(replace(case, hidden=hidden), tokens)
    loss.backward()  # type: ignore[no-untyped-call]
    if hidden.grad is None:
        raise RuntimeError("the loss gave hidden states no gradient")
    return loss.item(), hidden.grad


def compare_with_differences(arm: Arm, case: KdCase) -> float:
    """Return the slope of the reported loss along its gradient, over the gradient's length."""
    _, gradient = differentiate(arm, case, TOKENS)
    length = gradient.norm()
    step = 0.5 * gradient / length
    with torch.no_grad():
        up = arm.run(replace(case, hidden=case.hidden + step), TOKENS).item()
        down = arm.run(replace(case, hidden=case.hidden - step), TOKENS).item()
    return (up - down) / length.item()


def compare_micro_batches(arm: Arm, case: KdCase) -> float:
    """Return how far the gradient of a step in two unequal micro-batches is from the whole one's.

    Arms that know the step's tokens are told. The others take means of their own, which are
    averaged, as a loop does that divides by the number of micro-batches.
    """
    _, whole = differentiate(arm, case, TOKENS)
    cut = TOKENS // 4
    parts = [take(case, slice(None, cut)), take(case, slice(cut, None))]
    told = torch.cat([differentiate(arm, part, TOKENS)[1] for part in parts])
    averaged = torch.cat([differentiate(arm, p, len(p.targets))[1] / len(parts) for p in parts])
    knows = not torch.allclose(
        differentiate(arm, parts[0], TOKENS)[1], differentiate(arm, parts[0], cut)[1]
    )
    found = told if knows else averaged
    return ((found - whole).norm() / whole.norm()).item()


def take(case: KdCase, rows: slice) -> KdCase:
    """Return some of the tokens."""
    names = ("hidden", "targets", "ids", "logp", "y_logp", "tail_logp", "tempered_logp",
             "teacher_hidden")  # fmt: skip
    return replace(case, **{name: getattr(case, name)[rows] for name in names})


def make_case(*, teacher_seed: int, alpha: float) -> KdCase:
    """Return a case whose student is the teacher of seed 0."""
    student, teacher = draw_logits(0), draw_logits(teacher_seed)
    targets = teacher.topk(3).indices[:, 2]
    return describe_teacher(
        student, torch.eye(VOCABULARY), targets, teacher, alpha=alpha, temperature=2.0, k=K
    )


def draw_logits(seed: int) -> Tensor:
    """Return logits that fall with the log of their rank, the top 20 short of `TAIL_MASS`."""
    ranks = torch.arange(VOCABULARY, dtype=torch.float64)
    low, high = 0.5, 10.0
    for _ in range(60):
        slope = (low + high) / 2
        tail = (-slope * (ranks + 2).log()).softmax(0)[K:].sum()
        low, high = (slope, high) if tail > TAIL_MASS else (low, slope)
    generator = torch.Generator().manual_seed(seed)
    logits = -low * (ranks + 2).log()
    rows = [logits[torch.randperm(VOCABULARY, generator=generator)] for _ in range(TOKENS)]
    return torch.stack(rows).float()


def describe_teacher(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    teacher_hidden: Tensor,
    *,
    alpha: float,
    temperature: float,
    k: int,
    chunk: int = 64,
) -> KdCase:
    """Return the case with the teacher's top K and tail, a few rows at a time."""
    columns: dict[str, list[Tensor]] = {}
    for start in range(0, len(targets), chunk):
        logits = (teacher_hidden[start : start + chunk].float() @ head.float().T).double()
        log_p, realised = logits.log_softmax(-1), targets[start : start + chunk, None]
        top = log_p.topk(k)
        is_inside = (top.indices == realised).any(dim=1, keepdim=True)
        outside = log_p.scatter(1, top.indices, -torch.inf)
        outside = torch.where(is_inside, outside, outside.scatter(1, realised, -torch.inf))
        tempered = (logits / temperature).log_softmax(-1)
        found = {
            "ids": top.indices,
            "logp": top.values.float(),
            "y_logp": log_p.gather(1, realised)[:, 0].float(),
            "tail_logp": outside.logsumexp(-1).clamp(min=-16.1).float(),
            "tempered_logp": tempered.gather(1, top.indices).float(),
        }
        for name, value in found.items():
            columns.setdefault(name, []).append(value)
    joined = {name: torch.cat(values) for name, values in columns.items()}
    return KdCase(
        hidden=hidden, head=head, targets=targets, teacher_hidden=teacher_hidden, alpha=alpha,
        temperature=temperature, **joined,
    )  # fmt: skip
