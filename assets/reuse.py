"""What an asset may take from an earlier run: its own last table, vectors of the same texts.

Belongs here: the roles, and counting what is new and what was kept. Does not belong here: keeping
vectors (`resources/embeddings`) or tables (`resources/last_tables`), which rows are the same (their
stage).
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import polars as pl

from serving.models.protocols import Embedder


class LastTables(Protocol):
    """Tables as the last run left them. An asset reads only its own: another's is an input."""

    def read(self, key: Sequence[str]) -> pl.DataFrame:
        """Return a table by its key: with the columns declared today, and no row where it is gone.

        What cannot be read, or has other columns, counts as gone: it is made anew.
        """
        ...


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
