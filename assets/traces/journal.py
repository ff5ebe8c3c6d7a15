"""Journals: decisions and deletions, one JSON object per line, appended durably and never edited.

The one exception is a deletion, which blanks what a decision quotes of a deleted trace, and in the
end what its own tombstone does. Belongs here: appending, reading back, and the columns of a line.
Does not belong here: what a decision means (`deciding`), what a tombstone removes (`deleting`).
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson
import polars as pl

from serving.errors import InvalidInputError
from serving.files import PRIVATE_MODE, atomic_path, keep_private
from serving.hashing import file_sha256


@dataclass(frozen=True)
class Journal:
    """One append-only file; without it nothing was written yet.

    A line may lack the columns that are `late`: they are null.
    """

    path: Path
    schema: pl.Schema
    late: frozenset[str] = frozenset()

    def fingerprint(self) -> str:
        """Return the identity of what was written."""
        return file_sha256(self.path) if self.path.is_file() else "none"

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line and flush it to disk; a line torn by a crash before it is cut off first.

        Nobody was told that a torn line is stored.
        """
        line = orjson.dumps({name: row[name] for name in self.schema}) + b"\n"
        with self._locked() as stream:
            stream.truncate(stream.read().rfind(b"\n") + 1)
            stream.seek(0, os.SEEK_END)
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    def read(self) -> pl.DataFrame:
        """Return every line in order, typed by the schema.

        Raises:
            InvalidInputError: a line is no object of the journal; a torn last line is left out.
        """
        if not self.path.is_file():
            return pl.DataFrame(schema=self.schema)
        lines = self.path.read_bytes().split(b"\n")
        rows = [
            row
            for number, line in enumerate(lines, start=1)
            if line.strip() and (row := self._parse(line, number, is_last=number == len(lines)))
        ]
        times = [name for name, dtype in self.schema.items() if isinstance(dtype, pl.Datetime)]
        written = pl.Schema({**self.schema, **dict.fromkeys(times, pl.String())})
        return pl.DataFrame(rows, schema=written).with_columns(
            pl.col(times).str.to_datetime(time_unit="us", time_zone="UTC")
        )

    def rewrite(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Replace every line by its changed form, atomically; one torn by a crash is cut off."""
        if not self.path.is_file():
            return
        with self._locked() as stream:
            stream.seek(0)
            *whole, _ = stream.read().split(b"\n")  # what comes last is torn, or nothing
            rows = [orjson.loads(line) for line in whole if line.strip()]
            changed = [change(dict(row)) for row in rows]
            if changed == rows:
                return
            with atomic_path(self.path) as temporary:
                temporary.chmod(PRIVATE_MODE)
                temporary.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in changed))

    def _parse(self, line: bytes, number: int, *, is_last: bool) -> dict[str, Any] | None:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            if is_last:
                return None  # torn: its writer was never told that it is stored
            raise self._refuse(number, str(error)) from None
        if not isinstance(row, dict) or not set(self.schema) - self.late <= set(row):
            raise self._refuse(number, f"{line[:80]!r}")
        return {name: row.get(name) for name in self.schema}

    def _refuse(self, number: int, found: str) -> InvalidInputError:
        return InvalidInputError(
            f"reading line {number} of {self.path}",
            expected=f"a JSON object with {', '.join(self.schema)}",
            found=found,
            next_step="move that line into a file of its own; the other lines are good",
        )

    @contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        """Yield the file under a lock that also holds when it is replaced meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keep_private(self.path)
            with self.path.open("r+b") as stream:
                yield stream
