"""The loss behind a whole two-layer model with LoRA: golden values, and what must not matter."""

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from assets.students.loss import (
    DistillationLossError,
    SoftTargets,
    compute_logits,
    distillation_loss,
    refuse_transformed_logits,
    refuse_unsupported_model,
)
from serving.models.causal_lm import PrefixStates, load_causal_lm, pad_batch, run_decoder
from tests.assets.students.test_loss import coarsen
from tests.assets.students.training_cases import train

K, TEMPERATURE = 5, 2.0
NOTHING = PrefixStates(keys=None, values=None)
ROWS = [  # prompt and answer ids
    ((5, 17, 40, 41, 9, 77), (30, 31, 8, 2)),
    ((5, 17, 90), (30, 12, 2)),
]


@pytest.fixture(scope="module")
def model(tiny_base):
    base = load_causal_lm(tiny_base, "float32")
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    with torch.random.fork_rng(), warnings.catch_warnings():
        # peft 0.21 reads a name that transformers 5.23 renamed
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        torch.manual_seed(11)
        adapted = get_peft_model(base, config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return adapted.eval()


def compute_loss(model, rows, *, normaliser, alpha=0.3, chunk_tokens=128):
    """Run rows as training does: padded, with only the answers' states handed to the loss."""
    base = model.get_base_model()
    suffixes = [(*prompt, *answer[:-1]) for prompt, answer in rows]
    hidden = run_decoder(base, pad_batch(base, [NOTHING] * len(rows), suffixes, pad_side="right"))
    hidden.retain_grad()
    width = max(map(len, suffixes))
    positions = torch.tensor(
        [
            row * width + len(prompt) - 1 + j
            for row, (prompt, answer) in enumerate(rows)
            for j in range(len(answer))
        ]
    )
    targets = torch.tensor([token for _, answer in rows for token in answer])
    loss = distillation_loss(
        hidden.flatten(0, 1).index_select(0, positions),
        base.get_output_embeddings().weight,
        targets,
        soft=make_teacher(targets, base.config.vocab_size),
        alpha=torch.full((len(targets),), alpha),
        weight=torch.ones(len(targets)),
        normaliser=normaliser,
        temperature=TEMPERATURE,
        chunk_tokens=chunk_tokens,
    )
    return loss, hidden, positions


def make_teacher(targets, vocabulary_size):
    """A distribution that follows from the target alone, so a row has it in any batch."""
    ids = torch.arange(vocabulary_size)
    logits = torch.cos(0.37 * (ids[None] - targets[:, None])) * 6.0
    soft = coarsen(logits, targets, K)
    return SoftTargets(soft.ids, soft.logp.float(), soft.tail_logp.float())


def find_gradient(model, rows, **options):
    model.zero_grad(set_to_none=True)
    loss, *_ = compute_loss(model, rows, **options)
    loss.total.backward()
    return loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def test_golden_values(model):
    loss, gradients = find_gradient(model, ROWS, normaliser=7.0)
    norm = torch.stack([g.norm() for g in gradients.values()]).norm().item()
    found = (loss.total.item(), loss.hard_sum / 7, loss.soft_sum / 7, norm)
    assert found == pytest.approx(GOLDEN, rel=2e-4)


GOLDEN = (3.495296, 8.703438, 1.263235, 1.799424)
"""Total, mean CE, mean T^2 KL, gradient norm. Other numbers mean another loss: raise
TRAINING_VERSION and say why."""


def test_the_gradient_of_every_adapter_weight_is_autograds(model):
    """The same sum by plain autograd over whole logits, in the model's own float32."""
    _, found = find_gradient(model, ROWS, normaliser=7.0)
    model.zero_grad(set_to_none=True)
    total = 0.0
    for prompt, answer in ROWS:
        logits = model(torch.tensor([(*prompt, *answer[:-1])])).logits[0, len(prompt) - 1 :]
        log_q, targets = logits.double().log_softmax(-1), torch.tensor(answer)
        soft = make_teacher(targets, logits.shape[1])
        for row, target in enumerate(answer):
            ids = soft.ids[row][soft.ids[row] >= 0]
            outside = torch.ones(logits.shape[1], dtype=torch.bool).index_fill(0, ids, value=False)
            q = torch.cat([log_q[row, ids], log_q[row, outside].logsumexp(0)[None]])
            p = torch.cat([soft.logp[row][soft.ids[row] >= 0], soft.tail_logp[row][None]])
            p, q = (p.double() / TEMPERATURE).log_softmax(0), (q / TEMPERATURE).log_softmax(0)
            kl = (p.exp() * (p - q)).sum()
            total = total - 0.3 * log_q[row, target] + 0.7 * TEMPERATURE**2 * kl
    (total / 7.0).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5)


def test_micro_batches_and_padding_do_not_matter(model):
    """A short prompt beside a long one is padded; alone it is not."""
    together, gradients = find_gradient(model, ROWS, normaliser=7.0)
    parts = [find_gradient(model, [row], normaliser=7.0) for row in ROWS]
    assert sum(loss.total.item() for loss, _ in parts) == pytest.approx(together.total.item())
    for name, gradient in gradients.items():
        torch.testing.assert_close(sum(g[name] for _, g in parts), gradient, rtol=1e-4, atol=1e-6)


def test_states_of_prompt_tokens_get_no_gradient_of_their_own(model):
    loss, hidden, positions = compute_loss(model, ROWS, normaliser=7.0)
    loss.total.backward()
    at_answers = torch.zeros(hidden.shape[:2]).flatten().index_fill(0, positions, 1.0).bool()
    sizes = hidden.grad.flatten(0, 1).norm(dim=1)
    assert (sizes[at_answers] > 0).all()
    assert (sizes[~at_answers] == 0).all()


def test_the_chunk_size_does_not_matter(model):
    whole, gradients = find_gradient(model, ROWS, normaliser=7.0)
    pieces, same = find_gradient(model, ROWS, normaliser=7.0, chunk_tokens=2)
    assert pieces.total.item() == pytest.approx(whole.total.item(), rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=1e-4, atol=1e-6)


def load_transforming(tiny_base, dtype, transform):
    """Return a model whose config is that of any Llama, and whose logits are not."""

    class Transforming(LlamaForCausalLM):
        def forward(self, *arguments, **options):
            found = super().forward(*arguments, **options)
            found.logits = transform(found.logits)
            return found

    model = Transforming.from_pretrained(tiny_base, dtype=dtype)
    return model.requires_grad_(requires_grad=False).eval()


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "transform",
    [
        lambda logits: 5 * torch.tanh(logits / 5),
        lambda logits: 0.9 * logits,
        lambda logits: logits + torch.linspace(0, 1, logits.shape[-1]).to(logits),
        lambda logits: logits * torch.nan,
    ],
    ids=["capped", "scaled", "shifted", "no numbers"],
)
def test_a_model_whose_own_logits_are_others_is_refused_whatever_its_config_says(
    tiny_base, transform, dtype
):
    model = load_transforming(tiny_base, dtype, transform)
    refuse_unsupported_model(model)  # which reads its config, and sees nothing
    with pytest.raises(DistillationLossError, match=r"Transforming.*difference.*largest logit is"):
        refuse_transformed_logits(model, compute_logits)


def test_a_base_whose_weights_are_damaged_is_told_as_such(tiny_base):
    model = load_causal_lm(tiny_base, "float32")
    torch.nn.init.constant_(model.get_decoder().norm.weight, torch.nan)
    with pytest.raises(DistillationLossError, match="its weights are damaged"):
        refuse_transformed_logits(model, compute_logits)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_plain_model_has_the_logits_that_the_loss_computes(tiny_base, dtype):
    refuse_transformed_logits(load_transforming(tiny_base, dtype, lambda x: x), compute_logits)


def test_a_weak_cap_is_seen_in_float32(tiny_base):
    model = load_transforming(tiny_base, torch.float32, lambda x: 30 * torch.tanh(x / 30))
    with pytest.raises(DistillationLossError):
        refuse_transformed_logits(model, compute_logits)


def test_no_step_is_taken_on_such_a_model(tiny_base, monkeypatch):
    told = []
    forward = LlamaForCausalLM.forward

    def capped(self, *arguments, **options):
        found = forward(self, *arguments, **options)
        found.logits = 5 * torch.tanh(found.logits / 5)
        return found

    monkeypatch.setattr(LlamaForCausalLM, "forward", capped)
    with pytest.raises(DistillationLossError, match="logits of LlamaForCausalLM"):
        train(tiny_base, on_step=told.append)
    assert told == []
