"""The gradient of a batch does not depend on how the batch is computed."""

import pytest
import torch

from assets.labels.local_scoring import LocalScorer
from assets.labels.scoring import score_answers
from assets.students.batches import make_examples
from assets.students.distributed import Workers
from assets.students.prefixes import PrefixStore, read_with_transformers
from assets.students.steps import LossComputer
from assets.students.weights import add_lora
from serving.errors import InvalidInputError
from serving.models.causal_lm import load_causal_lm
from tests.assets.students.training_cases import (
    SPLITS,
    make_frame,
    make_recipe,
    train,
    weights_of,
)
from tests.tiny_student import make_labelled


@pytest.fixture(scope="module")
def batch(tiny_base):
    """Examples of unequal length and weight, some with soft targets and some without."""
    scorer = LocalScorer.load(tiny_base, scorer_id="tiny", dtype="float32")
    logprobs = score_answers(make_labelled(24, splits=SPLITS), scorer, minimum_mean_probability=0.0)
    examples = make_examples(make_frame(7), logprobs.head(4), make_recipe(alpha=0.3), "another")
    assert {e.has_soft for e in examples} == {True, False}
    assert len({len(e.answer_ids) for e in examples}) > 1
    for number, example in enumerate(examples):
        object.__setattr__(example, "weight", 0.5 + number % 3)
    return examples


def compute(tiny_base, batch, **keys):
    base = load_causal_lm(tiny_base, "float32")
    recipe = make_recipe(alpha=0.3, **keys)
    frozen = load_causal_lm(tiny_base, "float32")
    model = add_lora(base, recipe)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would leave lora_A without a gradient
            torch.nn.init.normal_(parameter, std=0.3)
    store = PrefixStore(read_with_transformers(frozen), 10**9)
    computer = LossComputer(model.get_base_model(), store, recipe, Workers())
    loss = computer.accumulate_gradient(batch)
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return loss, gradients, computer


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 100])
def test_loss_and_gradient_are_the_same_in_micro_batches_of_any_size(tiny_base, batch, size):
    whole, expected, _ = compute(tiny_base, batch)
    parts, found, _ = compute(tiny_base, batch, micro_batch_size=size)
    for name in ("total", "hard", "soft", "weight_sum", "floor_flops", "prefix_tokens_read"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-5), name
    assert expected
    for name, value in expected.items():
        assert value.abs().max() > 0
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_a_micro_batch_normalised_by_itself_would_be_seen(tiny_base, batch):
    """The mistake this guards against: a mean of means, where every micro-batch counts the same."""
    whole, _, _ = compute(tiny_base, batch)
    alone = [compute(tiny_base, batch[i : i + 1])[0].total for i in range(len(batch))]
    assert sum(alone) / len(alone) != pytest.approx(whole.total, rel=1e-3)


def test_validation_does_not_depend_on_the_size_either(tiny_base, batch):
    found = [
        compute(tiny_base, batch, **keys)[2].measure_hard(batch).hard
        for keys in ({}, {"micro_batch_size": 2}, {"batch_size": 1})
    ]
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-5)


def test_a_whole_training_in_micro_batches_follows_the_same_curve(tiny_base):
    whole, parts = train(tiny_base), train(tiny_base, keys={"micro_batch_size": 1})
    assert parts.curve["loss"].to_list() == pytest.approx(whole.curve["loss"].to_list(), abs=1e-4)
    one, other = weights_of(whole), weights_of(parts)
    assert all((one[name] - other[name]).abs().max() < 1e-2 for name in one)


def test_patience_stops_after_epochs_that_did_not_improve(tiny_base, monkeypatch):
    from assets.students import training

    losses = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    monkeypatch.setattr(training._Run, "_validate", lambda *_: next(losses))
    stopped = train(tiny_base, keys={"epochs": 5, "patience": 2})
    assert (stopped.steps, stopped.best_epoch, stopped.is_stopped_early) == (20, 1, True)
    losses = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    patient = train(tiny_base, keys={"epochs": 5, "patience": 3})
    assert (patient.steps, patient.best_epoch, patient.is_stopped_early) == (25, 4, False)


def test_patience_without_validation_examples_never_stops(tiny_base):
    frame = make_frame()
    trained = train(tiny_base, frame=frame.filter(frame["split"] == "train"), keys={"patience": 1})
    assert (trained.steps, trained.is_stopped_early) == (15, False)


def test_the_validation_sample_is_a_choice(tiny_base):
    assert train(tiny_base, keys={"max_validation_examples": 2}).validation_count == 2


def test_nothing_to_train_on_is_an_error(tiny_base):
    with pytest.raises(InvalidInputError, match="no examples"):
        train(tiny_base, frame=make_frame().clear())
