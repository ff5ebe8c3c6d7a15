import math
from dataclasses import replace

import polars as pl
import pytest
import torch

from assets import tables
from assets.labels.local_scoring import LocalScorer
from assets.labels.scoring import score_answers
from assets.students import prefixes, steps, training, weights
from assets.students.diverging import DivergedError
from assets.students.loss import DistillationLossError
from assets.students.recipe import Recipe
from assets.students.training import (
    learning_rate_at,
    train_adapter,
)
from assets.students.training_set import build_training_set
from serving.models.causal_lm import hash_base_model, load_causal_lm
from tests.tiny_student import make_labelled, make_tokenizer

SPLITS = ("train", "train", "train", "train", "validation")


def recipe(**keys):
    defaults = {
        "student": "tiny", "rank": 4, "lora_alpha": 8, "learning_rate": 1e-2, "batch_size": 4,
        "epochs": 3, "alpha": 1.0, "dtype": "float32",
    }  # fmt: skip
    return Recipe(**(defaults | keys))


def tokenise(activation="question", count=24):
    examples = make_labelled(count, splits=SPLITS)
    return build_training_set(
        examples, make_tokenizer(), context_tokens=512, activation=activation
    ).frame


@pytest.fixture(scope="module")
def scored(tiny_base):
    scorer = LocalScorer.load(tiny_base, scorer_id="tiny", dtype="float32")
    return score_answers(make_labelled(24, splits=SPLITS), scorer, minimum_mean_probability=0.0)


def train(tiny_base, logprobs=None, frame=None, **options):
    keys = options.pop("keys", {})
    return train_adapter(
        load_causal_lm(tiny_base, "float32"),
        tokenise(keys.get("activation", "question")) if frame is None else frame,
        logprobs,
        recipe(**keys),
        base_hash=options.pop("base_hash", hash_base_model(tiny_base)),
        **options,
    )


def weights_of(trained):
    return {n: p.detach() for n, p in trained.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("activation", ["question", "all"])
def test_it_learns(tiny_base, activation):
    told = []
    trained = train(tiny_base, keys={"activation": activation}, on_step=told.append)
    curve = trained.curve
    assert curve.schema == tables.TRAINING_CURVE
    assert curve["step"].to_list() == list(range(1, trained.steps + 1))
    assert trained.steps == 3 * math.ceil(20 / 4)
    assert curve["loss"][-3:].mean() < 0.8 * curve["loss"][:3].mean()
    validation = curve["validation_loss"].drop_nulls().to_list()
    assert len(validation) == 3
    assert validation[-1] < validation[0]
    assert trained.best_validation_loss == min(validation)
    assert (trained.train_count, trained.validation_count, trained.soft_count) == (20, 4, 0)
    assert [report.step for report in told] == curve["step"].to_list()
    assert all(report.total_steps == trained.steps for report in told)
    assert told[-1].eta_seconds == pytest.approx(0, abs=0.5)
    assert "left" in told[0].to_line()


def test_the_frozen_base_reads_the_prefix_and_only_the_suffix_is_adapted(tiny_base, monkeypatch):
    """The first loss equals a plain forward of the base over whole prompts, example by example."""
    frame = tokenise(count=4)
    seen = {}
    read = prefixes.read_prefix

    def spy(model, ids):
        assert not any("lora" in name for name, _ in model.named_modules())
        seen["states"] = read(model, ids)
        return seen["states"]

    monkeypatch.setattr(prefixes, "read_prefix", spy)
    trained = train(tiny_base, frame=frame, keys={"epochs": 1, "max_steps": 1})
    row = frame.filter(pl.col("split") == "train").row(0, named=True)
    ids = row["prefix_ids"] + row["suffix_ids"] + row["answer_ids"]
    base = load_causal_lm(tiny_base, "float32")
    losses, weights = 0.0, 0
    for row in frame.filter(pl.col("split") == "train").iter_rows(named=True):
        ids = row["prefix_ids"] + row["suffix_ids"] + row["answer_ids"]
        with torch.no_grad():
            logits = base(torch.tensor([ids])).logits[0, -len(row["answer_ids"]) - 1 : -1]
        targets = torch.tensor(row["answer_ids"])
        losses += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        weights += len(targets)
    assert trained.curve["loss"][0] == pytest.approx(losses / weights, rel=1e-4)
    assert seen["states"].keys.requires_grad is False


def test_the_base_is_not_trained(tiny_base):
    base = load_causal_lm(tiny_base, "float32")
    before = {name: p.clone() for name, p in base.named_parameters()}
    trained = train_adapter(base, tokenise(), None, recipe(), base_hash="x")
    after = {
        name.replace(".base_layer", ""): p
        for name, p in trained.model.get_base_model().named_parameters()
        if "lora_" not in name
    }
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_same_recipe_gives_the_same_weights_and_another_seed_does_not(tiny_base):
    torch.manual_seed(1)
    one = weights_of(train(tiny_base))
    torch.manual_seed(2)  # the caller's generator must not matter
    state = torch.get_rng_state()
    again = weights_of(train(tiny_base, frame=tokenise().sample(fraction=1, shuffle=True, seed=1)))
    assert torch.equal(torch.get_rng_state(), state)
    other = weights_of(train(tiny_base, keys={"seed": 8}))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_prefixes_beyond_the_memory_are_read_again_and_change_nothing(tiny_base, monkeypatch):
    reads = []
    read = prefixes.read_prefix
    monkeypatch.setattr(
        prefixes, "read_prefix", lambda model, ids: reads.append(tuple(ids)) or read(model, ids)
    )
    kept = weights_of(train(tiny_base))
    assert len(reads) == len(set(reads)), "each prefix is read once across epochs and examples"
    count = len(reads)
    reads.clear()
    forgotten = weights_of(train(tiny_base, prefix_bytes=0))
    assert len(reads) > 3 * count
    assert all(torch.equal(kept[name], forgotten[name]) for name in kept)


def test_prefixes_read_by_the_compiled_base_train_the_same_student(tiny_base, tmp_path):
    expected = train(tiny_base)
    opened = []

    def open_reader(frozen):
        opened.append(prefixes.open_prefix_reader("openvino", frozen, tiny_base, tmp_path))
        return opened[-1]

    found = train(tiny_base, open_reader=open_reader)
    assert any("openvino-prefix" in folder.name for folder in tmp_path.iterdir())
    assert found.curve["loss"].to_list() == pytest.approx(
        expected.curve["loss"].to_list(), abs=1e-4
    )
    for name, value in weights_of(expected).items():
        assert torch.allclose(weights_of(found)[name], value, atol=2e-3), name
    states = opened[0]([5, 6, 7])
    own = prefixes.read_with_transformers(load_causal_lm(tiny_base, "float32"))([5, 6, 7])
    assert torch.allclose(states.keys, own.keys, atol=1e-4)
    assert torch.allclose(states.values, own.values, atol=1e-4)
    assert len(opened[0]([])) == 0


def test_soft_targets_are_used_where_rows_match(tiny_base, scored):
    keys = {"alpha": 0.3, "epochs": 1}
    trained = train(tiny_base, scored, keys=keys, base_hash="another")
    assert trained.soft_count == 20
    assert trained.curve["soft_loss"][0] == pytest.approx(0.0, abs=1e-3), "the base scored itself"
    assert trained.curve["soft_loss"][-1] > 0
    assert trained.curve["loss"][0] < trained.curve["hard_loss"][0]
    some = scored.head(3).vstack(scored.tail(1).with_columns(token_hash=pl.lit("stale")))
    assert train(tiny_base, some, keys=keys, base_hash="another").soft_count == 3
    assert train(tiny_base, scored, keys=keys | {"alpha": 1.0}).soft_count == 0
    hard = train(tiny_base, None, keys=keys)
    assert hard.curve["soft_loss"].null_count() == hard.steps


def test_max_steps_ends_early_and_still_validates(tiny_base):
    trained = train(tiny_base, keys={"max_steps": 7})
    assert trained.steps == trained.curve.height == 7
    assert trained.curve["validation_loss"].drop_nulls().len() == 2


def test_the_best_epoch_is_kept(tiny_base, monkeypatch):
    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(training._Run, "_validate", lambda *_: next(losses))
    kept = []
    copy = weights.TrainedWeights.copy
    monkeypatch.setattr(
        weights.TrainedWeights, "copy", lambda held: kept.append(copy(held)) or kept[-1]
    )
    trained = train(tiny_base)
    assert (trained.best_epoch, trained.best_validation_loss) == (1, 1.0)
    assert len(kept) == 2
    assert all(torch.equal(value, kept[1][name]) for name, value in weights_of(trained).items())


def test_without_validation_examples_the_last_epoch_is_kept(tiny_base):
    frame = tokenise().filter(pl.col("split") == "train")
    trained = train(tiny_base, frame=frame)
    assert (trained.best_epoch, trained.best_validation_loss) == (2, None)
    assert trained.curve["validation_loss"].null_count() == trained.steps


def test_a_loss_that_is_no_number_stops_with_the_batch_and_the_weights_before(
    tiny_base, monkeypatch
):
    told = []
    real = steps.distillation_loss

    def poisoned(*arguments, **options):
        loss = real(*arguments, **options)
        if len(told) == 3:  # the third step was reported, so this is the fourth
            loss.total.data.fill_(math.nan)
        return loss

    monkeypatch.setattr(steps, "distillation_loss", poisoned)
    with pytest.raises(DivergedError, match=r"step 4 of 15.*examples e0\d\d, e0\d\d") as caught:
        train(tiny_base, on_step=lambda report: told.append(report.step))
    assert told == [1, 2, 3]
    good = caught.value.last_good
    assert good
    assert all(torch.isfinite(value).all() for value in good.values())
    assert any(value.abs().sum() > 0 for name, value in good.items() if "lora_B" in name)


@pytest.mark.parametrize(("value", "epoch"), [(math.nan, 2), (math.inf, 1)])
def test_a_validation_loss_that_is_no_number_stops_and_names_its_examples(
    tiny_base, monkeypatch, value, epoch
):
    """A loss of NaN is never the lowest: unseen, the last weights would pass for the best."""
    told, frame = [], tokenise()
    held_out = frame.filter(pl.col("split") == "validation").sort("example_id")
    bad = held_out.row(0, named=True)
    real = steps.distillation_loss

    def poisoned(states, head, targets, **options):
        loss = real(states, head, targets, **options)
        is_epoch = len(told) >= 5 * epoch - 1  # five steps an epoch; the last waits for this
        has_bad = set(bad["answer_ids"]) <= set(targets.tolist())
        if torch.is_grad_enabled() or not is_epoch or not has_bad:
            return loss
        return replace(loss, hard_sum=value)

    monkeypatch.setattr(steps, "distillation_loss", poisoned)
    with pytest.raises(DivergedError, match=f"validating epoch {epoch}, after step") as caught:
        train(tiny_base, frame=frame, on_step=lambda report: told.append(report.step))
    assert bad["example_id"] in str(caught.value)
    good = caught.value.last_good
    assert all(torch.isfinite(tensor).all() for tensor in good.values())
    assert any(tensor.abs().sum() > 0 for name, tensor in good.items() if "lora_B" in name)


@pytest.mark.parametrize(
    "keys", [{}, {"packing": True, "gradient_checkpointing": True}], ids=["plain", "packed"]
)
def test_a_bfloat16_base_trains_adapters_and_optimizer_state_of_float32(
    tiny_base, monkeypatch, keys
):
    """Steps are smaller than bfloat16 tells apart, so weights kept in it would not move."""
    made = []

    class Kept(weights.TrainedWeights):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(training, "TrainedWeights", Kept)
    base = load_causal_lm(tiny_base, "bfloat16")
    trained = train_adapter(base, tokenise(), None, recipe(dtype="bfloat16", **keys), base_hash="x")
    frozen = {p.dtype for p in trained.model.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16}
    assert {value.dtype for value in weights_of(trained).values()} == {torch.float32}
    state = {name: value for name, value in made[0].to_tensors().items() if "optimizer" in name}
    assert {name.split("/")[0] for name in state} == {
        "optimizer.step", "optimizer.exp_avg", "optimizer.exp_avg_sq",
    }  # fmt: skip
    assert {value.dtype for value in state.values()} == {torch.float32}
    losses = trained.curve["loss"]
    assert losses[-3:].mean() < 0.8 * losses[:3].mean()


def test_a_huge_gradient_is_scaled_down_before_the_step_and_a_small_one_is_not(
    tiny_base, monkeypatch
):
    factors, taken, told = iter([1e6, 1e-6]), [], []
    real, step = steps.distillation_loss, weights.TrainedWeights.take_step

    def scaled(*arguments, **options):
        loss = real(*arguments, **options)
        return replace(loss, total=loss.total * next(factors, 1.0))

    def measured(held, rate):
        gradients = [p.grad for p in held._parameters.values()]
        taken.append(torch.stack([g.norm() for g in gradients]).norm().item())
        step(held, rate)

    monkeypatch.setattr(steps, "distillation_loss", scaled)
    monkeypatch.setattr(weights.TrainedWeights, "take_step", measured)
    train(tiny_base, keys={"max_steps": 2}, on_step=told.append)
    huge, small = (report.grad_norm for report in told)
    assert huge > 1e3, "the report has the norm as it was"
    assert taken[0] == pytest.approx(weights.MAXIMUM_GRADIENT_NORM, rel=1e-4)
    assert taken[0] <= weights.MAXIMUM_GRADIENT_NORM * (1 + 1e-6)
    assert taken[1] == pytest.approx(small, rel=1e-4)
    assert 0 < small < 1e-3


def test_a_target_that_would_train_the_head_is_refused(tiny_base):
    with pytest.warns(UserWarning, match="tied"), pytest.raises(DistillationLossError):
        train(tiny_base, keys={"target_modules": ["q_proj", "embed_tokens"]})


def test_the_learning_rate_warms_up_and_decays_to_nearly_nothing():
    rates = [learning_rate_at(step, 100, 1.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) == 4
    assert rates[-1] < 0.02
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert learning_rate_at(0, 1, 1.0) == 1.0
    assert all(rate > 0 for rate in rates)
