"""Vectors kept by the content of their text: a text is embedded once ever.

Belongs here: the store, and the embedder that asks it first. Does not belong here: embedding itself
(`serving/models`), similarity, indexes. Production serving does without: its questions are new.
"""

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from resources.erasing import erase_rows
from resources.kept_file import KeptFile
from serving.errors import InvalidInputError, UnderstudyError
from serving.hashing import content_hash
from serving.models.protocols import Embedder, Vectors

WINDOW_TEXTS = 1024
"""Texts looked up, embedded and committed together: what an interrupt can lose at most."""
PAGE_BYTES = (
    16_384  # ten vectors of 384 numbers; SQLite's default of 4096 holds two, a quarter empty
)
_TABLE = "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL)"
UNIT_LENGTH_TOLERANCE = 1e-3


class VectorsNotKeptError(UnderstudyError):
    """Vectors were computed and could not be written, or the store could not be opened."""


class VectorStore:
    """Vectors by text in one SQLite file, shared by threads and processes.

    Measured beside LMDB: SQLite reads and writes tens of thousands of
    vectors a second, hundreds of times what embedding takes, and needs no dependency and no size
    set in advance.
    """

    def __init__(self, file: Path, *, dimension: int) -> None:
        self._file = file
        self._dimension = dimension
        self._kept = KeptFile(
            file,
            table=_TABLE,
            pragmas=[f"PRAGMA page_size = {PAGE_BYTES}"],
            not_kept=self._not_kept,
            damaged=self._damaged,
        )

    def read(self, texts: Sequence[str]) -> dict[str, Vectors]:
        """Return the kept vectors of these texts, [dimension] float32 each.

        Raises:
            InvalidInputError: the file, or a vector in it, is damaged.
        """
        by_key = {_key(text): text for text in texts}
        places = ",".join("?" * len(by_key))
        query = f"SELECT key, vector FROM vectors WHERE key IN ({places})"  # noqa: S608 - only `?`
        with self._kept.connect() as connection:
            rows = connection.execute(query, list(by_key)).fetchall()
        if any(len(blob) != 4 * self._dimension for _, blob in rows):
            raise self._damaged("a vector of another length")
        found = {by_key[key]: np.frombuffer(blob, dtype="<f4") for key, blob in rows}
        if found:
            lengths = np.linalg.norm(np.stack(list(found.values())), axis=1)
            if not np.allclose(lengths, 1.0, atol=UNIT_LENGTH_TOLERANCE):
                raise self._damaged("a vector that is not of unit length")
        return found

    def write(self, vectors: dict[str, Vectors]) -> None:
        """Keep vectors in one transaction; a text that is kept already stays as it is.

        Raises:
            VectorsNotKeptError: the disk did not take them.
            InvalidInputError: the file is damaged.
        """
        rows = [(_key(text), row.astype("<f4").tobytes()) for text, row in vectors.items()]
        with self._kept.connect() as connection, connection:
            connection.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self._kept.close()

    def _not_kept(self, found: str) -> VectorsNotKeptError:
        return VectorsNotKeptError(
            f"using the kept vectors in {self._file}",
            expected="a file that can be read and written",
            found=found,
            next_step="make room, mend the permissions or end the process that holds it",
        )

    def _damaged(self, found: str) -> InvalidInputError:
        return InvalidInputError(
            f"reading the kept vectors in {self._file}",
            expected=f"unit vectors of {self._dimension} numbers by text",
            found=found,
            next_step="remove that file and those beside it of the same name: texts are embedded "
            "again, nothing else is lost",
        )


def forget_vectors(folder: Path, texts: Collection[str]) -> int:
    """Erase the vectors of these texts from the stores of every embedder; return their number.

    Raises:
        NotErasedError: a store is held by others, or damaged.
    """
    by_key = ("DELETE FROM vectors WHERE key = ?", [(_key(text),) for text in texts])
    return sum(erase_rows(path, [_TABLE], [by_key]) for path in folder.glob("*.sqlite"))


class CachedEmbedder:
    """An embedder that asks the store first. Threads and processes may share the folder.

    A vector read back is bit for bit the one that was computed. Two threads that meet a new text at
    the same moment may both embed it: a query never waits for another thread's bulk.

    Args:
        inner: who embeds what is not kept yet.
        folder: of the stores, one file for each embedder fingerprint.
    """

    def __init__(self, inner: Embedder, folder: Path) -> None:
        self._inner = inner
        self._folder = folder

    @cached_property
    def _store(self) -> VectorStore:
        return VectorStore(
            self._folder / f"{self._inner.fingerprint}.sqlite", dimension=self._inner.dimension
        )

    def __repr__(self) -> str:
        """Name the embedder inside."""
        return f"CachedEmbedder({self._inner!r})"

    @property
    def fingerprint(self) -> str:
        """The inner embedder's identity: the vectors are the same."""
        return self._inner.fingerprint

    @property
    def dimension(self) -> int:
        """Length of each vector."""
        return self._inner.dimension

    @property
    def maximum_tokens(self) -> int:
        """Longest text that is read whole, counted as by `count_tokens`."""
        return self._inner.maximum_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, special tokens excluded."""
        return self._inner.count_tokens(texts)

    def count_missing(self, texts: Sequence[str]) -> int:
        """Return how many different texts of these `embed` would have to compute."""
        distinct = list(dict.fromkeys(texts))
        return sum(len(window) - len(self._store.read(window)) for window in _windows(distinct))

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return [len(texts), dimension] float32 unit rows, computing only what is not kept.

        Raises:
            VectorsNotKeptError: vectors were computed and the disk did not take them.
            InvalidInputError: the store is damaged.
        """
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        for start, window in zip(range(0, len(texts), WINDOW_TEXTS), _windows(texts), strict=True):
            known = self._store.read(window)
            missing = [text for text in dict.fromkeys(window) if text not in known]
            if missing:
                fresh = dict(zip(missing, self._inner.embed(missing), strict=True))
                self._store.write(fresh)
                known |= fresh
            for row, text in enumerate(window, start):
                vectors[row] = known[text]
        return vectors

    def close(self) -> None:
        """Close the store; the next use opens it again."""
        self._store.close()


def _windows(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), WINDOW_TEXTS):
        yield texts[start : start + WINDOW_TEXTS]


def _key(text: str) -> bytes:
    return bytes.fromhex(content_hash(text, digits=32))
