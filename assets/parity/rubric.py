"""The judge's scores of the arms, stored among the grades as metrics `rubric_<axis>`.

Belongs here: to and from the graded_answers table. Does not belong here: asking the judge
(`assets/labels/rating`), averaging (`comparison`).
"""

from collections.abc import Sequence

import polars as pl

from assets import tables
from assets.labels.judging import AXES, Judgement, Rating

PREFIX = "rubric_"


def tabulate_rubric(answered: pl.DataFrame, ratings: Sequence[Rating]) -> pl.DataFrame:
    """Return graded_answers rows: one per answer and axis, inconclusive where the judge was."""
    rows = [
        {
            "arm": arm,
            "case_id": case_id,
            "repeat": repeat,
            "metric": f"{PREFIX}{axis}",
            "value": float(rating.scores[axis]) if isinstance(rating, Judgement) else None,
            "numerator": None,
            "denominator": None,
            "status": "graded" if isinstance(rating, Judgement) else "inconclusive",
            "detail": rating.rationale
            if isinstance(rating, Judgement)
            else f"judge {rating.reason}: {rating.detail}",
        }
        for (arm, case_id, repeat), rating in zip(
            answered.select("arm", "case_id", "repeat").iter_rows(), ratings, strict=True
        )
        for axis in AXES
    ]
    return pl.DataFrame(rows, schema=tables.GRADED_ANSWERS)


def read_rubric(graded: pl.DataFrame) -> pl.DataFrame:
    """Return (arm, case_id, axis, score) of the first repeat; score is null where inconclusive."""
    return graded.filter(pl.col("metric").str.starts_with(PREFIX) & (pl.col("repeat") == 0)).select(
        "arm",
        "case_id",
        pl.col("metric").str.strip_prefix(PREFIX).alias("axis"),
        pl.col("value").cast(pl.Int32).alias("score"),
    )
