"""The access ledger: every read of the golden set by a run, so that peeking shows.

An asset that asks, grades, compares or judges by its cases, or trains on them, writes a line. Not
counted: the guard, whose reading keeps training away from them, checks of the table, and a person
who opens the file. Belongs here: appending and counting. Does not belong here: the golden set.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from serving.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True)
class ReaderCount:
    """How often one reader has read the golden set, and when last."""

    reader: str
    count: int
    last_read_at: str


def record_read(ledger: Path, *, reader: str, run_id: str) -> None:
    """Append one line: who read the golden set, in which run, when (UTC)."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    line = {"read_at": datetime.now(UTC).isoformat(), "reader": reader, "run_id": run_id}
    with ledger.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def count_reads(ledger: Path) -> list[ReaderCount]:
    """Return how often each reader read the golden set under this home, the most eager first.

    Raises:
        InvalidInputError: a line is no entry; a ledger that cannot be counted proves nothing.
    """
    if not ledger.exists():
        return []
    reads: dict[str, list[str]] = {}
    for number, line in enumerate(ledger.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            reads.setdefault(entry["reader"], []).append(entry["read_at"])
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidInputError(
                f"reading the golden set's access ledger {ledger}",
                expected="a JSON object with reader and read_at on every line",
                found=f"{type(error).__name__} on line {number}",
                next_step="mend or remove that line, and say so where the report is read",
            ) from error
    counted = [
        ReaderCount(reader=reader, count=len(times), last_read_at=max(times))
        for reader, times in reads.items()
    ]
    return sorted(counted, key=lambda one: (-one.count, one.reader))
