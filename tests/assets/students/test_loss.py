"""Each test is a bug that some published trainer shipped (DISTILLATION.md section 1)."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from assets.students import loss as loss_module
from assets.students.loss import (
    DistillationLossError,
    SoftTargets,
    distillation_loss,
    refuse_unsupported_model,
)

TOKENS, HIDDEN, VOCABULARY, K = 11, 8, 60, 6


def make_case(seed=0, *, k=K, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, head = draw(TOKENS, HIDDEN) * scale, draw(VOCABULARY, HIDDEN)
    teacher = (draw(TOKENS, HIDDEN) * scale) @ draw(VOCABULARY, HIDDEN).T
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return {
        "hidden": hidden.to(dtype),
        "head_weight": head.to(dtype),
        "targets": targets,
        "soft": coarsen(teacher, targets, k),
        "alpha": torch.rand(TOKENS, generator=generator, dtype=torch.float64),
        "weight": torch.rand(TOKENS, generator=generator, dtype=torch.float64) + 0.5,
        "normaliser": 7.0,
        "temperature": 2.0,
    }


def coarsen(logits, targets, k):
    """Top-k ids with the realised one, as `batches` makes them: K + 1 slots, padded with -1."""
    logp = logits.double().log_softmax(dim=-1)
    top = logp.topk(k, dim=-1)
    extra = torch.where((top.indices == targets[:, None]).any(dim=1), -1, targets)
    ids = torch.cat([top.indices, extra[:, None]], dim=1)
    values = torch.cat([top.values, logp.gather(1, targets[:, None])], dim=1)
    inside = torch.where(ids >= 0, values.exp(), 0.0).sum(dim=1)
    return SoftTargets(ids, values, (1 - inside).clamp(min=1e-12).log())


def run(case, **changes):
    return distillation_loss(**(case | changes))


def repeat(case, many):
    """The same rows again and again; a vocabulary's order is not a row."""
    names = ("hidden", "targets", "alpha", "weight")
    rows = {name: case[name].repeat(many, *[1] * (case[name].dim() - 1)) for name in names}
    soft = {
        name: value if name == "order" else value.repeat(many, *[1] * (value.dim() - 1))
        for name, value in case["soft"]._asdict().items()
    }
    return case | rows | {"soft": type(case["soft"])(**soft)}


def gradient(case, **changes):
    hidden = case["hidden"].clone().requires_grad_()
    run(case | {"hidden": hidden}, **changes).total.backward()
    return hidden.grad


def oracle(case):
    """The loss as DISTILLATION.md writes it, one token at a time, by autograd in float64."""
    total = torch.zeros((), dtype=torch.float64)
    t = case["temperature"]
    logits = case["hidden"].double() @ case["head_weight"].double().T
    for row in range(len(logits)):
        z, y = logits[row], int(case["targets"][row])
        inside = [
            (int(i), p)
            for i, p in zip(case["soft"].ids[row], case["soft"].logp[row], strict=True)
            if i >= 0
        ]
        outside = torch.tensor([v for v in range(len(z)) if v not in {i for i, _ in inside}])
        log_q = z - z.logsumexp(0)
        parts_q = [log_q[i] for i, _ in inside] + [log_q[outside].logsumexp(0)]
        parts_p = [p for _, p in inside] + [case["soft"].tail_logp[row]]
        p = (torch.stack(parts_p) / t).log_softmax(0)
        q = (torch.stack(parts_q) / t).log_softmax(0)
        kl = (p.exp() * (p - q)).sum()
        a = case["alpha"][row]
        total = total + case["weight"][row] * (a * -log_q[y] + (1 - a) * t * t * kl)
    return total / case["normaliser"]


def test_equals_the_oracle_in_value_and_gradient():
    for seed in range(5):
        case = make_case(seed)
        hidden = case["hidden"].clone().requires_grad_()
        expected = oracle(case | {"hidden": hidden})
        (expected_gradient,) = torch.autograd.grad(expected, hidden)
        assert run(case).total.item() == pytest.approx(expected.item(), rel=1e-9)
        torch.testing.assert_close(gradient(case), expected_gradient, rtol=1e-8, atol=1e-10)


def test_float32_is_within_1e_6_of_the_oracle():
    case = make_case(3)
    low = {
        k: v.float() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in case.items()
    }
    exact = case | {k: low[k].double() for k in ("hidden", "head_weight", "alpha", "weight")}
    assert run(low).total.item() == pytest.approx(oracle(exact).item(), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("k", [1, K, VOCABULARY - 1])
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(temperature, k):
    case = make_case(1, k=k)
    soft = coarsen(case["hidden"] @ case["head_weight"].T, case["targets"], k)
    case |= {"soft": soft, "alpha": torch.zeros(TOKENS), "temperature": temperature}
    assert run(case).total.item() == pytest.approx(0.0, abs=1e-10)
    assert gradient(case).abs().max().item() == pytest.approx(0.0, abs=1e-9)


def test_equals_the_full_vocabulary_kl_at_k_equal_v():
    case = make_case(2, k=VOCABULARY)
    case["alpha"] = torch.zeros(TOKENS)
    teacher = torch.empty(TOKENS, VOCABULARY, dtype=torch.float64)
    top = case["soft"]
    teacher.scatter_(1, top.ids[:, :VOCABULARY], top.logp[:, :VOCABULARY])
    t = case["temperature"]
    student = (case["hidden"] @ case["head_weight"].T / t).log_softmax(dim=-1)
    p = (teacher / t).log_softmax(dim=-1)
    kl = t * t * (p.exp() * (p - student)).sum(dim=-1)
    expected = (case["weight"] * kl).sum() / case["normaliser"]
    for tail in (-math.inf, math.log(1e-7)):  # no tail, or the writer's floor
        soft = SoftTargets(top.ids, top.logp, torch.full((TOKENS,), tail, dtype=torch.float64))
        assert run(case, soft=soft).total.item() == pytest.approx(expected.item(), rel=1e-9)
        assert torch.isfinite(gradient(case, soft=soft)).all()


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
def test_is_never_negative(scale):
    for seed in range(20):
        case = make_case(seed, scale=scale)
        parts = run(case, alpha=torch.zeros(TOKENS))
        assert parts.total.item() >= -1e-12
        assert parts.soft_sum >= -1e-12


def test_finite_differences_of_the_reported_loss_are_the_gradient():
    case = make_case(4)
    exact = gradient(case)
    for index in [(0, 0), (3, 5), (TOKENS - 1, HIDDEN - 1)]:
        step = torch.zeros_like(case["hidden"])
        step[index] = 1e-6
        up = run(case, hidden=case["hidden"] + step).total.item()
        down = run(case, hidden=case["hidden"] - step).total.item()
        assert (up - down) / 2e-6 == pytest.approx(exact[index].item(), rel=1e-5)


def test_the_upstream_gradient_scales_the_gradient():
    case = make_case(4)
    hidden = case["hidden"].clone().requires_grad_()
    (3 * run(case, hidden=hidden).total).backward()
    torch.testing.assert_close(hidden.grad, 3 * gradient(case))


@pytest.mark.parametrize("chunk", [1, 2, 4, TOKENS, 100])
def test_the_chunk_size_does_not_matter(chunk):
    case = make_case(5)
    assert run(case, chunk_tokens=chunk).total.item() == pytest.approx(run(case).total.item())
    torch.testing.assert_close(gradient(case, chunk_tokens=chunk), gradient(case))


@pytest.mark.parametrize("cut", [1, 4, TOKENS - 1])
def test_micro_batches_add_up_to_the_step(cut):
    case = make_case(6)

    def part(where):
        soft = SoftTargets(*(value[where] for value in case["soft"]))
        names = ("hidden", "targets", "alpha", "weight")
        return case | {name: case[name][where] for name in names} | {"soft": soft}

    pieces = [part(slice(None, cut)), part(slice(cut, None))]
    total = sum(run(piece).total.item() for piece in pieces)
    assert total == pytest.approx(run(case).total.item())
    torch.testing.assert_close(torch.cat([gradient(p) for p in pieces]), gradient(case))


def test_rows_of_the_head_that_no_token_has_are_part_of_the_distribution():
    """A server samples from the whole head, and a scorer's logprobs are over the whole head."""
    case = make_case(7)
    padding = torch.full((5, HIDDEN), 0.4, dtype=torch.float64)
    padded = case | {"head_weight": torch.cat([case["head_weight"], padding])}
    assert run(padded).total.item() == pytest.approx(oracle(padded).item(), rel=1e-9)
    assert run(padded).total.item() != pytest.approx(run(case).total.item(), rel=1e-3)
    constant = case["hidden"].clone()
    constant[:, 0] = 1.0
    never = torch.zeros(5, HIDDEN, dtype=torch.float64)
    never[:, 0] = -1e4  # a row that nobody would sample
    case |= {"hidden": constant}
    padded = case | {"head_weight": torch.cat([case["head_weight"], never])}
    assert run(padded).total.item() == pytest.approx(run(case).total.item())
    torch.testing.assert_close(gradient(padded), gradient(case))


def test_padding_of_soft_slots_does_not_matter():
    case = make_case(7)
    soft = case["soft"]
    wide = SoftTargets(
        torch.cat([soft.ids, torch.full((TOKENS, 4), -1)], dim=1),
        torch.cat([soft.logp, torch.full((TOKENS, 4), math.nan)], dim=1),
        soft.tail_logp,
    )
    assert run(case, soft=wide).total.item() == pytest.approx(run(case).total.item())
    torch.testing.assert_close(gradient(case, soft=wide), gradient(case))


def test_padding_may_stand_anywhere_in_a_row():
    case = make_case(7)
    soft = case["soft"]
    front = SoftTargets(
        torch.cat([torch.full((TOKENS, 2), -1), soft.ids], dim=1),
        torch.cat([torch.full((TOKENS, 2), math.nan), soft.logp], dim=1),
        soft.tail_logp,
    )
    assert run(case, soft=front).total.item() == pytest.approx(run(case).total.item())
    torch.testing.assert_close(gradient(case, soft=front), gradient(case))


def test_targets_shifted_by_one_raise_the_loss():
    case = make_case(8)
    head = case["head_weight"]
    confident = head[case["targets"]] * 4  # states that predict their own targets
    soft = coarsen(confident @ head.T, case["targets"], K)
    good = run(case, hidden=confident, soft=soft).total.item()
    shifted = case["targets"].roll(1)
    shifted_soft = SoftTargets(*(value.roll(1, dims=0) for value in soft))
    assert run(case, hidden=confident, targets=shifted, soft=soft).total.item() > good + 1
    assert run(case, hidden=confident, soft=shifted_soft).total.item() > good + 1


def test_hard_only_is_cross_entropy():
    case = make_case(9)
    logits = case["hidden"] @ case["head_weight"].T
    expected = torch.nn.functional.cross_entropy(logits, case["targets"], reduction="none")
    expected = (case["weight"] * expected).sum() / case["normaliser"]
    found = run(case, soft=None, alpha=torch.ones(TOKENS))
    assert found.total.item() == pytest.approx(expected.item())
    assert found.soft_sum == 0
    assert found.soft_weight_sum == 0
    assert found.hard_sum == pytest.approx(expected.item() * case["normaliser"])


def test_rows_without_a_soft_target_are_hard_beside_rows_with_one():
    case = make_case(10)
    ids = case["soft"].ids.clone()
    ids[::2] = -1
    alpha = case["alpha"].clone()
    alpha[::2] = 1.0
    mixed = case | {"soft": case["soft"]._replace(ids=ids), "alpha": alpha}
    full = case | {"alpha": alpha}  # alpha 1 alone must already silence the soft side
    assert run(mixed).total.item() == pytest.approx(run(full).total.item())
    torch.testing.assert_close(gradient(mixed), gradient(full))


def test_bfloat16_weights_are_accumulated_in_float32():
    case = make_case(11, dtype=torch.bfloat16)
    many = 400
    total = run(repeat(case, many)).total
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(many * run(case).total.item(), rel=1e-5)
    exact = oracle(case).item()
    assert run(case).total.item() == pytest.approx(exact, rel=2e-2)
    assert gradient(case).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_emulated", [True, False])
def test_half_precision_is_the_float32_loss_of_the_same_numbers(dtype, is_emulated, monkeypatch):
    """A head widened in tiles (where products in its dtype are slow) loses nothing to rounding."""
    monkeypatch.setattr(loss_module, "_is_emulated", lambda _: is_emulated)
    monkeypatch.setattr(loss_module, "TILE_BYTES", 4 * HIDDEN * 7)  # 60 rows: eight tiles and a bit
    case = make_case(11, dtype=dtype)
    wide = case | {name: case[name].float() for name in ("hidden", "head_weight")}
    relative = 1e-6 if is_emulated else 2e-2
    assert run(case).total.item() == pytest.approx(run(wide).total.item(), rel=relative)
    found, exact = gradient(case), gradient(wide)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, rtol=2e-2, atol=2e-2 * exact.abs().max())


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that any operation returned, those of the backward pass too."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, (tuple, list)) else (made,):
            if torch.is_tensor(value):
                self.elements = max(self.elements, value.numel())
        return made


def largest_tensor(case, **changes):
    with LargestTensor() as seen:
        gradient(case, **changes)
    return seen.elements


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_soft", [True, False])
def test_logits_of_all_tokens_never_exist_at_once(is_soft, dtype):
    case = repeat(make_case(3, dtype=dtype), 12)
    tokens = 12 * TOKENS
    if not is_soft:
        case |= {"soft": None, "alpha": torch.ones(tokens)}
    chunk = tokens // 6
    assert largest_tensor(case, chunk_tokens=chunk) <= chunk * VOCABULARY
    assert largest_tensor(case, chunk_tokens=tokens) == tokens * VOCABULARY, "it would be seen"


def test_extreme_logits_stay_finite():
    case = make_case(12, dtype=torch.float32, scale=100.0)
    assert math.isfinite(run(case).total.item())
    assert torch.isfinite(gradient(case)).all()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"targets": torch.full((TOKENS,), VOCABULARY)}, "ids in 0"),
        ({"targets": torch.full((TOKENS,), -100)}, "ids in 0"),
        ({"hidden": torch.zeros(0, HIDDEN), "targets": torch.zeros(0).long()}, "at least one"),
        ({"hidden": torch.zeros(TOKENS + 1, HIDDEN)}, "one hidden state per answer token"),
        ({"normaliser": 0.0}, "positive normaliser"),
        ({"head_weight": torch.zeros(VOCABULARY, HIDDEN, requires_grad=True)}, "frozen head"),
        ({"soft": None}, "alpha 1"),
        ({"head_weight": torch.zeros(10, HIDDEN)}, "ids in 0..9"),
        ({"temperature": 0.0}, "positive temperature"),
        ({"alpha": torch.full((TOKENS,), 1.5)}, "alpha in 0..1"),
        ({"alpha": torch.full((TOKENS,), math.nan)}, "alpha in 0..1"),
        ({"weight": torch.full((TOKENS,), -1.0)}, "weights of 0 at least"),
        ({"weight": torch.ones(TOKENS - 1)}, f"{TOKENS - 1} of weight"),
    ],
)
def test_guards(changes, match):
    case = make_case(0, dtype=torch.float32)
    with pytest.raises(DistillationLossError, match=match):
        run(case, **changes)


def test_soft_ids_past_the_vocabulary_are_refused():
    case = make_case(0)
    ids = case["soft"].ids.clone()
    ids[0, 0] = VOCABULARY
    with pytest.raises(DistillationLossError, match="soft ids"):
        run(case, soft=case["soft"]._replace(ids=ids))


def test_soft_rows_that_cannot_be_a_distribution_are_refused():
    soft = make_case(0)["soft"]
    ids, logp = soft.ids.clone(), soft.logp.clone()
    ids[2, 1] = ids[2, 0]
    logp[3, 0] = 0.5
    unknown = torch.full_like(logp, math.nan)
    for broken, match in [
        (soft._replace(ids=ids), "1 that repeat"),
        (soft._replace(logp=logp), "1 above 0"),
        (soft._replace(logp=unknown), "no numbers"),
        (SoftTargets(*(value[:-1] for value in soft)), f"{TOKENS - 1} of soft"),
    ]:
        with pytest.raises(DistillationLossError, match=match):
            run(make_case(0), soft=broken)


@pytest.fixture
def model():
    config = LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).requires_grad_(requires_grad=False)


def test_a_plain_frozen_model_is_accepted(model):
    refuse_unsupported_model(model)


@pytest.mark.parametrize(
    "name",
    ["final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier",
     "output_multiplier"],
)  # fmt: skip
def test_models_that_transform_logits_are_refused(model, name):
    setattr(model.config, name, 30.0)
    with pytest.raises(DistillationLossError, match=name):
        refuse_unsupported_model(model)


@pytest.mark.filterwarnings("ignore:.*tied.*:UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_lora_on_a_tied_head_is_refused(model, target):
    from peft import LoraConfig, get_peft_model

    peft_model = get_peft_model(model, LoraConfig(target_modules=[target, "q_proj"]))
    with pytest.raises(DistillationLossError, match="LoRA on the head"):
        refuse_unsupported_model(peft_model.get_base_model())


def test_a_head_that_is_trained_is_refused(model):
    model.get_input_embeddings().weight.requires_grad_()
    with pytest.raises(DistillationLossError, match="tied"):
        refuse_unsupported_model(model)


def test_a_head_with_a_bias_is_refused(model):
    bias = torch.nn.Parameter(torch.zeros(32), requires_grad=False)
    model.get_output_embeddings().bias = bias
    with pytest.raises(DistillationLossError, match="found a head with bias"):
        refuse_unsupported_model(model)


def test_a_model_without_an_output_head_is_refused(model):
    decoder = LlamaModel(model.config).requires_grad_(requires_grad=False)
    with pytest.raises(DistillationLossError, match="found no output head"):
        refuse_unsupported_model(decoder)
