"""An embedder that remembers what it was asked: unit vectors drawn from each text's hash."""

import hashlib
from collections.abc import Sequence

import numpy as np


class CountingEmbedder:
    """Deterministic vectors without a model; `embedded` holds every text in the order it came."""

    dimension = 8
    maximum_tokens = 64

    def __init__(self, fingerprint: str = "counting") -> None:
        self.fingerprint = fingerprint
        self.embedded: list[str] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.embedded += texts
        rows = np.array([self._draw(text) for text in texts]).reshape(len(texts), self.dimension)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def _draw(self, text: str) -> np.ndarray:
        seed = hashlib.blake2b(f"{self.fingerprint}{text}".encode(), digest_size=8).digest()
        return np.random.default_rng(int.from_bytes(seed)).normal(size=self.dimension)
