"""The refusal rule: learnt from what the teacher refused, certified on seeds it has not seen."""

import numpy as np
import polars as pl
import pytest

from assets import tables
from assets.labels.checks import the_refusal_rule_holds
from assets.labels.refusals import (
    apply_rule,
    gather_scores,
    learn_refusals,
    measure_share,
    read_refusal_rule,
)


def make_tables(scores, refused, *, per_seed=2, split="train"):
    rows = list(zip(scores, refused, strict=True))
    examples = pl.DataFrame(
        {
            "question_id": [f"{split}{n}" for n in range(len(rows))],
            "seed_id": [f"{split}-s{n // per_seed}" for n in range(len(rows))],
            "refused": [bool(flag) for _, flag in rows],
            "split": [split] * len(rows),
        }
    )
    retrieved = [
        [{"chunk_id": "c", "content_hash": "h", "score": s} for s in (score * 0.9, score)]
        for score, _ in rows
    ]
    schema = {name: tables.TEACHER_ANSWERS[name] for name in ("question_id", "retrieved")}
    answers = pl.DataFrame(
        {"question_id": examples["question_id"], "retrieved": retrieved}, schema=schema
    )
    return examples, answers


def draw(gap, count=120, seed=3):
    """Scores around 0.5 -+ gap for refused and answered questions of `count` seeds."""
    rng = np.random.default_rng(seed)
    refused = np.repeat(rng.random(count) < 0.4, 2)
    scores = np.clip(0.5 + np.where(refused, -gap, gap) + rng.normal(0, 0.08, 2 * count), 0, 1)
    return scores, refused


def test_a_score_that_foretells_refusals_becomes_the_rule():
    scores, refused = draw(gap=0.15)
    row = learn_refusals(*make_tables(scores, refused))
    rule = read_refusal_rule(row)
    assert 0.4 < row["minimum_score"] < 0.6
    assert row["refused_lower_ratio"] > 0.7
    assert row["refusal_count"] + row["answer_count"] == len(scores)
    unseen, answered = draw(gap=0.15, seed=4)
    assert np.mean(apply_rule(rule, unseen) == answered) > 0.9


@pytest.mark.parametrize("gap", [0.0, -0.15])
def test_a_score_that_says_nothing_or_the_opposite_gives_no_rule(gap):
    row = learn_refusals(*make_tables(*draw(gap=gap)))
    assert not row["is_certified"]
    assert row["minimum_score"] is None
    assert read_refusal_rule(row) is None


@pytest.mark.parametrize("flag", [True, False])
def test_too_few_seeds_of_an_outcome_give_no_rule(flag):
    scores, refused = draw(gap=0.2)
    odd = np.flatnonzero(refused == flag)[20:]  # 10 seeds are left
    kept = np.setdiff1d(np.arange(len(scores)), odd)
    assert not learn_refusals(*make_tables(scores[kept], refused[kept]))["is_certified"]


def test_held_out_splits_do_not_teach_the_rule():
    own = make_tables(*draw(gap=0.15))
    other = make_tables(*draw(gap=-0.4, seed=5), split="validation")
    joined = [pl.concat(pair) for pair in zip(own, other, strict=True)]
    assert learn_refusals(*joined) == learn_refusals(*own)


def test_shares_count_seeds_and_scores_are_the_best_of_each_question():
    examples, answers = make_tables([0.2, 0.9, 0.3, 0.4], [True, True, False, False])
    cases = gather_scores(examples, answers, "train")
    assert cases.scores.tolist() == [0.2, 0.9, 0.3, 0.4]
    share = measure_share(cases.scores < 0.5, cases, refused=True)
    assert (share.value, share.n) == (0.5, 1)


def test_the_check_says_what_is_missing():
    rows = [learn_refusals(*make_tables(*draw(gap=gap))) for gap in (0.15, 0.0)]
    results = [the_refusal_rule_holds(pl.DataFrame([r], schema=tables.REFUSAL_RULE)) for r in rows]
    assert [result.passed for result in results] == [True, False]
    assert "taught to refuse" in results[1].description
