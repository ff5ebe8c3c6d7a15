"""What the seed table promises, row by row, whatever the product.

That ids and texts are distinct is promised by the check `seed_texts_are_distinct`. Belongs here:
the promises and the scalars they read. Does not belong here: running them
(`assets/expectations.py`).
"""

from datetime import datetime
from typing import TYPE_CHECKING

import polars as pl

from assets.expectations import (
    CLOCK_SKEW,
    EARLIEST_DATE,
    SuiteOutcome,
    evaluate_suite,
    expect_askable,
    expect_no_nulls,
    expect_read_whole,
)
from assets.seeds.harvesting import list_private_seeds

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

OUT_OF_SCOPE_TAG = "out_of_scope"
OUT_OF_SCOPE_LIMITS = (0.05, 0.50)
"""Share of handwritten seeds tagged out_of_scope (harvested ones carry no tags). About one in five
worked; below one in twenty a student sees too few refusals to learn one, above one half it mostly
learns to refuse."""

MINIMUM_SEEDS = 20
"""With n seeds the chance that none falls into the validation split is 0.85^n: 4 % at 20."""


def evaluate_seeds(seeds: pl.DataFrame, *, now: datetime) -> SuiteOutcome:
    """Evaluate `seed_questions` rows; `now` (UTC) bounds their dates."""
    return evaluate_suite(
        flatten_seeds(seeds),
        expect_seeds(now=now),
        id_column="question_id",
        private_ids=list_private_seeds(seeds),
    )


def flatten_seeds(seeds: pl.DataFrame) -> pl.DataFrame:
    """Return the scalars the promises read; `out_of_scope` is 1 where a tag says so, else 0."""
    tagged = pl.col("tags").list.contains(OUT_OF_SCOPE_TAG).fill_null(value=False)
    return seeds.select(
        "question_id",
        "text",
        "source",
        "source_trace_id",
        "added_at",
        tagged.cast(pl.Float64).alias("out_of_scope"),
    )


def expect_seeds(*, now: datetime) -> list["Expectation"]:
    """Return what must hold of every seed, and what usually holds of a useful set."""
    return [
        *expect_no_nulls(["question_id", "text", "source", "added_at"]),
        *_expect_sound_rows(now),
        *_expect_useful_set(),
    ]


def _expect_sound_rows(now: datetime) -> list["Expectation"]:
    from great_expectations import expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    return [
        *expect_askable("text", "seed"),
        gxe.ExpectColumnValuesToBeInSet(
            column="source",
            value_set=["handwritten", "harvested"],
            description="every seed is handwritten or harvested",
        ),
        gxe.ExpectColumnValuesToNotBeNull(
            column="source_trace_id",
            row_condition=Column("source") == "harvested",
            description="every harvested seed names its trace, so that deleting one finds it",
        ),
        gxe.ExpectColumnValuesToBeNull(
            column="source_trace_id",
            row_condition=Column("source") == "handwritten",
            description="no handwritten seed names a trace",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="added_at",
            min_value=EARLIEST_DATE,
            max_value=now + CLOCK_SKEW,
            description="every seed was added after 1999 and not in the future",
        ),
    ]


def _expect_useful_set() -> list["Expectation"]:
    from great_expectations import expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    low, high = OUT_OF_SCOPE_LIMITS
    span = f"{low:.0%} to {high:.0%}"
    return [
        expect_read_whole("text", "seed"),
        gxe.ExpectTableRowCountToBeBetween(
            min_value=MINIMUM_SEEDS,
            severity="warning",
            description=f"there are at least {MINIMUM_SEEDS} seeds, enough for every split",
        ),
        gxe.ExpectColumnMeanToBeBetween(
            column="out_of_scope",
            min_value=low,
            max_value=high,
            row_condition=Column("source") == "handwritten",
            severity="warning",
            description=f"{span} of the handwritten seeds are tagged {OUT_OF_SCOPE_TAG}",
        ),
    ]
