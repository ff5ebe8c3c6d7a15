"""Exact, grouped and hard-only answers in one batch, through the real loss."""

import math

import numpy as np
import polars as pl
import pytest
import torch

from assets.labels.byte_vocabulary import ByteVocabulary
from assets.students.batches import make_examples, make_targets
from assets.students.loss import GroupTargets, SoftTargets, distillation_loss
from assets.students.soft_rows import ByteOrder, find_byte_order
from serving.errors import InvalidInputError
from tests.assets.students.test_batches import BASE, frame, logprobs, recipe
from tests.tiny_student import make_tokenizer

HIDDEN, TOKENS, HEAD_ROWS = 8, 60, 64
VOCABULARY = ByteVocabulary(
    [f"{(37 * i) % TOKENS:02d}".encode() for i in range(TOKENS - 1)] + [None]
)
BYTE_ORDER = ByteOrder.of(VOCABULARY, HEAD_ROWS)


def grouped(example_id="e1", key="h1", vocabulary_id=VOCABULARY.fingerprint):
    """Two soft rows of two and three groups; the other two tokens of the answer are hard."""
    return pl.DataFrame(
        {
            "example_id": [example_id],
            "token_hash": [key],
            "soft_ok": [[True, False, True, False]],
            "y_logp": [[math.log(0.5), None, math.log(0.2), None]],
            "tail_logp": [[math.log(0.3), None, math.log(0.1), None]],
            "group_low": [[[0, 5, 9], [], [2, 30, 40], []]],
            "group_high": [[[5, 9, 20], [], [3, 40, 41], []]],
            "group_number": [[[0, 1, 0], [], [0, 1, 2], []]],
            "group_logprobs": [
                [[math.log(0.5), math.log(0.2)], [], [math.log(p) for p in (0.2, 0.6, 0.1)], []]
            ],
            "vocabulary_id": [vocabulary_id],
            "scorer_hash": ["teacher"],
            "source": ["teacher"],
            "alignment": ["bytes"],
        }
    )


def make(stored, **options):
    return make_examples(frame(), stored, recipe(), BASE, byte_order=BYTE_ORDER, **options)


def both():
    return pl.concat([logprobs(), grouped()], how="diagonal")


def compute(examples, *, offset=0, normaliser=1.0, soft=None):
    """Return the loss of a batch and its gradient, with states that belong to the tokens."""
    generator = torch.Generator().manual_seed(3)
    head = torch.randn(HEAD_ROWS, HIDDEN, generator=generator)
    states = torch.randn(99, HIDDEN, generator=generator)
    targets = make_targets(examples)
    hidden = states[offset : offset + len(targets.targets)].clone().requires_grad_()
    loss = distillation_loss(
        hidden,
        head,
        targets.targets,
        soft=targets.soft if soft is None else soft,
        alpha=targets.alpha,
        weight=targets.weight,
        normaliser=normaliser,
    )
    loss.total.backward()
    return loss, hidden.grad


def test_exact_grouped_and_hard_answers_in_one_batch_equal_each_alone():
    examples = make(both())
    assert [type(e.soft).__name__ for e in examples] == ["SoftRows", "GroupRows", "NoneType"]
    assert isinstance(make_targets(examples).soft, GroupTargets)
    assert isinstance(make_targets(examples[:1]).soft, SoftTargets)
    assert make_targets(examples[2:]).soft is None
    together, gradient = compute(examples, normaliser=24.0)
    alone = [compute([e], offset=4 * n, normaliser=24.0) for n, e in enumerate(examples)]
    for name in ("total", "hard_sum", "soft_sum", "weight_sum", "soft_weight_sum"):
        values = [read(loss, name) for loss, _ in alone]
        assert read(together, name) == pytest.approx(sum(values), rel=1e-5), name
    torch.testing.assert_close(gradient, torch.cat([part for _, part in alone]))


def read(loss, name):
    return torch.as_tensor(getattr(loss, name)).item()


def test_order_within_a_batch_does_not_matter():
    examples = make(both())
    targets = [make_targets(part).soft for part in (examples, [*examples[1:], examples[0]])]
    torch.testing.assert_close(targets[0].logp[:4], targets[1].logp[8:])
    torch.testing.assert_close(targets[0].low[:4], targets[1].low[8:])


def test_groups_reach_the_loss_as_they_were_stored():
    soft = make_targets(make(both()))
    groups, alpha = soft.soft, soft.alpha.reshape(3, 4)
    assert alpha[1].tolist() == pytest.approx([0.3, 1.0, 0.6, 1.0])
    assert (groups.low[4].tolist()[:3], groups.high[4].tolist()[:3]) == ([0, 5, 9], [5, 9, 20])
    assert groups.group[4].tolist()[:3] == [0, 1, 0]
    masses = groups.logp[4].exp().tolist()
    assert masses == pytest.approx([0.5, 0.2, 0.0, 0.0])
    assert groups.logp[5].isinf().all(), "a hard token has no group"
    assert sorted(groups.order.tolist()) == list(range(HEAD_ROWS))
    for j in range(4):  # each id of an exact answer is a group of its own
        low, high = groups.low[j], groups.high[j]
        ids = [int(groups.order[a]) for a, b in zip(low, high, strict=True) if b > a]
        assert ids == [i for i in make(both())[0].soft.ids[j].tolist() if i >= 0]


@pytest.mark.parametrize(
    ("top_k", "position", "kept", "tail"),
    [
        (3, 2, {(2, 3): 0.2, (30, 40): 0.6, (40, 41): 0.1}, 0.1),
        (2, 2, {(2, 3): 0.2, (30, 40): 0.6}, 0.2),
        (1, 35, {(30, 40): 0.6}, 0.4),
        (1, 40, {(30, 40): 0.6, (40, 41): 0.1}, 0.3),  # the realised token's is the lightest
        (1, 50, {(30, 40): 0.6}, 0.4),  # the realised token is of the tail
    ],
)
def test_top_k_keeps_the_heaviest_groups_and_the_realised_one(top_k, position, kept, tail):
    answers = frame(answer=(7, 8, int(BYTE_ORDER.order[position]), 2))
    keys = recipe(top_k=top_k)
    (rows,) = (
        e.soft
        for e in make_examples(answers, grouped(), keys, BASE, byte_order=BYTE_ORDER)
        if e.soft
    )
    found = {
        (low, high): math.exp(rows.logp[2, group])
        for low, high, group in zip(rows.low[2], rows.high[2], rows.group[2], strict=True)
        if low < high
    }
    assert found == pytest.approx(kept)
    assert math.exp(rows.tail_logp[2]) == pytest.approx(tail)
    mass = np.exp(rows.logp).sum(axis=1) + np.exp(rows.tail_logp)
    assert mass.tolist() == pytest.approx([1.0] * 4), "what leaves a group joins the tail"


def test_a_shifted_order_changes_the_loss():
    examples = make(both())
    soft = make_targets(examples).soft
    shifted = soft._replace(order=soft.order.roll(1))
    right, wrong = compute(examples)[0].total, compute(examples, soft=shifted)[0].total
    assert not torch.isclose(right, wrong, rtol=1e-3)


@pytest.mark.parametrize(
    "options", [{"byte_order": None}, {"byte_order": ByteOrder("other", np.arange(HEAD_ROWS))}]
)
def test_groups_without_their_vocabulary_are_refused(options):
    with pytest.raises(InvalidInputError, match="intervals of"):
        make_examples(frame(), grouped(), recipe(), BASE, **options)


def test_the_byte_order_is_read_only_where_groups_need_it():
    tokenizer = make_tokenizer()
    assert find_byte_order(None, tokenizer, 500) is None
    assert find_byte_order(logprobs(), object(), 500) is None
    found = find_byte_order(grouped(), tokenizer, 500)
    assert found.fingerprint == ByteVocabulary.of(tokenizer).fingerprint
    assert sorted(found.order.tolist()) == list(range(500))
    assert found.rank[found.order[17]] == 17
