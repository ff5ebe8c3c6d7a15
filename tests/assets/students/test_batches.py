import math

import numpy as np
import polars as pl
import pytest

from assets.students.batches import (
    choose_boosted,
    choose_validation,
    find_positions,
    make_examples,
    make_targets,
    plan_epoch,
)
from assets.students.recipe import Recipe
from serving.errors import InvalidInputError

BASE = "base-hash"


def frame(count=3, *, answer=(7, 8, 9, 2), cite=(False, True, True, False)):
    return pl.DataFrame(
        [
            {
                "example_id": f"e{i}",
                "split": "train",
                "weight": 1.0 + i,
                "prefix_ids": [1, 2],
                "suffix_ids": list(range(3, 5 + i)),
                "answer_ids": list(answer),
                "cite_mask": list(cite),
                "token_hash": f"h{i}",
            }
            for i in range(count)
        ]
    )


def logprobs(
    *, scorer="other", source="scorer", key="h0", soft_ok=(True,) * 4, y=(-0.1, -0.2, -3.0, -5.0)
):
    """Stored top 3 ids per row; row 0 holds the realised id 7 among them, the others do not."""
    probabilities = [[math.exp(-0.1), 0.02, 0.01]] + [[0.1, 0.04, 0.01]] * 3
    ids = [[7, 40, 41]] + [[40, 41, 42]] * 3
    outside = [1 - sum(p) - (0 if j == 0 else math.exp(y[j])) for j, p in enumerate(probabilities)]
    return pl.DataFrame(
        {
            "example_id": ["e0"],
            "token_hash": [key],
            "top_ids": [ids],
            "top_logprobs": [[[math.log(p) for p in row] for row in probabilities]],
            "y_logp": [list(y)],
            "tail_logp": [[math.log(max(1e-7, p)) for p in outside]],
            "soft_ok": [list(soft_ok)],
            "scorer_hash": [scorer],
            "source": [source],
            "alignment": ["exact"],
        }
    )


def recipe(**keys):
    return Recipe(**({"student": "s", "alpha": 0.3, "top_k": 3} | keys))


def first(stored=None, **keys):
    return make_examples(frame(), stored, recipe(**keys), BASE)[0]


def test_without_a_row_every_token_is_hard():
    for example in make_examples(frame(), logprobs(), recipe(), BASE)[1:]:
        assert set(example.alpha) == {1.0}
        assert not example.has_soft


def test_alpha_is_boosted_in_citations_and_doubt_moves_to_the_hard_side():
    alpha = first(logprobs()).alpha
    assert alpha[0] == pytest.approx(0.3)  # p(y) = 0.9: full trust
    assert alpha[1] == pytest.approx(0.6)  # a citation
    assert alpha[2] == pytest.approx(1 - 0.4 * math.exp(-3) / 0.1)  # p(y) = 0.05: half trust
    assert alpha[3] == pytest.approx(1 - 0.7 * math.exp(-5) / 0.1)
    assert first(logprobs(), citation_boost=1.0).alpha[1] == pytest.approx(0.3)
    assert first(logprobs(), citation_boost=9.0).alpha[1] == 1.0


def test_the_students_own_base_teaches_no_citations():
    alpha = first(logprobs(scorer=BASE)).alpha
    assert alpha[1:3] == (1.0, 1.0)
    assert alpha[0] == pytest.approx(0.3)


def test_rows_that_are_not_ok_are_hard():
    example = first(logprobs(soft_ok=(False, True, True, True)))
    assert example.alpha[0] == 1.0
    assert (example.soft.ids[0] == -1).all()
    assert (example.soft.ids[1] >= 0).all()


def test_a_hard_only_recipe_has_no_soft_targets():
    example = first(logprobs(), alpha=1.0)
    assert set(example.alpha) == {1.0}
    assert not example.has_soft


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_mass_of_dropped_ids_joins_the_tail(top_k):
    stored = logprobs()
    soft = first(stored, top_k=top_k).soft
    for j, (row, values, tail) in enumerate(zip(soft.ids, soft.logp, soft.tail_logp, strict=True)):
        is_real = row >= 0
        assert (7, 8, 9, 2)[j] in row
        assert is_real.sum() == len(set(row[is_real].tolist())) == top_k + (j > 0)
        assert math.exp(tail) + np.exp(values[is_real]).sum() == pytest.approx(1.0, abs=1e-6)


def test_stale_logprobs_are_refused():
    with pytest.raises(InvalidInputError, match="another prompt or tokenizer"):
        make_examples(frame(), logprobs(key="old"), recipe(), BASE)


def test_no_examples_and_empty_answers_are_refused():
    with pytest.raises(InvalidInputError, match="no examples"):
        make_examples(frame(0 + 1).clear(), None, recipe(), BASE)
    with pytest.raises(InvalidInputError, match="e0 has none"):
        make_examples(frame(answer=(), cite=()), None, recipe(), BASE)


def test_an_epoch_meets_every_example_once_in_a_seeded_order():
    examples = make_examples(frame(50), None, recipe(), BASE)
    batches = plan_epoch(examples, 8, seed=1, epoch=0)
    met = [e.example_id for batch in batches for e in batch]
    assert sorted(met) == sorted(e.example_id for e in examples)
    assert [len(b) for b in batches].count(8) == 6
    assert plan_epoch(examples, 8, seed=1, epoch=0) == batches
    assert plan_epoch(examples, 8, seed=1, epoch=1) != batches
    assert plan_epoch(examples, 8, seed=2, epoch=0) != batches
    spans = [max(e.trained_tokens for e in b) - min(e.trained_tokens for e in b) for b in batches]
    assert max(spans) <= 10, "a batch is alike in length"


def test_positions_point_at_the_state_before_each_answer_token():
    examples = make_examples(frame(2), logprobs(), recipe(), BASE)
    targets = make_targets(examples)
    width = max(e.trained_tokens for e in examples)  # 3 suffix + 4 answer - 1
    assert width == 6
    positions = find_positions(examples, [0, width])
    assert positions.tolist() == [1, 2, 3, 4, width + 2, width + 3, width + 4, width + 5]
    assert targets.targets.tolist() == [7, 8, 9, 2] * 2
    assert targets.weight.tolist() == [1.0] * 4 + [2.0] * 4
    assert targets.soft.ids.shape == (8, 4)
    assert (targets.soft.ids[4:] == -1).all()
    assert targets.soft.ids[1].tolist() == [40, 41, 42, 8]


def test_hard_only_targets_for_validation():
    targets = make_targets(make_examples(frame(2), logprobs(), recipe(), BASE), hard_only=True)
    assert targets.soft is None
    assert set(targets.alpha.tolist()) == {1.0}


def test_validation_is_a_bounded_seeded_choice():
    examples = make_examples(frame(50), None, recipe(), BASE)
    chosen = choose_validation(examples, 10, seed=1)
    assert len(chosen) == 10
    assert choose_validation(examples[::-1], 10, seed=1) == chosen
    assert choose_validation(examples, 10, seed=2) != chosen


def test_a_teacher_is_trusted_in_its_own_text_and_boosted_in_citations():
    alpha = first(logprobs(source="teacher")).alpha
    assert alpha == pytest.approx((0.3, 0.6, 0.6, 0.3)), "no doubt, at 0.007 as at 0.9"


def test_a_placebo_boosts_spans_of_the_same_lengths_elsewhere():
    cite = [False, True, True, False, True] + [False] * 30
    placebo = recipe(citation_boost_on="placebo")
    spans = {tuple(choose_boosted(cite, placebo, example_id=f"e{n}")) for n in range(20)}
    assert len(spans) > 10
    for boosted in spans:
        assert len(boosted) == len(cite)
        assert sum(boosted) == 3
        assert not boosted[-1], "the end of turn is no place for a citation"
    assert choose_boosted(cite, recipe(), example_id="e0") == cite
    assert choose_boosted(cite, placebo, example_id="e0") == choose_boosted(
        cite, placebo, example_id="e0"
    )
    full = [True] * 5 + [False]
    assert choose_boosted(full, placebo, example_id="e0") == full


def test_answers_that_nobody_scored_are_not_stale():
    unscored = logprobs(key="old", soft_ok=(False,) * 4)
    assert not any(e.has_soft for e in make_examples(frame(), unscored, recipe(), BASE))
