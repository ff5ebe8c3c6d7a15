import math

import polars as pl
import pytest
import torch

from assets import tables
from assets.labels.local_scoring import LocalScorer
from assets.labels.logprob_rows import check_logprob_rows
from assets.labels.scoring import score_answers
from assets.students.training_set import build_training_set
from serving.errors import InvalidInputError
from serving.models.causal_lm import hash_base_model
from tests.tiny_student import make_labelled, make_tokenizer

LOOSE = {"minimum_mean_probability": 0.0}  # a random model gives the teacher's tokens nothing


@pytest.fixture(scope="module")
def scorer(tiny_base):
    return LocalScorer.load(tiny_base, scorer_id="tiny@0", dtype="float32")


@pytest.fixture(scope="module")
def scored(scorer):
    return score_answers(make_labelled(6), scorer, top_k=5, **LOOSE)


def test_row_j_predicts_token_j_under_the_students_exact_prompt(scorer, scored):
    built = build_training_set(make_labelled(6), scorer.tokenizer, context_tokens=512).frame
    assert scored.schema == tables.TEACHER_LOGPROBS
    for row, trained in zip(scored.iter_rows(named=True), built.iter_rows(named=True), strict=True):
        assert row["token_hash"] == trained["token_hash"]
        assert row["token_ids"] == trained["answer_ids"]
        assert row["cite"] == trained["cite_mask"]
        prompt = trained["prefix_ids"] + trained["suffix_ids"]
        with torch.no_grad():
            logits = scorer.model(torch.tensor([prompt + row["token_ids"]])).logits[0].double()
        logprobs = logits.log_softmax(dim=-1)[len(prompt) - 1 : -1]
        for j, token in enumerate(row["token_ids"]):
            assert row["y_logp"][j] == pytest.approx(logprobs[j, token].item(), abs=1e-3)
            assert row["top_ids"][j] == logprobs[j].topk(5).indices.tolist()
            mass = sum(logprobs[j, i].exp().item() for i in {*row["top_ids"][j], token})
            assert math.exp(row["tail_logp"][j]) == pytest.approx(1 - mass, abs=1e-4)


def test_the_scorer_is_recorded(scored, tiny_base):
    row = scored.row(0, named=True)
    assert row["scorer_hash"] == hash_base_model(tiny_base)
    assert (row["scorer_id"], row["scorer_dtype"]) == ("tiny@0", "float32")
    assert (row["source"], row["alignment"], row["temperature"]) == ("scorer", "exact", 1.0)


def test_a_seeded_sample_is_scored_and_the_rest_has_no_row(scorer, scored):
    some = score_answers(make_labelled(6), scorer, top_k=5, maximum_examples=2, seed=1, **LOOSE)
    assert some.height == 2
    ids = some["example_id"].to_list()
    assert some.equals(scored.filter(pl.col("example_id").is_in(ids)))
    other = score_answers(make_labelled(6), scorer, top_k=5, maximum_examples=2, seed=5, **LOOSE)
    assert other["example_id"].to_list() != ids


def test_examples_past_the_context_get_no_row(scorer):
    assert score_answers(make_labelled(2), scorer, context_tokens=10, **LOOSE).height == 0


def test_progress_is_told(scorer):
    told = []

    class Listener:
        def advance(self, _description, done, total, _note=""):
            told.append((done, total))

    score_answers(make_labelled(3), scorer, progress=Listener(), **LOOSE)
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_mean_probability_under_the_floor_is_refused(scorer):
    with pytest.raises(InvalidInputError, match="mean probability"):
        score_answers(make_labelled(6), scorer, minimum_mean_probability=0.5)


def spoil(scored, **columns):
    rows = scored.to_dicts()
    for name, change in columns.items():
        rows[2][name] = change(rows[2][name])
    return pl.DataFrame(rows, schema=tables.TEACHER_LOGPROBS)


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"y_logp": lambda v: v[:-1]}, "one per answer token"),
        ({"top_ids": lambda v: v[1:]}, "one per answer token"),
        ({"cite": lambda v: [*v, False]}, "one per answer token"),
        ({"token_ids": lambda _: [], "y_logp": lambda _: []}, "at least 1"),
        ({"top_ids": lambda v: [[7] * 5, *v[1:]]}, "distinct"),
        ({"top_logprobs": lambda v: [[-0.1, -0.2, -3, -3, -3], *v[1:]]}, "sum to at most 1"),
        ({"top_logprobs": lambda v: [[math.nan] * 5, *v[1:]]}, "sum to at most 1"),
        ({"top_logprobs": lambda v: [v[0][::-1], *v[1:]]}, "descending"),
        ({"tail_logp": lambda v: [*v[1:], v[0]]}, "a tail that sum to 1"),
        ({"tail_logp": lambda v: [math.nan, *v[1:]]}, "a tail that sum to 1"),
        ({"temperature": lambda _: 2.0}, "temperature 2"),
        ({"token_ids": lambda v: [*v[:-2], 9, v[-1]]}, "tokens of"),
        ({"token_ids": lambda v: [*v[1:], v[0]]}, "tokens of"),
    ],
)
def test_the_writer_refuses(scored, columns, match):
    examples = make_labelled(6)
    completions = dict(zip(examples["example_id"], examples["completion"], strict=True))
    options = {"completions": completions, "tokenizer": make_tokenizer(), **LOOSE}
    check_logprob_rows(scored, **options)
    with pytest.raises(InvalidInputError, match=match) as caught:
        check_logprob_rows(spoil(scored, **columns), **options)
    assert "e002" in str(caught.value)
