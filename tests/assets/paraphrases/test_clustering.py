"""Clusters: related questions together, one medoid each."""

import numpy as np

from assets.paraphrases.clustering import cluster_questions


def unit(rows: list[list[float]]) -> np.ndarray:
    vectors = np.array(rows, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_near_questions_share_a_cluster_and_the_central_one_stands_for_it():
    vectors = unit([[1, 0, 0], [1, 0.2, 0], [1, 0.1, 0], [0, 0, 1], [0, 0.1, 1], [0, 0.2, 1]])
    members = cluster_questions(vectors, questions_per_cluster=3)
    clusters = [m.cluster_id for m in members]
    assert len(set(clusters[:3])) == 1
    assert len(set(clusters[3:])) == 1
    assert clusters[0] != clusters[3]
    assert [row for row, m in enumerate(members) if m.is_medoid] == [2, 4]
    assert all(m.distance == 0 for m in members if m.is_medoid)


def test_a_single_question_is_its_own_medoid():
    (member,) = cluster_questions(unit([[1, 0]]), questions_per_cluster=4)
    assert member.is_medoid


def test_every_cluster_has_exactly_one_medoid_even_among_equals():
    members = cluster_questions(unit([[1, 0]] * 8), questions_per_cluster=2)
    medoids = [m.cluster_id for m in members if m.is_medoid]
    assert sorted(medoids) == sorted(set(m.cluster_id for m in members))
