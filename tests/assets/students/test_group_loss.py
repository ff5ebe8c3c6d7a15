"""The same loss where the teacher speaks of groups of student tokens."""

import pytest
import torch

from assets.students import loss_terms
from assets.students.loss import DistillationLossError, GroupTargets, distillation_loss
from tests.assets.students.test_loss import (
    HIDDEN,
    TOKENS,
    VOCABULARY,
    gradient,
    largest_tensor,
    make_case,
    repeat,
    run,
)

GROUPS = 4


def make_group_case(seed=0, *, scale=1.0):
    """Random disjoint groups over a shuffled vocabulary, some of two intervals, some padding."""
    case = make_case(seed, scale=scale)
    generator = torch.Generator().manual_seed(seed + 100)
    order = torch.randperm(VOCABULARY, generator=generator)
    bounds = torch.stack(
        [
            torch.randperm(VOCABULARY + 1, generator=generator)[:12].sort().values
            for _ in range(TOKENS)
        ]
    ).reshape(TOKENS, 6, 2)
    low, high = bounds[..., 0].clone(), bounds[..., 1].clone()
    low[:, 5] = high[:, 5] = 0  # padding
    group = torch.tensor([0, 1, 2, 1, 0, 0]).repeat(TOKENS, 1)
    masses = torch.rand(TOKENS, GROUPS + 1, generator=generator, dtype=torch.float64) + 0.05
    masses[:, 3] = 0.0  # a padded group
    logp = (masses / masses.sum(dim=1, keepdim=True)).log()
    case["soft"] = GroupTargets(low, high, group, logp[:, :GROUPS], logp[:, GROUPS], order)
    return case


def group_of(soft, row) -> torch.Tensor:
    """Return the group of every token id of one row, GROUPS for the tail, one token at a time."""
    labels = torch.full((VOCABULARY,), GROUPS)
    for low, high, group in zip(soft.low[row], soft.high[row], soft.group[row], strict=True):
        for position in range(int(low), int(high)):
            labels[soft.order[position]] = group
    return labels


def oracle(case):
    total = torch.zeros((), dtype=torch.float64)
    t, soft = case["temperature"], case["soft"]
    logits = case["hidden"] @ case["head_weight"].T
    for row in range(TOKENS):
        log_q = logits[row].log_softmax(0)
        labels = group_of(soft, row)
        real = [g for g in range(GROUPS) if torch.isfinite(soft.logp[row, g])]
        q = torch.stack([log_q[labels == g].logsumexp(0) for g in [*real, GROUPS]])
        p = torch.stack([*(soft.logp[row, g] for g in real), soft.tail_logp[row]])
        p, q = (p / t).log_softmax(0), (q / t).log_softmax(0)
        kl = (p.exp() * (p - q)).sum()
        a, y = case["alpha"][row], int(case["targets"][row])
        total = total + case["weight"][row] * (a * -log_q[y] + (1 - a) * t * t * kl)
    return total / case["normaliser"]


def test_equals_the_oracle_in_value_and_gradient():
    for seed in range(5):
        case = make_group_case(seed)
        hidden = case["hidden"].clone().requires_grad_()
        expected = oracle(case | {"hidden": hidden})
        (expected_gradient,) = torch.autograd.grad(expected, hidden)
        assert run(case).total.item() == pytest.approx(expected.item(), rel=1e-9)
        torch.testing.assert_close(gradient(case), expected_gradient, rtol=1e-8, atol=1e-10)


def test_groups_of_one_token_are_the_loss_over_tokens():
    case = make_case(2)
    rank = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(1))
    ids, logp, tail_logp = case["soft"]
    is_real = ids >= 0
    low = torch.where(is_real, rank[ids.clamp(min=0)], 0)
    grouped = GroupTargets(
        low,
        low + is_real,
        torch.arange(ids.shape[1]).expand_as(ids),
        logp.masked_fill(~is_real, -torch.inf),
        tail_logp,
        rank.argsort(),
    )
    assert run(case, soft=grouped).total.item() == pytest.approx(run(case).total.item(), rel=1e-12)
    torch.testing.assert_close(gradient(case, soft=grouped), gradient(case))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(temperature):
    case = make_group_case(4)
    log_q = (case["hidden"] @ case["head_weight"].T).log_softmax(dim=-1)
    mass = torch.zeros(TOKENS, GROUPS + 1, dtype=torch.float64)
    for row in range(TOKENS):
        mass[row].index_add_(0, group_of(case["soft"], row), log_q[row].exp())
    soft = case["soft"]._replace(logp=mass[:, :GROUPS].log(), tail_logp=mass[:, GROUPS].log())
    case |= {"soft": soft, "alpha": torch.zeros(TOKENS), "temperature": temperature}
    assert run(case).total.item() == pytest.approx(0.0, abs=1e-10)
    assert gradient(case).abs().max().item() < 1e-10


@pytest.mark.parametrize("chunk_tokens", [1, 3, 100])
def test_chunks_do_not_matter(chunk_tokens):
    case = make_group_case(5)
    torch.testing.assert_close(gradient(case, chunk_tokens=chunk_tokens), gradient(case))


def test_rows_labelled_a_few_at_a_time_are_the_same(monkeypatch):
    case = make_group_case(5)
    whole, exact = run(case), gradient(case)
    monkeypatch.setattr(loss_terms, "GROUP_ROWS", 4)
    assert run(case).total.item() == pytest.approx(whole.total.item(), rel=1e-12)
    torch.testing.assert_close(gradient(case), exact)


def test_a_group_the_student_finds_impossible_gives_a_finite_gradient():
    case = make_group_case(6, scale=40.0)
    low = {k: v.float() if torch.is_tensor(v) and v.is_floating_point() else v
           for k, v in case.items()}  # fmt: skip
    assert torch.isfinite(run(low).total)
    assert torch.isfinite(gradient(low)).all()


def test_rows_without_groups_are_hard_and_must_say_so():
    case = make_group_case(7)
    none = case["soft"]._replace(
        low=torch.zeros_like(case["soft"].low),
        high=torch.zeros_like(case["soft"].high),
        logp=torch.full_like(case["soft"].logp, -torch.inf),
    )
    alone = run(case, soft=none, alpha=torch.ones(TOKENS, dtype=torch.float64))
    plain = run(case, soft=None, alpha=torch.ones(TOKENS, dtype=torch.float64))
    assert alone.total.item() == pytest.approx(plain.total.item(), rel=1e-12)
    with pytest.raises(DistillationLossError, match="alpha 1"):
        run(case, soft=none)


def test_groups_over_another_vocabulary_are_refused():
    case = make_group_case(8)
    wrong = case["soft"]._replace(order=torch.arange(VOCABULARY - 1))
    with pytest.raises(DistillationLossError, match=f"groups over {VOCABULARY}"):
        distillation_loss(
            **(case | {"soft": wrong, "hidden": torch.zeros(TOKENS, HIDDEN).double()})
        )


def test_logits_of_all_tokens_never_exist_at_once():
    case = repeat(make_group_case(3), 12)
    tokens = 12 * TOKENS
    chunk = tokens // 6
    assert largest_tensor(case, chunk_tokens=chunk) <= chunk * VOCABULARY
    assert largest_tensor(case, chunk_tokens=tokens) == tokens * VOCABULARY, "it would be seen"


@pytest.mark.parametrize(
    ("name", "place", "value", "match"),
    [
        ("high", (2, 4), VOCABULARY + 1, "intervals within the vocabulary.*found 1 that are not"),
        ("low", (2, 0), -1, "intervals within the vocabulary.*found 1 that are not"),
        ("low", (2, 4), VOCABULARY, "from low to high.*found 1 that are not"),
        ("group", (3, 1), GROUPS, "groups that have a logprob.*found 1 of other groups"),
        ("group", (3, 1), -1, "groups that have a logprob.*found 1 of other groups"),
        ("low", (4, 1), 0, "share no token.*found 1 intervals that overlap"),
    ],
)
def test_groups_that_name_no_tokens_or_some_twice_are_refused(name, place, value, match):
    case = make_group_case(9)
    values = getattr(case["soft"], name).clone()
    values[place] = value
    with pytest.raises(DistillationLossError, match=match):
        run(case, soft=case["soft"]._replace(**{name: values}))


def test_intervals_may_touch_come_in_any_order_and_padding_may_say_anything():
    case = make_group_case(9)
    soft = case["soft"]
    low, high, group = soft.low.clone(), soft.high.clone(), soft.group.clone()
    low[0, 1] = high[0, 0]  # touches the interval before
    high[1, 4] = VOCABULARY
    low[:, 5] = high[:, 5] = 7  # empty, wherever it lies
    group[:, 5] = GROUPS + 3
    changed = soft._replace(low=low, high=high, group=group)
    plain = soft._replace(low=low, high=high)
    expected = run(case, soft=plain).total.item()
    turned = changed._replace(low=low.flip(1), high=high.flip(1), group=group.flip(1))
    assert run(case, soft=changed).total.item() == pytest.approx(expected, rel=1e-12)
    assert run(case, soft=turned).total.item() == pytest.approx(expected, rel=1e-12)
