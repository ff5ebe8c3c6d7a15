"""The loss on a CUDA device is the loss on the CPU: the same function, unchanged."""

import pytest
import torch

from assets.students.loss import SoftTargets, distillation_loss
from tests.assets.students.test_group_loss import make_group_case
from tests.assets.students.test_loss import make_case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def to_device(case, device, dtype):
    moved = {name: v.to(device) if torch.is_tensor(v) else v for name, v in case.items()}
    moved["soft"] = type(case["soft"])(*(value.to(device) for value in case["soft"]))
    for name in ("hidden", "head_weight"):
        moved[name] = moved[name].to(dtype)
    return moved


def find_gradient(case):
    hidden = case["hidden"].clone().requires_grad_()
    total = distillation_loss(**(case | {"hidden": hidden})).total
    total.backward()
    return total.item(), hidden.grad.cpu()


@pytest.mark.parametrize("make", [make_case, make_group_case])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.bfloat16, 3e-2)]
)
def test_the_gpu_computes_what_the_cpu_computes(make, dtype, tolerance):
    case = make(3)
    loss, gradient = find_gradient(to_device(case, "cpu", dtype))
    on_gpu, gradient_on_gpu = find_gradient(to_device(case, "cuda", dtype))
    assert on_gpu == pytest.approx(loss, rel=tolerance)
    scale = gradient.abs().max().item()
    torch.testing.assert_close(
        gradient_on_gpu.float(), gradient.float(), rtol=tolerance, atol=tolerance * scale
    )


def test_no_logits_of_a_whole_answer_are_kept():
    """Peak memory follows the chunk, not the tokens."""
    head = torch.randn(49152, 64, device="cuda") * 0.1

    def measure(tokens):
        hidden = torch.randn(tokens, 64, device="cuda", requires_grad=True)
        targets = torch.randint(len(head), (tokens,), device="cuda")
        ids = torch.cat([targets[:, None], (targets[:, None] + 1) % len(head)], dim=1)
        logp = torch.full((tokens, 2), -1.0, device="cuda")
        soft = SoftTargets(ids, logp, torch.full((tokens,), -1.33, device="cuda"))
        ones = torch.ones(tokens, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = distillation_loss(
            hidden, head, targets, soft=soft, alpha=ones * 0.3, weight=ones, normaliser=tokens
        )
        loss.total.backward()
        return torch.cuda.max_memory_allocated() - before

    measure(512)
    assert measure(4096) < 1.5 * measure(512)
