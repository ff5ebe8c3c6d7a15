"""What `bench/clustering.py` counts, on seeds small enough to count by hand."""

import numpy as np
import pytest

from bench.clustering import (
    ARMS,
    REWORDED_COSINE,
    Seeds,
    Terms,
    choose_medoids,
    count_calls,
    draw_edit,
    measure_arm,
    turn,
)

TERMS = Terms(size=4, paraphrases=8)


def make_seeds(count: int = 24) -> Seeds:
    vectors = np.random.default_rng(1).standard_normal((count, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Seeds(tuple(f"s{n}" for n in range(count)), (0,) * count, vectors)


def test_a_medoid_costs_its_rewording_and_every_paraphrase_twice():
    assert TERMS.calls_per_medoid == 17
    assert TERMS.count_full(260) == 65 * 17 + 260 * 2


def test_a_new_medoid_and_a_new_seed_are_counted_once():
    seeds = make_seeds(8)
    before, after = seeds.take(range(6)), seeds
    found = {6: [0, 1], 8: [0, 7]}
    assert count_calls(before, after, lambda s: found[len(s.ids)], TERMS) == (1, 17 + 2 * 2)
    assert count_calls(after, after, lambda s: found[len(s.ids)], TERMS) == (0, 0)


def test_a_reworded_medoid_is_another_text_under_its_id():
    seeds = make_seeds(8)
    reworded = Seeds(seeds.ids, (1, *seeds.versions[1:]), seeds.vectors)
    assert count_calls(seeds, reworded, lambda _: [0, 3], TERMS) == (1, 17 + 2)


@pytest.mark.parametrize(("kind", "sizes"), [("added", (21, 24)), ("replaced", (21, 21))])
def test_an_edit_adds_or_replaces_so_many_seeds(kind, sizes):
    before, after = draw_edit(make_seeds(), kind, 3, draw=5)
    assert (len(before.ids), len(after.ids)) == sizes
    assert len(set(after.ids) - set(before.ids)) == 3


def test_a_rewording_turns_so_many_vectors_by_so_much():
    seeds = make_seeds()
    before, after = draw_edit(seeds, "reworded", 3, draw=5)
    cosines = (before.vectors * after.vectors).sum(axis=1)
    assert sorted(cosines)[:3] == pytest.approx([REWORDED_COSINE] * 3, abs=1e-5)
    assert np.count_nonzero(cosines < 0.999) == sum(after.versions) == 3
    assert np.linalg.norm(turn(seeds.vectors[0], np.random.default_rng(1))) == pytest.approx(1)


def test_every_cluster_of_another_method_has_one_medoid_of_its_own():
    seeds = make_seeds()
    labels = np.arange(24) % 5
    medoids = choose_medoids(seeds.ids, seeds.vectors, labels)
    assert [labels[row] for row in medoids] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_forms_as_many_clusters_and_is_the_same_again(name):
    figures = measure_arm(make_seeds(), ARMS[name], TERMS, count=2, draws=2)
    assert figures["medoid_count"] == 6
    assert figures == measure_arm(make_seeds(), ARMS[name], TERMS, count=2, draws=2)
    assert 0 < figures["added"]["share_mean"] <= figures["added"]["share_max"]
