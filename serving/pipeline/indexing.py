"""Index snapshots: chunks and their vectors, written once in LanceDB under a fingerprint.

Belongs here: what is stored of a chunk, which texts are embedded for it, the identity of a
snapshot. Does not belong here: the tables (`index_tables`), asking a snapshot (`retrieval`),
ordering what it finds (`fusion`), chunking, which snapshot is current (a release says so).
"""

import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.errors import InvalidInputError
from serving.files import atomic_folder, set_aside
from serving.hashing import content_hash
from serving.models.protocols import Vectors
from serving.pipeline.chunking import CHUNKER_VERSION
from serving.pipeline.index_tables import ANALYSIS, write_tables
from serving.pipeline.snapshot_receipt import is_whole, write_receipt

RETRIEVAL_VERSION = "5"
"""Raise it with every change to the layout, the windows or the fusion: answers go stale with it."""

WINDOW_TOKENS = 96
"""Longest text whose vector is compared with a question. An embedder may read more, but one vector
says less of each sentence the longer its text is: of 64, 96, 128 and 254 tokens, 96 is what the
other sets choose for every development set (`bench/window_size.py`)."""


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
class Cut:
    """Chunks cut into texts: for each text, in the order of the chunks, whose it is and which."""

    chunks: tuple[int, ...]
    """Position of its chunk among the chunks of the index, from 0; each chunk has one or more."""
    texts: tuple[int, ...]
    """Position among the texts of the plan."""

    def __len__(self) -> int:
        """How many texts there are, equal ones counted each."""
        return len(self.chunks)


@dataclass(frozen=True, kw_only=True)
class IndexPlan:
    """What must be embedded for the chunks of an index, each text once, and what it is for."""

    texts: tuple[str, ...]
    windows: Cut
    """Short texts, whose vectors are compared with a question."""
    parts: Cut
    """Texts as long as the embedder reads whole: what a page is about, and words where a chunk has
    several parts."""


def plan_index(
    chunks: Sequence[IndexedChunk],
    *,
    maximum_tokens: int,
    count_tokens: Callable[[Sequence[str]], list[int]],
    window_tokens: int = WINDOW_TOKENS,
) -> IndexPlan:
    """Return what must be embedded for these chunks.

    A chunk longer than a limit is cut at white space into equal texts that fit, each under the
    chunk's headings. A single word past the limit is left whole.

    Args:
        chunks: the chunks of the index.
        maximum_tokens: longest text that the embedder reads whole.
        count_tokens: the embedder's tokenizer, special tokens excluded.
        window_tokens: longest window, where the embedder reads as much.
    """
    cutter = _Cutter(chunks, count_tokens)
    windows = cutter.cut(min(window_tokens, maximum_tokens))
    parts = cutter.cut(maximum_tokens)
    return IndexPlan(texts=tuple(cutter.places), windows=windows, parts=parts)


class _Cutter:
    """Cuts chunks at any limit. Each different word is counted once, however often it stands."""

    def __init__(
        self, chunks: Sequence[IndexedChunk], count_tokens: Callable[[Sequence[str]], list[int]]
    ) -> None:
        self._chunks, self._count = chunks, count_tokens
        self._totals = count_tokens([chunk.search_text for chunk in chunks])
        self._by_word: dict[str, int] = {}
        self.places: dict[str, int] = {}
        """The place of each text among those of the plan."""

    def cut(self, limit: int) -> Cut:
        """Return the texts of at most so many tokens."""
        longer = [c for c, n in zip(self._chunks, self._totals, strict=True) if n > limit]
        words = dict.fromkeys(word for c in longer for word in (c.headings, *_split(c.text)))
        new = [word for word in words if word not in self._by_word]
        self._by_word |= zip(new, self._count(new) if new else [], strict=True)
        owners: list[int] = []
        texts: list[int] = []
        for position, (chunk, total) in enumerate(zip(self._chunks, self._totals, strict=True)):
            for text in [chunk.search_text] if total <= limit else self._cut_one(chunk, limit):
                owners.append(position)
                texts.append(self.places.setdefault(text, len(self.places)))
        return Cut(chunks=tuple(owners), texts=tuple(texts))

    def _cut_one(self, chunk: IndexedChunk, limit: int) -> list[str]:
        words = _split(chunk.text)
        heading, counts = self._by_word[chunk.headings], [self._by_word[word] for word in words]
        # Headings that would fill half a window say too little about what stands in it.
        is_short = heading * 2 < limit
        prefix, room = (f"{chunk.headings}\n", limit - heading) if is_short else ("", limit)
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


def _split(text: str) -> list[str]:
    return re.findall(r"\s*\S+", text)


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
    plan: IndexPlan,
    vectors: Vectors,
    embedder_fingerprint: str,
) -> str:
    """Write an index snapshot to `folder/<fingerprint>` and return the fingerprint.

    Beside its arguments it holds one batch of rows, a vector for each page and LanceDB's bounded
    build buffers. The vectors may be a memory map. A snapshot appears whole or not at all, and is
    never changed: one that is being asked stays as it is while the next is built.

    Args:
        folder: the parent of all snapshots; an existing equal snapshot is kept if it is whole.
        chunks: n chunks.
        plan: what `plan_index` planned for them.
        vectors: [len(plan.texts), dimension] unit vectors of the plan's texts.
        embedder_fingerprint: identity of the embedder that made them.

    Raises:
        InvalidInputError: there is nothing to index, or plan and vectors do not fit the chunks.
    """
    _check_plan(chunks, plan, vectors)
    fingerprint = fingerprint_index(chunks, embedder_fingerprint)
    target = folder / fingerprint
    if target.exists() and not is_whole(target, RETRIEVAL_VERSION):
        shutil.rmtree(set_aside(target))
    if not target.exists():
        with atomic_folder(target) as staging:
            write_tables(staging, chunks, plan, vectors)
            write_receipt(staging, RETRIEVAL_VERSION)
    return fingerprint


def _check_plan(chunks: Sequence[IndexedChunk], plan: IndexPlan, vectors: Vectors) -> None:
    if not chunks:
        raise InvalidInputError(
            "building the index",
            expected="at least one chunk",
            found="0 chunks",
            next_step="check `product.corpus.path`, `include` and `exclude` in the config",
        )
    is_whole = all(_covers(cut, len(chunks)) for cut in (plan.windows, plan.parts))
    if not is_whole or len(vectors) != len(plan.texts):
        raise InvalidInputError(
            "building the index",
            expected=f"texts of all {len(chunks)} chunks in their order, and a vector for each",
            found=f"{len(plan.windows)} windows, {len(plan.parts)} parts, {len(plan.texts)} texts, "
            f"{len(vectors)} vectors",
            next_step="embed the texts that `plan_index` returns for these very chunks",
        )


def _covers(cut: Cut, chunk_count: int) -> bool:
    """Say whether each chunk has a text, in the order of the chunks."""
    steps = np.diff(np.array(cut.chunks, dtype=np.int64), prepend=-1)
    return bool(np.isin(steps, (0, 1)).all()) and int(steps.sum()) == chunk_count
