"""The access ledger: every read of the golden set by a run, so that peeking shows.

Belongs here: appending and counting. Does not belong here: the golden set.
"""

import json
from datetime import UTC, datetime
from pathlib import Path


def record_read(ledger: Path, *, reader: str, run_id: str) -> None:
    """Append one line: who read the golden set, in which run, when (UTC)."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    line = {"read_at": datetime.now(UTC).isoformat(), "reader": reader, "run_id": run_id}
    with ledger.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def count_reads(ledger: Path) -> int:
    """Return how often the golden set was read under this home."""
    if not ledger.exists():
        return 0
    return sum(1 for line in ledger.read_text(encoding="utf-8").splitlines() if line.strip())
