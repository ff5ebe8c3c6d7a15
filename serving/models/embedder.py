"""Sentence embeddings in process, by sentence-transformers.

Belongs here: the `Embedder` role. Does not belong here: indexes, caches, similarity limits.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from serving.hashing import content_hash
from serving.models.embedded import resolve_model
from serving.models.protocols import Progress, Vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class SentenceEmbedder:
    """Unit vectors from a sentence-transformers folder, loaded at first use."""

    def __init__(self, folder: Path, *, sha256: str, batch_size: int = 64) -> None:
        self._folder = folder
        self._batch_size = batch_size
        self._lock = threading.Lock()
        self._model: SentenceTransformer | None = None
        self.fingerprint = content_hash("sentence-transformers", sha256, "unit-length")

    def __repr__(self) -> str:
        """Name the folder and the fingerprint."""
        return f"SentenceEmbedder({self._folder.name}, fingerprint={self.fingerprint})"

    @property
    def dimension(self) -> int:
        """Length of each vector."""
        dimension = self._load().get_embedding_dimension()
        if dimension is None:
            raise ValueError(f"{self._folder} does not say how long its vectors are")
        return int(dimension)

    @property
    def maximum_tokens(self) -> int:
        """Longest input that is not truncated, special tokens included."""
        return int(self._load().max_seq_length or 512)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return [len(texts), dimension] float32 rows of unit length; no text gives 0 rows."""
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        model = self._load()
        with self._lock:
            vectors = model.encode(
                list(texts),
                batch_size=self._batch_size,
                normalize_embeddings=True,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
        return np.asarray(vectors, dtype=np.float32)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, special tokens excluded, nothing truncated."""
        if not texts:
            return []
        tokenizer = self._load().tokenizer
        encoded = tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def _load(self) -> "SentenceTransformer":
        with self._lock:
            if self._model is None:
                from sentence_transformers import SentenceTransformer
                from transformers.utils.logging import disable_progress_bar

                disable_progress_bar()  # a server's log is no place for "Loading weights"
                self._model = SentenceTransformer(str(self._folder), device="cpu")
            return self._model


def load_embedder(
    model: str, revision: str, models_folder: Path, progress: Progress | None = None
) -> SentenceEmbedder:
    """Resolve and verify the embedding model and return it, not yet in memory."""
    resolved = resolve_model(model, revision, models_folder, progress)
    return SentenceEmbedder(resolved.path, sha256=resolved.sha256)
