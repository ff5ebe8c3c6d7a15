"""Vectors are computed once per text and the cache stays bounded."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from serving.models.extractive.vectors import SentenceVectors
from tests.serving.models.extractive.conftest import WordHashEmbedder


def test_a_text_is_embedded_once_and_rows_keep_their_order():
    embedder = WordHashEmbedder()
    vectors = SentenceVectors(embedder)
    rows = vectors.embed(["one thing", "other", "one thing"])
    assert embedder.embedded_count == 2
    assert np.array_equal(rows, embedder.embed(["one thing", "other", "one thing"]))


def test_the_least_recently_used_text_is_dropped():
    embedder = WordHashEmbedder()
    vectors = SentenceVectors(embedder, capacity=2)
    for text in ("a1", "b1", "a1", "c1", "a1"):
        vectors.embed([text])
    assert len(vectors) == 2
    assert embedder.embedded_count == 3


def test_a_request_larger_than_the_cache_is_served():
    rows = SentenceVectors(WordHashEmbedder(), capacity=2).embed([f"word{n}" for n in range(9)])
    assert rows.shape == (9, 64)


def test_threads_share_it():
    vectors = SentenceVectors(WordHashEmbedder(), capacity=5)
    with ThreadPoolExecutor(8) as pool:
        shapes = pool.map(lambda n: vectors.embed([f"w{n % 9}", "x1"]).shape, range(200))
        assert set(shapes) == {(2, 64)}


def test_nothing_gives_no_rows():
    vectors = SentenceVectors(WordHashEmbedder())
    assert vectors.embed([]).shape == (0, 64)
    assert vectors.count_tokens([]) == 0
