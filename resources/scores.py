"""Scores of answers kept as they land: what a scorer has read is not read again.

A scorer takes minutes to hours, and one edited label changes one answer. A score is found again by
who scored (weights, precision, server), how many candidates, and the very ids of prompt and answer,
so that nothing of another is found. A server says nothing of its weights: where it serves others
under the old name, address and revision, its old scores are found. Belongs here: the store, and the
scorer that asks it first. Does not belong here: scoring (`scorers`,
`assets/labels/local_scoring`), the table (`assets/labels`).
"""

import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from resources.erasing import erase_rows
from resources.kept_file import KeptFile
from serving.errors import InvalidInputError, UnderstudyError
from serving.hashing import content_hash
from serving.models.protocols import KeepScores, ScoreRequest, TokenScorer, TokenScores

FILE_NAME = "scores.sqlite"
_TABLE = "CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, value BLOB NOT NULL)"
_ARRAYS = ("top_ids", "top_logprobs", "y_logprobs")


class ScoresNotKeptError(UnderstudyError):
    """Scores were computed and could not be written, or the store could not be opened."""


class KeptScorer:
    """A scorer whose scores are on disk as soon as they land.

    What a run did not ask for is dropped when it has ended: the store holds the scores of the table
    that was written last, and of a run that was interrupted.

    Args:
        inner: who scores what is not kept yet.
        folder: of the kept scores.
        server: where it does so; empty: in this process.
    """

    def __init__(self, inner: TokenScorer, folder: Path, *, server: str = "") -> None:
        self._inner = inner
        self._server = server
        self._store = ScoreStore(folder / FILE_NAME)

    @property
    def scorer_id(self) -> str:
        """The inner scorer's pinned model."""
        return self._inner.scorer_id

    @property
    def scorer_hash(self) -> str:
        """Identity of the inner scorer's weights."""
        return self._inner.scorer_hash

    @property
    def scorer_dtype(self) -> str:
        """What the inner scorer computes in."""
        return self._inner.scorer_dtype

    @property
    def tokenizer(self) -> Any:
        """The inner scorer's tokenizer."""
        return self._inner.tokenizer

    def score(
        self, requests: Iterable[ScoreRequest], *, top_k: int, keep: KeepScores | None = None
    ) -> Iterator[TokenScores]:
        """Yield the scores of each request's answer, in order: the kept ones, or the inner's.

        Raises:
            ScoresNotKeptError: the store is held by others, or the disk is full.
            InvalidInputError: the store is damaged.
        """
        asked = [(self._key(request, top_k), request) for request in requests]
        kept = self._store.list_keys()

        def land(request: ScoreRequest, scores: TokenScores) -> None:
            self._store.keep(self._key(request, top_k), scores)
            if keep is not None:
                keep(request, scores)

        missing = (request for key, request in asked if key not in kept)
        fresh = self._inner.score(missing, top_k=top_k, keep=land)
        for key, _ in asked:
            yield self._store.find(key) if key in kept else next(fresh)
        self._store.retain({key for key, _ in asked})

    def _key(self, request: ScoreRequest, top_k: int) -> str:
        who = (self.scorer_hash, self.scorer_dtype, self._server, top_k)
        ids = (request.prefix_ids, request.suffix_ids, request.answer_ids)
        return content_hash(*who, *(list(part) for part in ids), digits=64)


class ScoreStore:
    """Scores by key in one SQLite file; a killed process loses at most the one being written."""

    def __init__(self, file: Path) -> None:
        self._file = file
        # A server's answers land in the thread of its event loop.
        self._kept = KeptFile(
            file,
            table=_TABLE,
            pragmas=["PRAGMA secure_delete = ON"],
            not_kept=self._not_kept,
            damaged=self._damaged,
        )

    def list_keys(self) -> set[str]:
        """Return the keys of all kept scores."""
        with self._kept.connect() as connection:
            return {key for (key,) in connection.execute("SELECT key FROM scores")}

    def find(self, key: str) -> TokenScores:
        """Return the kept scores of a listed key."""
        with self._kept.connect() as connection:
            row = connection.execute("SELECT value FROM scores WHERE key = ?", [key]).fetchone()
        if row is None:
            raise self._not_kept("a score that another process has dropped meanwhile")
        try:
            with np.load(io.BytesIO(row[0]), allow_pickle=False) as arrays:
                return TokenScores(**{name: arrays[name] for name in _ARRAYS})
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from error

    def keep(self, key: str, scores: TokenScores) -> None:
        """Write scores in a transaction of their own."""
        buffer = io.BytesIO()
        np.savez(buffer, **{name: getattr(scores, name) for name in _ARRAYS})
        with self._kept.connect() as connection, connection:
            connection.execute(
                "INSERT OR REPLACE INTO scores VALUES (?, ?)", [key, buffer.getvalue()]
            )

    def retain(self, keys: set[str]) -> None:
        """Drop all but these keys."""
        with self._kept.connect() as connection, connection:
            known = {key for (key,) in connection.execute("SELECT key FROM scores")}
            gone = [(key,) for key in known - keys]
            connection.executemany("DELETE FROM scores WHERE key = ?", gone)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self._kept.close()

    def _not_kept(self, found: str) -> ScoresNotKeptError:
        return ScoresNotKeptError(
            f"using the kept scores in {self._file}",
            expected="a file that can be read and written",
            found=found,
            next_step="make room, mend the permissions or end the process that holds it, and run "
            "again: the scores in it are not computed again",
        )

    def _damaged(self, found: str) -> InvalidInputError:
        return InvalidInputError(
            f"reading the kept scores in {self._file}",
            expected="the arrays of each answer's scores by key",
            found=found,
            next_step="remove that file and those beside it of the same name: answers are scored "
            "again, nothing else is lost",
        )


def forget_scores(folder: Path) -> int:
    """Erase every kept score and return their number.

    Which of them grew from a question cannot be told of token ids; all can be computed again.

    Raises:
        NotErasedError: the store is held by others, or damaged.
    """
    return erase_rows(folder / FILE_NAME, [_TABLE], [("DELETE FROM scores", [()])])
