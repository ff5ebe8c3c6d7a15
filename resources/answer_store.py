"""Bought answers on disk: one SQLite file per folder, an answer is there before it is used.

SQLite because many callers wait for one flush: 16 answers in a transaction cost one fsync, where a
file each cost two. Several processes may write one store. Belongs here: keys and texts. Does not
belong here: what an answer is, what it cost (`chat_models`).
"""

import asyncio
import sqlite3
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

FILE_NAME = "answers.sqlite"
LOCK_SECONDS = 60.0
"""How long a writer waits for one of another process."""

_TABLE = (
    "CREATE TABLE IF NOT EXISTS answers "
    "(key TEXT PRIMARY KEY, answer TEXT NOT NULL, kept_at TEXT DEFAULT CURRENT_TIMESTAMP)"
)
_Kept = tuple[str, str, "Future[None]"]


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
        self._waiting: list[_Kept] = []
        self._lock = threading.Lock()

    def find(self, key: str) -> str | None:
        """Return the text kept under a key, or None.

        Raises:
            sqlite3.Error: the store cannot be read.
        """
        if self._reading is None and self.path.exists():
            self._reading = _open(self.path)
        if self._reading is not None:
            found = self._reading.execute("SELECT answer FROM answers WHERE key = ?", (key,))
            if (row := found.fetchone()) is not None:
                return str(row[0])
        try:
            return self._file(key).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def locate(self, key: str) -> str:
        """Return where the text of a key lies, for messages."""
        file = self._file(key)
        return str(file) if file.exists() else f"{self.path} (key {key})"

    async def keep(self, key: str, text: str) -> None:
        """Return when the text is on disk. The first text of a key stays.

        Raises:
            sqlite3.Error, OSError: the disk did not take it.
        """
        kept: Future[None] = Future()
        kept.set_running_or_notify_cancel()  # who stops waiting does not stop the write
        with self._lock:
            self._waiting.append((key, text, kept))
        self._writer.submit(self._flush)
        await asyncio.wrap_future(kept)

    def _flush(self) -> None:
        """Commit all that waits; of several calls the first does the work."""
        with self._lock:
            batch, self._waiting = self._waiting, []
        if not batch:
            return
        try:
            self._commit([(key, text) for key, text, _ in batch])
        except (sqlite3.Error, OSError) as error:
            for _, _, kept in batch:
                kept.set_exception(error)
        else:
            for _, _, kept in batch:
                kept.set_result(None)

    def _commit(self, rows: list[tuple[str, str]]) -> None:
        if self._writing is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writing = _open(self.path)
        with self._writing:
            self._writing.executemany(
                "INSERT OR IGNORE INTO answers (key, answer) VALUES (?, ?)", rows
            )

    def _file(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"


def _open(path: Path) -> sqlite3.Connection:
    """Connect so that a committed transaction survives a power cut and readers never wait."""
    connection = sqlite3.connect(path, timeout=LOCK_SECONDS, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    with connection:
        connection.execute(_TABLE)
    return connection
