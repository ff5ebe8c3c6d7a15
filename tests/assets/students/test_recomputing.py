"""Gradient checkpointing gives the same gradient out of less memory and more work."""

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaMLP

from assets.students.recomputing import disable_recomputing, enable_recomputing
from serving.errors import InvalidInputError
from serving.models.causal_lm import load_causal_lm, pad_batch, read_prefix, run_decoder
from tests.assets.students.test_packing import ACTIVATIONS, make_batch
from tests.assets.students.test_steps import compute


class Held:
    """Bytes that autograd keeps for a backward pass, each storage once."""

    def __enter__(self):
        self.storages = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept)
        self._hooks.__enter__()
        return self

    def _keep(self, tensor):
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def __exit__(self, *problem):
        self._hooks.__exit__(*problem)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("packing", [False, True])
def test_the_gradient_is_the_same_and_the_floor_counts_the_second_pass(
    tiny_base, monkeypatch, activation, packing
):
    batch = make_batch(activation)
    keys = {"activation": activation, "packing": packing}
    plain, expected, _ = compute(tiny_base, batch, **keys)
    runs = []
    forward = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: runs.append(1) or forward(self, x))
    found, gradients, computer = compute(tiny_base, batch, gradient_checkpointing=True, **keys)
    prefixes = len({e.prefix_ids for e in batch} - {()})
    assert len(runs) == 2 * (2 + prefixes), "two layers run twice, and once over each prefix"
    assert found.total == pytest.approx(plain.total, abs=1e-6)
    for name, value in expected.items():
        assert value.abs().max() > 0
        torch.testing.assert_close(gradients[name], value, rtol=0, atol=1e-6)
    tokens = sum(e.trained_tokens for e in batch)
    frozen = computer._shape.backbone_parameters
    assert found.floor_flops - plain.floor_flops == 2 * frozen * tokens


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_less_is_kept_for_the_backward_pass(tiny_base, activation):
    batch = make_batch(activation)
    keys = {"activation": activation, "packing": True}
    held = []
    for is_recomputed in (False, True):
        with Held() as kept:
            compute(tiny_base, batch, gradient_checkpointing=is_recomputed, **keys)
        held.append(sum(kept.storages.values()))
    assert held[1] < 0.5 * held[0], held


def test_afterwards_a_cache_grows_again(tiny_base):
    model = load_causal_lm(tiny_base, "float32")
    prefix = read_prefix(model, (5, 6, 7))

    def run():
        batch = pad_batch(model, [prefix], [(8, 9)], pad_side="right")
        with torch.no_grad():
            return run_decoder(model, batch), batch.cache.get_seq_length()

    before, length = run()
    enable_recomputing(model)
    assert model.is_activation_checkpointing
    disable_recomputing(model)
    after, same = run()
    assert (length, same) == (5, 5)
    assert torch.equal(after, before)
    assert not any(module.training for module in model.modules())


def test_a_model_without_such_layers_is_refused(tiny_base, monkeypatch):
    model = load_causal_lm(tiny_base, "float32")
    assert any(isinstance(module, GradientCheckpointingLayer) for module in model.modules())
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(InvalidInputError, match="gradient_checkpointing: false"):
        enable_recomputing(model)
