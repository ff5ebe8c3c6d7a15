"""The HTML report of drift: Evidently's, of the columns that the monitor compares.

It shows distributions to a person; the verdict is the monitor's, whose limits know how many rows
there are. Belongs here: which columns, with which tests. Does not belong here: the verdict
(`drift`). No text of a question is in the file.
"""

import warnings
from pathlib import Path

import polars as pl

from assets.monitoring.drift import DriftFrames
from serving.files import PRIVATE_MODE, atomic_path

NUMBERS = ("question_length", "retrieval_score")
CATEGORIES = ("topic", "language")
MINIMUM_ROWS = 30
LARGEST_ROWS = 5000


def write_drift_report(folder: Path, frames: DriftFrames) -> Path | None:
    """Write `drift.html` and return its path; None where either window is nearly empty."""
    if min(frames.now.height, frames.before.height) < MINIMUM_ROWS:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "drift.html"
    with warnings.catch_warnings(), atomic_path(path) as temporary:
        # Evidently reads names that numpy 2 moved, and divides by the variance of constants.
        warnings.simplefilter("ignore")
        temporary.touch()
        temporary.chmod(PRIVATE_MODE)
        _write(temporary, frames)
    return path


def _write(path: Path, frames: DriftFrames) -> None:
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    definition = DataDefinition(
        numerical_columns=list(NUMBERS), categorical_columns=list(CATEGORIES)
    )

    def prepare(frame: pl.DataFrame) -> Dataset:
        rows = frame.select(*NUMBERS, *CATEGORIES).drop_nulls().head(LARGEST_ROWS)
        return Dataset.from_pandas(rows.to_pandas(), data_definition=definition)

    drift = DataDriftPreset(num_method="ks", cat_method="chisquare")
    snapshot = Report([drift]).run(prepare(frames.now), prepare(frames.before))
    snapshot.save_html(str(path))
