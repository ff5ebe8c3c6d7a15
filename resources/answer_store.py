"""Bought answers on disk: one SQLite file per folder, an answer is there before it is used.

SQLite because many callers wait for one flush: 16 answers in a transaction cost one fsync, where a
file each cost two. Several processes may write one store. Belongs here: keys and texts. Does not
belong here: what an answer is, what it cost (`chat_models`).
"""

import asyncio
import json
import sqlite3
import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from resources.erasing import LOCK_SECONDS, erase_rows
from serving.files import keep_private
from serving.hashing import content_hash

FILE_NAME = "answers.sqlite"
_TABLES = (
    "CREATE TABLE IF NOT EXISTS answers "
    "(key TEXT PRIMARY KEY, answer TEXT NOT NULL, kept_at TEXT DEFAULT CURRENT_TIMESTAMP)",
    # What was asked, as a hash: whoever answered it, and whatever prompt stood around it.
    "CREATE TABLE IF NOT EXISTS asked "
    "(asked_hash TEXT, key TEXT REFERENCES answers ON DELETE CASCADE, "
    "PRIMARY KEY (asked_hash, key)) WITHOUT ROWID",
)
_Row = tuple[str, str | None, str]
"""Key, answer and hash of what was asked; None: the answer is kept already."""


class AnswerStore:
    """Texts by key in `folder`; nothing is written before the first one is kept.

    Answers that earlier versions kept as one JSON file each, `<key[:2]>/<key>.json`, are found too.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._folder = folder
        self._reading: sqlite3.Connection | None = None
        self._writing: sqlite3.Connection | None = None
        # One thread, so that what arrives during a flush is one transaction after it. Python waits
        # for it at exit: an answer handed over is kept also when the program is interrupted.
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="answer-store")
        self._waiting: list[tuple[_Row, Future[None]]] = []
        self._lock = threading.Lock()

    def find(self, key: str) -> str | None:
        """Return the text kept under a key, or None.

        Raises:
            sqlite3.Error: the store cannot be read.
        """
        if self._reading is None and self.path.exists():
            self._reading = _open_to_read(self.path)
        if self._reading is not None:
            found = self._reading.execute("SELECT answer FROM answers WHERE key = ?", (key,))
            if (row := found.fetchone()) is not None:
                return str(row[0])
        try:
            return self._file(key).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def sum_field(self, field: str, having: Mapping[str, Sequence[str]]) -> float:
        """Return the sum of a number over the kept texts that are JSON and have these values.

        Answers that lie in files of their own are not counted.

        Args:
            field: name of the number in each text.
            having: by name, the values of which a text must have one.

        Raises:
            sqlite3.Error: the store cannot be read.
        """
        if self._reading is None and self.path.exists():
            self._reading = _open_to_read(self.path)
        if self._reading is None:
            return 0.0
        chosen = " AND ".join(
            f"json_extract(answer, ?) IN ({','.join('?' * len(values))})"
            for values in having.values()
        )
        values = [part for name, wanted in having.items() for part in (f"$.{name}", *wanted)]
        # Names and values are bound; only placeholders are written into the statement.
        query = f"SELECT SUM(json_extract(answer, ?)) FROM answers WHERE {chosen or 'TRUE'}"  # noqa: S608
        row = self._reading.execute(query, (f"$.{field}", *values)).fetchone()
        return float(row[0] or 0.0)

    def locate(self, key: str) -> str:
        """Return where the text of a key lies, for messages."""
        file = self._file(key)
        return str(file) if file.exists() else f"{self.path} (key {key})"

    def close(self) -> None:
        """Wait for what is being written and close the file; the next use opens it again."""
        self._writer.submit(self._close_writing).result()
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    async def keep(self, key: str, text: str, *, asked: str) -> None:
        """Return when the text is on disk. The first text of a key stays.

        Args:
            key: under which it is found.
            text: the answer.
            asked: the message it answers; its hash alone is kept, by which it can be forgotten.

        Raises:
            sqlite3.Error, OSError: the disk did not take it.
        """
        await self._write((key, text, _hash_asked(asked)))

    async def note_asked(self, key: str, *, asked: str) -> None:
        """Return when the answer kept under a key can be forgotten by what it was asked.

        One of an earlier version cannot; one that lies in a file of its own stays so.

        Raises:
            sqlite3.Error, OSError: the disk did not take it.
        """
        if self._lacks_note(key, _hash_asked(asked)):
            await self._write((key, None, _hash_asked(asked)))

    def _lacks_note(self, key: str, asked_hash: str) -> bool:
        if self._reading is None:
            return False
        noted = "SELECT key FROM asked WHERE asked_hash = ?"
        query = f"SELECT 1 FROM answers WHERE key = ? AND key NOT IN ({noted})"  # noqa: S608
        try:
            return self._reading.execute(query, (key, asked_hash)).fetchone() is not None
        except sqlite3.OperationalError:
            return True  # a store of an earlier version has no such table until it is written to

    async def _write(self, row: _Row) -> None:
        kept: Future[None] = Future()
        kept.set_running_or_notify_cancel()  # who stops waiting does not stop the write
        with self._lock:
            self._waiting.append((row, kept))
        self._writer.submit(self._flush)
        await asyncio.wrap_future(kept)

    def _flush(self) -> None:
        """Commit all that waits; of several calls the first does the work."""
        with self._lock:
            batch, self._waiting = self._waiting, []
        if not batch:
            return
        try:
            self._commit([row for row, _ in batch])
        except (sqlite3.Error, OSError) as error:
            for _, kept in batch:
                kept.set_exception(error)
        else:
            for _, kept in batch:
                kept.set_result(None)

    def _commit(self, rows: list[_Row]) -> None:
        if self._writing is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            keep_private(self.path)
            self._writing = _open_to_write(self.path)
        with self._writing:
            self._writing.executemany(
                "INSERT OR IGNORE INTO answers (key, answer) VALUES (?, ?)",
                [(key, text) for key, text, _ in rows if text is not None],
            )
            self._writing.executemany(
                "INSERT OR IGNORE INTO asked (asked_hash, key) "
                "SELECT ?, key FROM answers WHERE key = ?",
                [(asked_hash, key) for key, _, asked_hash in rows],
            )

    def _close_writing(self) -> None:
        if self._writing is not None:
            self._writing.close()
            self._writing = None

    def _file(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"


def forget_answers(folder: Path, *, asked: Collection[str], quotes: Collection[str]) -> int:
    """Erase the answers to these messages and those that hold one of these texts; count them.

    Args:
        folder: of the store.
        asked: messages as models were asked them, whatever stood before.
        quotes: texts that stand in no answer that is about something else.

    Raises:
        NotErasedError, OSError: the store is held by others, or the disk did not take it.
    """
    spelled = {json.dumps(t, ensure_ascii=a)[1:-1] for t in quotes for a in (True, False)}
    # A model's answer may be JSON itself, in which the text is escaped a second time.
    spelled |= {json.dumps(text)[1:-1] for text in spelled}
    hashes = [(_hash_asked(text),) for text in asked]
    under = "SELECT key FROM asked WHERE asked_hash = ?"
    gone = erase_rows(
        folder / FILE_NAME,
        _TABLES,
        [
            (f"DELETE FROM answers WHERE key IN ({under})", hashes),  # noqa: S608 - only `?`
            ("DELETE FROM answers WHERE instr(answer, ?)", [(text,) for text in spelled]),
        ],
    )
    return gone + sum(_forget_file(path, spelled) for path in folder.glob("??/*.json"))


def _forget_file(path: Path, spelled: Collection[str]) -> bool:
    text = path.read_text(encoding="utf-8")
    if not any(quote in text for quote in spelled):
        return False
    path.unlink()
    return True


def _hash_asked(message: str) -> str:
    return content_hash(message, digits=32)


def _open_to_read(path: Path) -> sqlite3.Connection | None:
    """Connect without writing, as a full disk or a protected folder needs it.

    None: another process has made the file and not yet the table, so nothing is kept.
    """
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        timeout=LOCK_SECONDS,
        check_same_thread=False,
    )
    try:
        named = "SELECT 1 FROM sqlite_master WHERE name = 'answers'"
        has_table = connection.execute(named).fetchone() is not None
    except sqlite3.Error:
        connection.close()
        raise
    if has_table:
        return connection
    connection.close()
    return None


def _open_to_write(path: Path) -> sqlite3.Connection:
    """Connect so that a committed transaction survives a power cut and readers never wait."""
    connection = sqlite3.connect(path, timeout=LOCK_SECONDS, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        with connection:
            for table in _TABLES:
                connection.execute(table)
    except sqlite3.Error:
        connection.close()
        raise
    return connection
