"""Clusters: related questions together, one medoid each, and little moves when little changes."""

import numpy as np
import pytest

from assets.paraphrases.clustering import MEDOID_TIE_DISTANCE, cluster_questions


def unit(rows) -> np.ndarray:
    vectors = np.asarray(rows, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def name(count: int) -> list[str]:
    return [f"s{n:03}" for n in range(count)]


def topics(count: int, *, size: int, spread: float = 0.6) -> np.ndarray:
    """Return `count` topics of `size` questions each, in 32 dimensions."""
    draw = np.random.default_rng(3)
    centres = unit(draw.normal(size=(count, 32)))
    offsets = unit(draw.normal(size=(count * size, 32)))
    return unit(np.repeat(centres, size, axis=0) + spread * offsets)


def medoids(ids: list[str], vectors: np.ndarray) -> set[str]:
    members = cluster_questions(ids, vectors, questions_per_cluster=4)
    return {name for name, member in zip(ids, members, strict=True) if member.is_medoid}


def test_near_questions_share_a_cluster_and_every_distance_is_to_the_medoid():
    vectors = unit([[1, 0, 0], [1, 0.2, 0], [1, 0.1, 0], [0, 0, 1], [0, 0.1, 1], [0, 0.2, 1]])
    members = cluster_questions(name(6), vectors, questions_per_cluster=3)
    assert [m.cluster_id for m in members] == [0, 0, 0, 1, 1, 1]
    for cluster in (slice(0, 3), slice(3, 6)):
        (medoid,) = [row for row in range(6)[cluster] if members[row].is_medoid]
        assert members[medoid].distance == 0
        for row in range(6)[cluster]:
            expected = 1 - vectors[row] @ vectors[medoid]
            assert members[row].distance == pytest.approx(expected, abs=1e-6)


def test_the_medoid_is_as_central_as_the_most_central_member():
    vectors = topics(20, size=4)
    members = cluster_questions(name(80), vectors, questions_per_cluster=4)
    for cluster in {m.cluster_id for m in members}:
        rows = [row for row, m in enumerate(members) if m.cluster_id == cluster]
        if len(rows) < 2:
            continue
        distances = 1 - vectors[rows] @ vectors[rows].T
        mean = distances.sum(axis=1) / (len(rows) - 1)
        (chosen,) = [n for n, row in enumerate(rows) if members[row].is_medoid]
        assert mean[chosen] <= mean.min() + MEDOID_TIE_DISTANCE + 1e-5


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (4, 1), (5, 2), (80, 20), (81, 21)])
def test_as_many_clusters_as_the_average_size_asks_for(count, expected):
    vectors = topics(21, size=4)[:count]
    members = cluster_questions(name(count), vectors, questions_per_cluster=4)
    assert len({m.cluster_id for m in members}) == expected
    assert sum(m.is_medoid for m in members) == expected


def test_no_question_gives_no_cluster():
    assert cluster_questions([], np.zeros((0, 4), np.float32), questions_per_cluster=4) == []


def test_every_cluster_has_exactly_one_medoid_even_among_equals():
    members = cluster_questions(name(8), unit([[1, 0]] * 8), questions_per_cluster=2)
    found = [m.cluster_id for m in members if m.is_medoid]
    assert sorted(found) == sorted({m.cluster_id for m in members})


def test_the_order_of_the_questions_does_not_decide_the_medoids():
    ids, vectors = name(120), topics(30, size=4)
    order = np.random.default_rng(5).permutation(120)
    shuffled = medoids([ids[row] for row in order], vectors[order])
    assert shuffled == medoids(ids, vectors)


def test_one_percent_more_seeds_costs_at_most_three_percent_of_the_calls():
    """A seed is answered and judged; a new medoid is reworded, and its 8 rewordings likewise."""
    ids, vectors = name(400), topics(100, size=4)
    before = medoids(ids, vectors)
    new_counts = []
    for seed in range(20):
        kept = np.sort(np.random.default_rng(seed).permutation(400)[4:])
        fewer = medoids([ids[row] for row in kept], vectors[kept])
        new_counts.append(len(before - fewer))
    bought, full = np.mean(new_counts) * 17 + 4 * 2, len(before) * 17 + 400 * 2
    assert bought / full < 0.03


def test_a_reworded_seed_changes_little_because_its_id_and_not_its_text_starts_k_means():
    ids, vectors = name(400), topics(100, size=4)
    before = medoids(ids, vectors)
    moved = vectors.copy()
    moved[:4] = unit(moved[:4] + 0.05 * unit(np.random.default_rng(1).normal(size=(4, 32))))
    assert len(medoids(ids, moved) - before) <= 2
