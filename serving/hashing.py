"""Content identity: ids are hashes of what they name, so equal content has one id everywhere.

Belongs here: the one way to hash values and files. Does not belong here: what goes into an
identity.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

ID_HEX_DIGITS = 16


def content_hash(*parts: Any, digits: int = ID_HEX_DIGITS) -> str:
    """Return the first `digits` hex digits of the blake2b of the parts as canonical JSON.

    Parts are anything JSON can say; keys are sorted, so dict order does not matter. Raises
    `TypeError` for values JSON cannot say, rather than hashing their `repr`.
    """
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=32).hexdigest()[:digits]


def file_sha256(path: Path) -> str:
    """Return the full sha256 (64 hex digits) of a file's bytes, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """Return the sha256 over (relative path, file sha256) of every file below `folder`, sorted."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()
