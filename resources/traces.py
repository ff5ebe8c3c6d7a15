"""Trace segments on disk, and the questions that curation admitted from them.

Belongs here: finding and reading sealed segments, and the harvest as one input of the seeds. Does
not belong here: the format of segments (`serving/tracing/segments`), what is made of the records,
who is admitted (`assets/traces`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from resources.input_files import HarvestedFile
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

        Names are unique and a sealed segment never changes its size, so name and size say what the
        bytes would, without reading gigabytes.
        """
        return content_hash([(path.name, path.stat().st_size) for path in self.list_files()])

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield every record, segment by segment.

        Raises:
            TraceError: a segment is damaged before its last record.
        """
        for path in self.list_files():
            yield from read_segment(path)


@dataclass(frozen=True)
class Harvest:
    """Curated production questions: what this platform's curation admits, and a file's rows.

    Its identity is that of the admitted rows: a new trace, or a decision that admits nothing,
    changes no seed and so makes no student stale.
    """

    file: HarvestedFile
    admit: Callable[[], pl.DataFrame]
    """Gives rows with the columns of the file."""

    def fingerprint(self) -> str:
        """Return the identity of file and admitted rows; without these, that of the file."""
        admitted = self.admit()
        if admitted.is_empty():
            return self.file.fingerprint()
        rows = [[str(value) for value in row] for row in admitted.iter_rows()]
        return content_hash(self.file.fingerprint(), rows)

    def read(self) -> pl.DataFrame:
        """Return the file's rows, then the admitted ones."""
        return pl.concat([self.file.read(), self.admit()])
