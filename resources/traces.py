"""Trace segments on disk: which ones servers have sealed, and what is in them.

Belongs here: finding and reading sealed segments. Does not belong here: their format
(`serving/tracing/segments`), what is made of the records (`assets/traces`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.hashing import content_hash
from serving.tracing.segments import SEALED_SUFFIX, read_segment


@dataclass(frozen=True)
class SealedSegments:
    """The segments that no server writes to any more; no folder means no server has run yet."""

    folder: Path

    def list_files(self) -> list[Path]:
        """Return the sealed segments, sorted by name."""
        return sorted(self.folder.glob(f"*{SEALED_SUFFIX}"))

    def fingerprint(self) -> str:
        """Return the identity of all sealed segments.

        Names are unique and a sealed segment never changes, so name and size say what the bytes
        would, without reading gigabytes.
        """
        return content_hash([(path.name, path.stat().st_size) for path in self.list_files()])

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield every record, segment by segment.

        Raises:
            TraceError: a segment is damaged before its last record.
        """
        for path in self.list_files():
            yield from read_segment(path)
