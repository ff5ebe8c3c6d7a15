"""Sentence embeddings in process: the compiled model where it is proven equal, torch elsewhere.

Any sentence-transformers model works. Belongs here: choosing the backend, and the torch one. Does
not belong here: compiling (`embedder_conversion`), running what is compiled (`compiled_embedder`),
indexes, caches, similarity limits.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from serving.hashing import content_hash
from serving.models.compiled_embedder import CompiledEmbedder
from serving.models.embedded import resolve_model
from serving.models.embedder_conversion import find_limit, find_prefix, prepare_compiled
from serving.models.protocols import NoProgress, Progress, Vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class SentenceEmbedder:
    """Unit vectors from a sentence-transformers folder by torch, loaded at first use."""

    def __init__(self, folder: Path, *, sha256: str, batch_size: int = 16) -> None:
        self._folder = folder
        self._batch_size = batch_size
        self._lock = threading.Lock()
        self._model: SentenceTransformer | None = None
        self.fingerprint = fingerprint_embedder(sha256)

    def __repr__(self) -> str:
        """Name the folder and the fingerprint."""
        return f"SentenceEmbedder({self._folder.name}, fingerprint={self.fingerprint})"

    @property
    def dimension(self) -> int:
        """Length of each vector."""
        dimension = self.model.get_embedding_dimension()
        if dimension is None:
            raise ValueError(f"{self._folder} does not say how long its vectors are")
        return int(dimension)

    @property
    def maximum_tokens(self) -> int:
        """Longest text that is read whole: prompt and special tokens take their part of it."""
        model = self.model
        with self._lock:
            added = model.preprocess([""], prompt=find_prefix(model) or None)["input_ids"].shape[1]
        return find_limit(model) - int(added)

    @property
    def model(self) -> "SentenceTransformer":
        """The sentence-transformers model, in evaluation mode on the CPU."""
        with self._lock:
            if self._model is None:
                from sentence_transformers import SentenceTransformer
                from transformers.utils.logging import disable_progress_bar

                disable_progress_bar()  # a server's log is no place for "Loading weights"
                self._model = SentenceTransformer(str(self._folder), device="cpu").eval()
            return self._model

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return [len(texts), dimension] float32 rows of unit length; no text gives 0 rows."""
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        model = self.model
        with self._lock:  # fast tokenizers cannot be shared while they truncate
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
        tokenizer = self.model.tokenizer
        with self._lock:
            encoded = tokenizer(
                list(texts), add_special_tokens=False, truncation=False, verbose=False
            )
        return [len(ids) for ids in encoded["input_ids"]]


def fingerprint_embedder(sha256: str) -> str:
    """Return the identity of an embedder: its files, and that its vectors have unit length.

    The backend is not in it. Compiled vectors are used only after they were seen to differ from
    torch's by no more than `embedder_conversion.LARGEST_DIFFERENCE`; torch's own move by as much
    between two processors or thread counts.
    """
    return content_hash("sentence-transformers", sha256, "unit-length")


def load_embedder(
    model: str, revision: str, models_folder: Path, progress: Progress | None = None
) -> CompiledEmbedder | SentenceEmbedder:
    """Resolve and verify the embedding model and return it, not yet in memory.

    The first call for a model compiles it, which takes 5-15 s once; a model that cannot be compiled
    to equal vectors, or a machine without OpenVINO, gets the torch one.

    Raises:
        HashMismatchError: a file of the model is not what was pinned or prepared.
        InvalidInputError: the name is unknown, the wheel is missing, or the revision is an alias.
    """
    resolved = resolve_model(model, revision, models_folder, progress)
    original = SentenceEmbedder(resolved.path, sha256=resolved.sha256)
    compiled = prepare_compiled(
        original,
        target_name=f"{resolved.path.name}.openvino",
        source_sha256=resolved.sha256,
        models_folder=models_folder,
        progress=progress or NoProgress(),
    )
    return compiled or original
