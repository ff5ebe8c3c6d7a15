"""What the student got wrong before production asked it anything: its validation questions.

A table of a later stage, so no asset of an earlier one may ask for it: the plan of a night hands it
over. Belongs here: reading it, in the columns that production's questions have. Does not belong
here: the golden set, which no training question may follow from.
"""

from datetime import UTC, datetime

import polars as pl

from assets.students.agreement import compare_with_labels
from assets.students.held_out import STUDENT
from serving.home import Home

HELD_OUT = "students/held_out_answers"


def read_misses(home: Home, recipe: str) -> pl.DataFrame:
    """Return question_hash, question and is_weak of a student's validation questions.

    Weak is what does not agree with its label, or failed; without a student there is no row.
    """
    path = home.table(HELD_OUT, recipe)
    if not path.is_file():
        return pl.DataFrame(
            schema={"question_hash": pl.String, "question": pl.String, "is_weak": pl.Boolean}
        )
    asked = pl.read_parquet(path).filter(pl.col("arm") == STUDENT, pl.col("split") == "validation")
    agreed = compare_with_labels(asked).filter(pl.col("agrees"))["example_id"]
    return asked.select(
        pl.col("example_id").alias("question_hash"),
        "question",
        (~pl.col("example_id").is_in(agreed.to_list())).alias("is_weak"),
    )


def date_misses(home: Home, recipe: str) -> datetime | None:
    """Return when a student was last asked its held-out questions; None: none ever was."""
    path = home.table(HELD_OUT, recipe)
    return datetime.fromtimestamp(path.stat().st_mtime, UTC) if path.is_file() else None
