"""Sentence vectors and token counts for the extractive teacher, computed once per text.

Belongs here: a bounded cache around an `Embedder` that threads may share. Does not belong here:
what is compared with what.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from serving.models.protocols import Embedder, Vectors

DEFAULT_CAPACITY = 20_000
"""About 30 MB at 384 dimensions: every sentence of a few hundred pages, twice."""


class SentenceVectors:
    """The least recently used vectors are dropped once `capacity` texts are held."""

    def __init__(self, embedder: Embedder, *, capacity: int = DEFAULT_CAPACITY) -> None:
        """Wrap `embedder`. One lock serialises it: fast tokenizers cannot be used concurrently."""
        self._embedder = embedder
        self._capacity = capacity
        self._held: OrderedDict[str, Vectors] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return how many texts are held now."""
        return len(self._held)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return [len(texts), dimension] unit rows, embedding only the texts not held yet."""
        if not texts:
            return np.zeros((0, self._embedder.dimension), dtype=np.float32)
        with self._lock:
            missing = [text for text in dict.fromkeys(texts) if text not in self._held]
            fresh = (
                dict(zip(missing, self._embedder.embed(missing), strict=True)) if missing else {}
            )
            rows = np.stack([fresh[t] if t in fresh else self._held[t] for t in texts])
            self._hold(texts, fresh)
        return rows

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Return the tokens of all texts together."""
        with self._lock:
            return sum(self._embedder.count_tokens(texts)) if texts else 0

    def _hold(self, texts: Sequence[str], fresh: dict[str, Vectors]) -> None:
        self._held.update(fresh)
        for text in texts:
            self._held.move_to_end(text)
        while len(self._held) > self._capacity:
            self._held.popitem(last=False)
