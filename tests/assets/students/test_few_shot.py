"""Which examples stand for all: central ones, answers and refusals apart, the same every time."""

import itertools

import numpy as np
import pytest

from assets.students.few_shot import (
    OWN_INSTRUCTIONS,
    choose_medoids,
    choose_representative,
    read_examples,
    write_fixed_prompt,
    write_nearest_prompt,
)
from serving.pipeline.prompt import PromptFormat, read_sources_text
from tests.serving.fakes import HITS
from tests.serving.models.extractive.conftest import WordHashEmbedder
from tests.tiny_student import make_labelled


def make_pool(count=12):
    labelled = make_labelled(count)
    return read_examples(labelled.with_columns(refused=labelled["completion"] == "REFUSE"))


def draw_vectors(count, seed=0, dimension=8):
    vectors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def coverage(vectors, rows):
    return float((vectors @ vectors[list(rows)].T).max(axis=1).sum())


@pytest.mark.parametrize("seed", range(5))
def test_the_medoids_keep_what_a_greedy_choice_is_proven_to_keep(seed):
    vectors = draw_vectors(14, seed)
    found = choose_medoids(vectors, 3)
    best = max(coverage(vectors, rows) for rows in itertools.combinations(range(14), 3))
    floor = -14.0  # a greedy choice reaches 1 - 1/e of the gain over no choice at all
    assert coverage(vectors, found) - floor >= (1 - 1 / np.e) * (best - floor)
    assert len(set(found)) == 3
    assert choose_medoids(vectors, 3) == found


def test_each_group_of_questions_is_stood_for_by_one():
    centres = np.eye(8, dtype=np.float32)[:3]
    vectors = np.repeat(centres, [7, 4, 2], axis=0) + 0.1 * draw_vectors(13)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = choose_medoids(vectors, 3)
    assert [int(np.argmax(centres @ vectors[row])) for row in found] == [0, 1, 2], "largest first"


def test_the_first_medoid_is_the_most_central_and_blocks_change_nothing(monkeypatch):
    vectors = draw_vectors(30)
    found = choose_medoids(vectors, 6)
    assert found[0] == int(np.argmax((vectors @ vectors.T).sum(axis=1)))
    monkeypatch.setattr("assets.students.few_shot.BLOCK", 7)
    assert choose_medoids(vectors, 6) == found


def test_equal_vectors_give_distinct_rows():
    assert choose_medoids(np.ones((4, 1), np.float32), 4) == [0, 1, 2, 3]


def test_answers_and_refusals_are_chosen_apart_and_what_is_missing_is_left_out():
    pool, vectors = make_pool(), draw_vectors(12)
    rows = choose_representative(pool, vectors, examples=5, refusals=2)
    assert sum(pool[row].refused for row in rows) == 2
    assert len(set(rows)) == 5
    assert not pool[rows[-1]].refused
    answers = [row for row in range(12) if not pool[row].refused]
    only = choose_representative(
        [pool[row] for row in answers], vectors[answers], examples=5, refusals=2
    )
    assert len(only) == 5, "without refusals there are answers in their place"
    assert len(choose_representative(pool[:2], vectors[:2], examples=5, refusals=2)) == 2


def test_an_example_is_what_the_teacher_saw_and_said():
    pool = make_pool(4)
    labelled = make_labelled(4)
    for example, row in zip(pool, labelled.iter_rows(named=True), strict=True):
        assert example.question == row["question"]
        assert example.sources == read_sources_text(row["messages"])
        assert (example.answer, example.refused) == (
            row["completion"], row["completion"] == "REFUSE",
        )  # fmt: skip


def test_the_instructions_are_the_rules_of_the_one_prompt():
    request = PromptFormat().write_request("How?", HITS)
    system = request.messages[0]["content"]
    assert system == f"{OWN_INSTRUCTIONS}\n\nSources:\n{read_sources_text(request.messages)}"


def test_a_fixed_prompt_holds_the_chosen_and_a_nearest_one_the_pool():
    pool, embedder = make_pool(), WordHashEmbedder()
    vectors = embedder.embed([example.question for example in pool])
    fixed = write_fixed_prompt(pool, vectors, examples=4, refusals=1)
    assert (len(fixed.examples), fixed.is_nearest) == (4, False)
    nearest = write_nearest_prompt(pool, embedder, examples=4, refusals=1)
    assert nearest.examples == tuple(pool)
    assert (nearest.shown, nearest.refusals) == (4, 1)
    assert nearest.embedder_fingerprint == embedder.fingerprint
