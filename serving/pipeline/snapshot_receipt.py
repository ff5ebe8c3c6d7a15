"""The receipt of an index snapshot: which retrieval it was made for, and what its tables hold.

Belongs here: writing it, and telling a whole snapshot from a damaged one. Does not belong here: the
tables (`index_tables`), what follows from damage (`indexing`, `retrieval`).
"""

import json
from pathlib import Path

from serving.hashing import folder_sha256

RECEIPT = "snapshot.json"


def write_receipt(snapshot: Path, retrieval_version: str) -> None:
    """Write what the tables in the folder hold, and the retrieval that they were made for."""
    receipt = {"retrieval_version": retrieval_version, "tables": _hash_tables(snapshot)}
    (snapshot / RECEIPT).write_text(json.dumps(receipt), encoding="utf-8")


def read_version(snapshot: Path) -> str:
    """Return which retrieval a snapshot was made for; `none` where it does not say."""
    return str(_read(snapshot).get("retrieval_version", "none"))


def is_whole(snapshot: Path, retrieval_version: str) -> bool:
    """Say whether the tables are as they were written, and for this retrieval.

    They are not where there is no snapshot or receipt. Every byte is read: a second for 300 MB.
    """
    written = _read(snapshot).get("tables")
    is_readable = written is not None and read_version(snapshot) == retrieval_version
    return is_readable and written == _hash_tables(snapshot)


def _read(snapshot: Path) -> dict[str, object]:
    try:
        receipt = json.loads((snapshot / RECEIPT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return receipt if isinstance(receipt, dict) else {}


def _hash_tables(snapshot: Path) -> dict[str, str]:
    return {path.name: folder_sha256(path) for path in sorted(snapshot.iterdir()) if path.is_dir()}
