"""The layout of `UNDERSTUDY_HOME`: where everything that is made lies.

Belongs here: names of folders. Does not belong here: creating, reading or writing what is in them.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Home:
    """The home folder and the folders in it."""

    root: Path

    @property
    def lake(self) -> Path:
        """Every table, as Parquet: `lake/<stage>/<asset>[/<partition>].parquet`."""
        return self.root / "lake"

    def table(self, key: str, partition: str | None = None) -> Path:
        """Return the Parquet file of a table, named `stage/asset`."""
        folder = self.lake / key
        return folder / f"{partition}.parquet" if partition else folder.with_suffix(".parquet")

    @property
    def index(self) -> Path:
        """LanceDB snapshots by fingerprint."""
        return self.root / "index"

    @property
    def embeddings(self) -> Path:
        """Vectors by content of their text: a text is embedded once ever."""
        return self.root / "embeddings"

    @property
    def answer_cache(self) -> Path:
        """Model answers by content key: an answer is never bought twice."""
        return self.root / "labels" / "cache"

    @property
    def adapters(self) -> Path:
        """Trained adapters, `<student>@<sha12>`."""
        return self.root / "adapters"

    @property
    def releases(self) -> Path:
        """Release bundles and the signed `CURRENT`."""
        return self.root / "releases"

    @property
    def reports(self) -> Path:
        """Parity reports by recipe."""
        return self.root / "reports"

    @property
    def models(self) -> Path:
        """Prepared base models."""
        return self.root / "models"

    @property
    def traces(self) -> Path:
        """Trace segments."""
        return self.root / "traces" / "segments"

    @property
    def keys(self) -> Path:
        """The release signing key (private, mode 0600) and its public half."""
        return self.root / "keys"

    @property
    def ledger(self) -> Path:
        """One line per read of the golden set."""
        return self.root / "golden_reads.jsonl"
