"""Reading a question together with a text, in process, by a sentence-transformers cross-encoder.

Belongs here: the `Reranker` role. Does not belong here: which chunks are read, fusion, thresholds.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.models.embedded import resolve_model
from serving.models.protocols import Progress, Vectors

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder


class CrossEncoderReranker:
    """Scores from a cross-encoder folder with one output, loaded at first use."""

    def __init__(self, folder: Path, *, sha256: str, batch_size: int = 16) -> None:
        self._folder = folder
        self._batch_size = batch_size
        self._lock = threading.Lock()
        self._model: CrossEncoder | None = None
        self.fingerprint = content_hash("cross-encoder", sha256, "sigmoid")

    def __repr__(self) -> str:
        """Name the folder and the fingerprint."""
        return f"CrossEncoderReranker({self._folder.name}, fingerprint={self.fingerprint})"

    def score(self, question: str, texts: Sequence[str]) -> Vectors:
        """Return [len(texts)] float32 scores: the sigmoid of the model's output, 0-1.

        Raises:
            InvalidInputError: the model is a classifier with several outputs.
        """
        if not texts:
            return np.zeros(0, dtype=np.float32)
        from torch.nn import Sigmoid

        with self._lock:  # fast tokenizers cannot be shared while they truncate
            scores = self._load().predict(
                [(question, text) for text in texts],
                batch_size=self._batch_size,
                show_progress_bar=False,
                activation_fn=Sigmoid(),
            )
        return np.asarray(scores, dtype=np.float32)

    def _load(self) -> "CrossEncoder":
        if self._model is None:
            from sentence_transformers import CrossEncoder
            from transformers.utils.logging import disable_progress_bar

            disable_progress_bar()  # a server's log is no place for "Loading weights"
            model = CrossEncoder(str(self._folder), device="cpu")
            if model.num_labels != 1:
                raise InvalidInputError(
                    f"loading the reranker {self._folder.name}",
                    expected="a cross-encoder with one output",
                    found=f"{model.num_labels} outputs",
                    next_step="name a model trained for ranking in `retrieval.reranker.model`",
                )
            self._model = model
        return self._model


def load_reranker(
    model: str, revision: str, models_folder: Path, progress: Progress | None = None
) -> CrossEncoderReranker:
    """Resolve and verify the cross-encoder and return it, not yet in memory.

    Raises:
        HashMismatchError: a prepared folder is not what it was.
        InvalidInputError: the name is unknown or the revision is an alias.
    """
    resolved = resolve_model(model, revision, models_folder, progress)
    return CrossEncoderReranker(resolved.path, sha256=resolved.sha256)
