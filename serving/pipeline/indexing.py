"""Index snapshots: chunks and their vectors, written once in LanceDB under a fingerprint.

Belongs here: what is stored of a chunk, which texts are embedded for it, the identity of a
snapshot. Does not belong here: the tables (`index_tables`), asking a snapshot (`retrieval`),
ordering what it finds (`fusion`), chunking, which snapshot is current (a release says so).
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.errors import InvalidInputError
from serving.files import atomic_folder
from serving.hashing import content_hash
from serving.models.protocols import Vectors
from serving.pipeline.chunking import CHUNKER_VERSION
from serving.pipeline.index_tables import ANALYSIS, write_tables

RETRIEVAL_VERSION = "4"
"""Raise it with every change to the layout, the windows or the fusion: answers go stale with it."""


@dataclass(frozen=True, kw_only=True)
class IndexedChunk:
    """A chunk as the index stores it."""

    chunk_id: str
    content_hash: str
    title: str
    url: str
    heading_path: tuple[str, ...]
    text: str

    @property
    def page(self) -> str:
        """The slug of its page: `how-to/install` of `docs:how-to/install/3`."""
        return self.chunk_id.removeprefix("docs:").rpartition("/")[0]

    @property
    def headings(self) -> str:
        """The heading path as one line."""
        return " > ".join(self.heading_path)

    @property
    def search_text(self) -> str:
        """What is searched by words: a chunk is found by its headings too."""
        return f"{self.headings}\n{self.text}"


@dataclass(frozen=True, kw_only=True)
class Window:
    """A text that is embedded for a chunk: all of it, or a part that the embedder reads whole."""

    chunk: int
    """Position of the chunk among the chunks of the index, from 0."""
    text: str


def plan_windows(
    chunks: Sequence[IndexedChunk],
    *,
    maximum_tokens: int,
    count_tokens: Callable[[Sequence[str]], list[int]],
) -> tuple[Window, ...]:
    """Return what must be embedded for these chunks, in their order, at least one text each.

    An embedder ignores what lies past its maximum, so a longer chunk is cut at white space into
    equal windows that fit, each under the chunk's headings. A single word past the maximum is left
    whole.

    Args:
        chunks: the chunks of the index.
        maximum_tokens: longest text that the embedder reads whole.
        count_tokens: the embedder's tokenizer, special tokens excluded.
    """
    counts = count_tokens([chunk.search_text for chunk in chunks])
    windows: list[Window] = []
    for position, (chunk, count) in enumerate(zip(chunks, counts, strict=True)):
        texts = (
            [chunk.search_text]
            if count <= maximum_tokens
            else _cut(chunk, maximum_tokens, count_tokens)
        )
        windows += [Window(chunk=position, text=text) for text in texts]
    return tuple(windows)


def _cut(
    chunk: IndexedChunk, limit: int, count_tokens: Callable[[Sequence[str]], list[int]]
) -> list[str]:
    words = re.findall(r"\s*\S+", chunk.text)
    heading, *counts = count_tokens([chunk.headings, *words])
    # Headings that would fill half a window say too little about what stands in it.
    prefix, room = (f"{chunk.headings}\n", limit - heading) if heading * 2 < limit else ("", limit)
    share = sum(counts) / max(1, math.ceil(sum(counts) / room))
    cut: list[list[str]] = []
    filled = room + 1
    for word, count in zip(words, counts, strict=True):
        if filled + count > room or filled >= share:
            cut.append([])
            filled = 0
        cut[-1].append(word)
        filled += count
    return [prefix + "".join(part).strip() for part in cut] or [chunk.search_text]


def fingerprint_index(chunks: Sequence[IndexedChunk], embedder_fingerprint: str) -> str:
    """Return the identity of the index over these chunks, and of how it is searched.

    It covers chunks, embedder, chunker, word analysis, windows and fusion. Title and url are in it,
    since an answer shows them and no chunk's own hash covers them.
    """
    hashes = sorted((c.chunk_id, c.content_hash, c.title, c.url) for c in chunks)
    versions = (CHUNKER_VERSION, RETRIEVAL_VERSION, ANALYSIS)
    return content_hash(hashes, embedder_fingerprint, *versions)


def build_index(
    folder: Path,
    chunks: Sequence[IndexedChunk],
    windows: Sequence[Window],
    vectors: Vectors,
    embedder_fingerprint: str,
) -> str:
    """Write an index snapshot to `folder/<fingerprint>` and return the fingerprint.

    Beside its arguments it holds one batch of rows, a vector for each page and LanceDB's bounded
    build buffers. The vectors may be a memory map. A snapshot appears whole or not at all, and is
    never changed: one that is being asked stays as it is while the next is built.

    Args:
        folder: the parent of all snapshots; an existing equal snapshot is kept.
        chunks: n chunks.
        windows: what `plan_windows` planned for them.
        vectors: [len(windows), dimension] unit vectors of the windows' texts.
        embedder_fingerprint: identity of the embedder that made them.

    Raises:
        InvalidInputError: there is nothing to index, or windows and vectors do not fit the chunks.
    """
    first_windows = _find_first_windows(chunks, windows, vectors)
    fingerprint = fingerprint_index(chunks, embedder_fingerprint)
    target = folder / fingerprint
    if not target.exists():
        with atomic_folder(target) as staging:
            write_tables(staging, chunks, windows, vectors, first_windows)
    return fingerprint


def _find_first_windows(
    chunks: Sequence[IndexedChunk], windows: Sequence[Window], vectors: Vectors
) -> list[int]:
    """Return at which position the windows of each chunk begin."""
    if not chunks:
        raise InvalidInputError(
            "building the index",
            expected="at least one chunk",
            found="0 chunks",
            next_step="check `product.corpus.path`, `include` and `exclude` in the config",
        )
    positions = np.fromiter((window.chunk for window in windows), dtype=np.int64)
    steps = np.diff(positions, prepend=-1)
    is_complete = len(positions) and positions[-1] == len(chunks) - 1
    if not is_complete or not np.isin(steps, (0, 1)).all() or len(vectors) != len(windows):
        raise InvalidInputError(
            "building the index",
            expected=f"windows of all {len(chunks)} chunks in their order, and a vector for each",
            found=f"{len(windows)} windows, {len(vectors)} vectors",
            next_step="embed the texts that `plan_windows` returns for these very chunks",
        )
    starts: list[int] = np.flatnonzero(steps).tolist()
    return starts
