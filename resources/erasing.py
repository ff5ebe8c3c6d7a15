"""Erasing rows of SQLite stores, so that nothing of them stays in the file or in its log.

Belongs here: overwriting, and saying so where it could not be done. Does not belong here: which
rows (`answer_store`, `embeddings`).
"""

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.errors import UnderstudyError

LOCK_SECONDS = 60.0
"""How long one waits for a writer or a reader of another process; SQLite does the waiting."""

Statement = tuple[str, Sequence[Sequence[Any]]]
"""A DELETE, and the values it is run with."""


class NotErasedError(UnderstudyError):
    """What was to be erased is, or may be, still in the file."""


def erase_rows(file: Path, tables: Sequence[str], statements: Sequence[Statement]) -> int:
    """Run DELETEs in one transaction and return how many rows are gone; without a file, none.

    The bytes are overwritten, and the log is emptied also when an earlier call could not do it.

    Args:
        file: the store.
        tables: its `CREATE TABLE IF NOT EXISTS`: another process may have made the file just now.
        statements: what goes; rows that refer to them go along, uncounted.

    Raises:
        NotErasedError: the file is locked, damaged, or read by somebody whose view needs the log.
    """
    if not file.exists():
        return 0
    gone = 0
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=LOCK_SECONDS)) as connection:
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("PRAGMA foreign_keys = ON")
            with connection:
                for table in tables:
                    connection.execute(table)
                for statement, values in statements:
                    gone += max(connection.executemany(statement, values).rowcount, 0)
            is_busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as error:
        raise _not_erased(file, str(error)) from error
    if is_busy:
        raise _not_erased(file, "a process that reads it, so its log still holds what was erased")
    return gone


def _not_erased(file: Path, found: str) -> NotErasedError:
    return NotErasedError(
        f"erasing rows of {file}",
        expected=f"a sound file that nobody holds for longer than {LOCK_SECONDS:g} s",
        found=found,
        next_step="end the process that holds it, and ask for the deletion again",
    )
