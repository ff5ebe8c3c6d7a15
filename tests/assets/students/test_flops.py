"""The floor of a step against counts by hand, and its linear part against torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from assets.students.flops import (
    ModelShape,
    RowShape,
    compute_mfu_ratio,
    count_prefix_flops,
    count_row_flops,
    count_step_flops,
    measure_shape,
)
from assets.students.recipe import Recipe
from assets.students.weights import add_lora
from serving.models.causal_lm import load_causal_lm

SHAPE = ModelShape(
    backbone_parameters=1000, lora_parameters=10, layers=2, attention_width=8, hidden_size=6,
    vocabulary_size=50,
)  # fmt: skip


def test_without_a_prefix_it_is_the_formula_by_hand():
    # S = 5, A = 3: S*4*N_b + 6*N_lora*S + 7*L*d*S^2 + 4*A*V*D
    assert count_row_flops(SHAPE, RowShape(prefix=0, trained=5, answer=3)) == (
        20_000 + 300 + 7 * 2 * 8 * 25 + 4 * 3 * 50 * 6
    )
    again = count_row_flops(SHAPE, RowShape(prefix=0, trained=5, answer=3), is_recomputed=True)
    assert again - 26_700 == 2 * 1000 * 5


def test_a_prefix_costs_its_attention_and_is_read_forward_only():
    row, alone = RowShape(prefix=7, trained=5, answer=3), RowShape(prefix=0, trained=5, answer=3)
    met = 5 * 7 * 2 * 8  # queries times keys, times layers, times width
    assert count_row_flops(SHAPE, row) - count_row_flops(SHAPE, alone) == (2 + 3) * 2 * met
    assert count_prefix_flops(SHAPE, 7) == 2 * 1000 * 7 + 2 * 2 * 8 * 49
    assert count_step_flops(SHAPE, [row, alone], prefixes_read=[7]) == (
        count_row_flops(SHAPE, row) + count_row_flops(SHAPE, alone) + count_prefix_flops(SHAPE, 7)
    )
    assert count_step_flops(SHAPE, []) == 0


def test_the_share_of_the_machine_is_floor_over_time():
    assert compute_mfu_ratio(3e9, seconds=2.0, peak_flops_per_second=1e10) == pytest.approx(0.15)


def test_the_shape_of_a_model_counts_what_torch_counts(tiny_base):
    model = load_causal_lm(tiny_base, "float32")
    plain = measure_shape(model)
    assert (plain.layers, plain.attention_width, plain.hidden_size) == (2, 32, 32)
    # q and o: 32 x 32, k and v: 32 x 16, three of 32 x 64, in 2 layers
    assert plain.backbone_parameters == 2 * (2 * 1024 + 2 * 512 + 3 * 2048)
    assert plain.lora_parameters == 0
    tokens = 11
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.get_decoder()(torch.zeros(1, tokens, dtype=torch.long))
    by_operation = counter.get_flop_counts()["Global"]
    linear = sum(n for op, n in by_operation.items() if "attention" not in str(op))
    assert linear == 2 * plain.backbone_parameters * tokens


def test_lora_layers_are_counted_apart(tiny_base):
    base = load_causal_lm(tiny_base, "float32")
    plain = measure_shape(base)
    recipe = Recipe(student="tiny", rank=4, target_modules=("q_proj", "v_proj"))
    shape = measure_shape(add_lora(base, recipe).get_base_model())
    assert shape.backbone_parameters == plain.backbone_parameters
    assert shape.lora_parameters == 2 * (4 * (32 + 32) + 4 * (32 + 16))
