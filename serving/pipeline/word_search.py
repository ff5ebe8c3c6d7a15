"""The words of a snapshot: BM25 of chunks and of their parts, by LanceDB.

Belongs here: which chunks match a question's words, and how well. Does not belong here: how a
snapshot is written (`indexing`), how BM25 becomes relevance (`fusion`).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.pipeline.index_tables import ANALYSIS, CHUNKS, PARTS

if TYPE_CHECKING:
    from lancedb.db import AsyncConnection
    from lancedb.table import AsyncTable

Scores = dict[int, float]
"""BM25 by chunk."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WordIndex:
    """Finds chunks by their words."""

    chunks: "AsyncTable"
    parts: "AsyncTable | None"
    """Of all chunks, as long as the embedder reads; None where it reads almost all chunks whole."""

    async def search(
        self, question: str, depth: int, condition: str | None, *, terms: Sequence[str]
    ) -> Scores:
        """Return BM25 of at most `depth` chunks, best first; none for a question without `terms`.

        Where chunks have several parts it is the mean of the chunk's and of its best part's: what
        stands in one place says more than a word here and a word there of a long text.
        """
        if not terms:
            return {}
        if self.parts is None:
            scores = await _score(self.chunks, question, depth, condition)
        else:
            of_chunks, of_parts = await asyncio.gather(
                _score(self.chunks, question, depth, condition),
                _score(self.parts, question, depth, condition),
            )
            found = of_chunks.keys() | of_parts.keys()
            scores = {n: (of_chunks.get(n, 0.0) + of_parts.get(n, 0.0)) / 2 for n in found}
        return dict(sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:depth])


async def open_words(database: "AsyncConnection") -> WordIndex:
    """Return the words of a snapshot."""
    chunks = await database.open_table(CHUNKS)
    if PARTS not in (await database.list_tables()).tables:
        return WordIndex(chunks=chunks, parts=None)
    return WordIndex(chunks=chunks, parts=await database.open_table(PARTS))


async def _score(table: "AsyncTable", question: str, depth: int, condition: str | None) -> Scores:
    """Return the best BM25 of at most `depth` chunks.

    A long chunk takes as many places among the rows as it has parts that match, so more rows are
    asked for until there are enough chunks.
    """
    query = table.query().nearest_to_text(question, columns="search_text")
    query = query.select(["chunk", "_score"])
    query = query.where(condition) if condition else query
    limit = depth
    while True:
        found = await query.limit(limit).to_arrow()
        rows = zip(found["chunk"].to_pylist(), found["_score"].to_pylist(), strict=True)
        scores: Scores = {}
        for chunk, score in sorted(rows, key=lambda row: -row[1]):
            scores.setdefault(chunk, score)
        if len(scores) >= depth or len(found) < limit:
            return scores
        limit *= 2


def split_terms(question: str) -> list[str]:
    """Return the words of a question as the index spells them: stemmed, without stop words."""
    import lancedb

    return [token.text for token in lancedb.tokenize(question, **ANALYSIS)]
