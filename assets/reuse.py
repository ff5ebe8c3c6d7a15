"""What an asset says about the texts it embeds: how many are new, how many were kept.

Belongs here: counting. Does not belong here: keeping vectors (`resources/embeddings`).
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from serving.models.protocols import Embedder


@runtime_checkable
class KeepsVectors(Protocol):
    """An embedder that computes a text's vector once ever."""

    def count_missing(self, texts: Sequence[str]) -> int:
        """Return how many different texts of these it would have to compute."""
        ...


def count_reuse(embedder: Embedder, texts: Sequence[str]) -> dict[str, int]:
    """Return how many different texts are new and how many are kept; ask before embedding them.

    An embedder that keeps nothing embeds them all.
    """
    distinct_count = len(set(texts))
    if isinstance(embedder, KeepsVectors):
        embedded_count = embedder.count_missing(texts)
    else:
        embedded_count = distinct_count
    return {"embedded_count": embedded_count, "reused_count": distinct_count - embedded_count}
