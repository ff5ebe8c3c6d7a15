"""One SQLite file of what can be computed again, shared by threads and processes.

With a write-ahead log a killed process loses what it had not committed, and a reader never waits
for a writer. Belongs here: opening it once, and whose error a fault is. Does not belong here: what
is kept (`embeddings`, `scores`), what cannot be had again (`answer_store`), `erasing`.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from resources.erasing import LOCK_SECONDS
from serving.errors import UnderstudyError
from serving.files import keep_private

Explain = Callable[[str], UnderstudyError]
"""Returns the error of what was found."""


class KeptFile:
    """A file that is opened at its first use.

    Args:
        file: its path; made private, for vectors and candidates of tokens tell their texts.
        table: its `CREATE TABLE IF NOT EXISTS`.
        pragmas: run before anything else.
        not_kept: explains a file that cannot be used now: held by others, or the disk is full.
        damaged: explains a file that is no such store.
    """

    def __init__(
        self,
        file: Path,
        *,
        table: str,
        pragmas: Sequence[str] = (),
        not_kept: Explain,
        damaged: Explain,
    ) -> None:
        self._file = file
        self._table = table
        self._pragmas = pragmas
        self._not_kept = not_kept
        self._damaged = damaged
        self._lock = threading.Lock()
        self._open: sqlite3.Connection | None = None

    @contextlib.contextmanager
    def connect(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection to one thread at a time.

        Raises:
            UnderstudyError: as `not_kept` or `damaged` explain it.
        """
        try:
            with self._lock:
                if self._open is None:
                    self._open = self._connect()
                yield self._open
        except sqlite3.OperationalError as error:
            raise self._not_kept(str(error)) from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._open is not None:
                self._open.close()
                self._open = None

    def _connect(self) -> sqlite3.Connection:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        keep_private(self._file)
        connection = sqlite3.connect(self._file, timeout=LOCK_SECONDS, check_same_thread=False)
        try:
            for pragma in self._pragmas:
                connection.execute(pragma)
            connection.execute("PRAGMA journal_mode = WAL")
            # Only a power cut can lose a commit this way, and what is lost is computed again.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(self._table)
        except sqlite3.Error:
            connection.close()
            raise
        return connection
