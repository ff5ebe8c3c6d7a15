"""Packed rows compute what padded batches do, and no example in a row sees another."""

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

from assets.students.batches import Example, find_positions, make_examples
from assets.students.checkpoints import Checkpoints
from assets.students.packing import enable_packing, pack_row, plan_rows, run_packed
from assets.students.recipe import parse_recipe
from assets.students.training_set import build_training_set
from assets.students.weights import add_lora
from serving.errors import InvalidInputError
from serving.models.causal_lm import load_causal_lm, pad_batch, read_prefix, run_decoder
from tests.assets.students.test_distributed import launch
from tests.assets.students.test_steps import compute
from tests.assets.students.training_cases import (
    SPLITS,
    make_frame,
    make_recipe,
    make_spec,
    train,
    weights_of,
)
from tests.tiny_student import make_labelled, make_tokenizer

ACTIVATIONS = ["question", "all"]


def make_batch(activation):
    """Examples of unequal length and weight, with prefixes of unequal length or none."""
    labelled = make_labelled(9, splits=SPLITS)
    frame = build_training_set(
        labelled, make_tokenizer(), context_tokens=512, activation=activation
    ).frame
    examples = make_examples(frame, None, make_recipe(), "another")
    assert len({e.trained_tokens for e in examples}) > 1
    assert len({len(e.prefix_ids) for e in examples}) == (1 if activation == "all" else 2)
    return [replace(e, weight=0.5 + number % 3) for number, e in enumerate(examples)]


def make_model(tiny_base):
    model = add_lora(load_causal_lm(tiny_base, "float32"), make_recipe())
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.get_base_model()


def make_reader(tiny_base):
    frozen = load_causal_lm(tiny_base, "float32")
    return lambda ids: read_prefix(frozen, ids)


def example(tokens, number=0):
    return Example(
        example_id=f"e{number}", prefix_ids=(), suffix_ids=(1,) * (tokens - 1), answer_ids=(2, 3),
        alpha=(1.0, 1.0),
    )  # fmt: skip


def test_rows_take_the_longest_first_each_where_it_fits():
    examples = [example(tokens, number) for number, tokens in enumerate([3, 9, 4, 12, 5, 4])]
    rows = plan_rows(examples, 10)
    assert [[e.trained_tokens for e in row] for row in rows] == [[12], [9], [5, 4], [4, 3]]
    assert plan_rows(examples, 10) == rows
    assert plan_rows([], 10) == []


@pytest.mark.parametrize("maximum", [1, 40, 100, 10_000])
def test_every_example_is_in_one_row_and_rows_are_not_too_long(maximum):
    examples = [example(2 + 37 * number % 59, number) for number in range(50)]
    rows = plan_rows(examples, maximum)
    assert sorted(e.example_id for row in rows for e in row) == sorted(
        e.example_id for e in examples
    )
    sizes = [sum(e.trained_tokens for e in row) for row in rows]
    assert all(s <= maximum or len(row) == 1 for s, row in zip(sizes, rows, strict=True))
    if maximum == 100:
        assert len(rows) <= 11 / 9 * sum(sizes) / maximum + 1, "the bound of first fit decreasing"


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_log_probabilities_of_every_token_are_those_of_the_padded_batch(tiny_base, activation):
    batch, read = make_batch(activation), make_reader(tiny_base)
    model = make_model(tiny_base)
    with torch.no_grad():
        padded = pad_batch(
            model, [read(e.prefix_ids) for e in batch],
            [(*e.suffix_ids, *e.answer_ids[:-1]) for e in batch], pad_side="right",
        )  # fmt: skip
        hidden = run_decoder(model, padded)
        expected = torch.cat([hidden[i, : e.trained_tokens] for i, e in enumerate(batch)])
        enable_packing(model)
        row = pack_row(batch, read, "cpu")
        found = run_packed(model, row)[0]
    assert found.shape == expected.shape, "no token of padding"
    head = model.get_output_embeddings()
    logprobs = [head(states).log_softmax(-1) for states in (found, expected)]
    torch.testing.assert_close(*logprobs, rtol=0, atol=1e-5)
    assert row.starts[1] == batch[0].trained_tokens
    assert len(find_positions(batch, row.starts)) == sum(len(e.answer_ids) for e in batch)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_token_changes_with_the_tokens_of_another_example(tiny_base, activation):
    batch, read = make_batch(activation)[:4], make_reader(tiny_base)
    model = make_model(tiny_base)
    enable_packing(model)

    def run(examples):
        with torch.no_grad():
            hidden = run_packed(model, pack_row(examples, read, "cpu"))[0]
        return hidden.split([e.trained_tokens for e in examples])

    before = run(batch)
    other = replace(
        batch[1],
        prefix_ids=tuple(token % 200 + 5 for token in batch[1].prefix_ids[3:]),
        suffix_ids=tuple((token + 7) % 300 for token in batch[1].suffix_ids),
    )
    after = run([batch[0], other, *batch[2:]])
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [
        True, False, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("maximum", [10_000, 60, 1])
def test_loss_and_gradient_are_those_of_the_padded_batch(tiny_base, activation, maximum):
    batch = make_batch(activation)
    keys = {"packing": True, "max_packed_tokens": maximum}
    padded, expected, _ = compute(tiny_base, batch, activation=activation)
    packed, found, _ = compute(tiny_base, batch, activation=activation, **keys)
    for name in ("total", "hard", "weight_sum", "floor_flops", "prefix_tokens_read"):
        assert getattr(packed, name) == pytest.approx(getattr(padded, name), rel=1e-6), name
    for name, value in expected.items():
        assert value.abs().max() > 0
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)


def test_a_training_in_packed_rows_ends_the_same_and_its_model_answers(tiny_base, tmp_path):
    """Cut off and gone on with, it is equal to the last bit."""
    keys = {"packing": True, "max_packed_tokens": 70, "gradient_checkpointing": True}
    padded, whole = train(tiny_base), train(tiny_base, keys=keys)
    for column in ("loss", "validation_loss"):
        assert whole.curve[column].to_list() == pytest.approx(
            padded.curve[column].to_list(), abs=1e-4
        )

    def cut(report):
        if report.step == 8:
            raise KeyboardInterrupt

    def store():
        return Checkpoints(tmp_path, "mine", steps=1)

    with pytest.raises(KeyboardInterrupt):
        train(tiny_base, keys=keys, on_step=cut, checkpoints=store())
    again = train(tiny_base, keys=keys, checkpoints=store())
    assert again.resumed_at_step == 8
    expected, found = weights_of(whole), weights_of(again)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    with torch.no_grad():
        ids = torch.tensor([[5, 17, 40, 41]])
        logits = [trained.model(ids, use_cache=True).logits for trained in (whole, padded)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-2)


def test_two_processes_that_pack_follow_the_curve_of_one_that_pads(tiny_base, tmp_path):
    keys = {"batch_size": 3, "max_steps": 8, "epochs": 2}
    one = train(tiny_base, frame=make_frame(), keys=keys)
    packed = {"processes": 2, "packing": True, "max_packed_tokens": 70}
    spec = make_spec(tiny_base, tmp_path, keys=keys | packed | {"gradient_checkpointing": True})
    done = launch(spec, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    two = pl.read_parquet(Path(json.loads(done.stdout)["adapter"]) / "training_curve.parquet")
    assert two["loss"].to_list() == pytest.approx(one.curve["loss"].to_list(), abs=1e-4)
    assert two["validation_loss"].drop_nulls().to_list() == pytest.approx(
        one.curve["validation_loss"].drop_nulls().to_list(), abs=1e-4
    )


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"sliding_window": 8}, "a sliding window of 8"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layers of linear_attention"),
    ],
)
def test_a_model_that_attends_otherwise_is_refused(tiny_base, keys, found):
    model = load_causal_lm(tiny_base, "float32")
    for name, value in keys.items():
        setattr(model.config, name, value)
    with pytest.raises(InvalidInputError, match=f"{found}.*packing: false"):
        enable_packing(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_batch_is_cut_in_one_way_and_neither_key_makes_another_adapter():
    plain = make_recipe()
    keys = {"packing": True, "max_packed_tokens": 512, "gradient_checkpointing": True}
    assert make_recipe(**keys).fingerprint == plain.fingerprint
    wrong = plain.model_dump() | {"packing": True, "micro_batch_size": 2}
    with pytest.raises(InvalidInputError, match=r"max_packed_tokens \(2048\), and not by micro_b"):
        parse_recipe(wrong, source="here")
