"""What the golden table promises, case by case, whatever the product.

Belongs here: the promises and the scalars they read. Does not belong here: that facts stand in the
pages (`golden`), the lock (`resources/input_files`), anything that would tune on the set.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from assets.eval_set.facts import has_fact
from assets.expectations import (
    SuiteOutcome,
    evaluate_suite,
    expect_askable,
    expect_no_nulls,
    expect_own_ids,
    expect_read_whole,
)
from serving.pipeline.questions import fold_text

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

BUCKETS = ("answerable", "boundary", "out_of_scope")
REFUSAL_LIMITS = (0.10, 0.60)
"""Share of cases that should be refused. Below, refusal recall rests on too few cases; above, an
assistant that refuses everything passes most of the set."""


@dataclass(frozen=True, kw_only=True)
class GoldenPlan:
    """How many cases each bucket was frozen with; a bucket that is not named is not counted."""

    cases_by_bucket: Mapping[str, int] = field(default_factory=dict)


def evaluate_golden(cases: pl.DataFrame, *, plan: GoldenPlan) -> SuiteOutcome:
    """Evaluate `golden_cases` rows."""
    return evaluate_suite(flatten_cases(cases), expect_cases(plan), id_column="case_id")


def flatten_cases(cases: pl.DataFrame) -> pl.DataFrame:
    """Return the scalars the promises read.

    `expected` is answer or refusal; `given_away` holds the facts of a case whose question already
    states all of them; `folded` is the question, case, spacing and punctuation aside.
    """
    given_away = [
        ", ".join(facts) if facts and all(has_fact(question, fact) for fact in facts) else None
        for question, facts in cases.select("question", "must_include").iter_rows()
    ]
    folded = [None if text is None else fold_text(text) for text in cases["question"]]
    return cases.select(
        "case_id",
        "bucket",
        "question",
        pl.Series("folded", folded, dtype=pl.String),
        pl.when("should_refuse").then(pl.lit("refusal")).otherwise(pl.lit("answer"))
        .alias("expected"),
        pl.col("should_refuse").cast(pl.Float64).alias("refusal"),
        pl.col("must_include").list.len().alias("fact_count"),
        pl.col("gold_pages").list.len().alias("page_count"),
        pl.Series("given_away", given_away, dtype=pl.String),
    )  # fmt: skip


def expect_cases(plan: GoldenPlan) -> list["Expectation"]:
    """Return what grading rests on (critical), and what makes a set worth its n (warnings)."""
    return [
        *expect_no_nulls(["case_id", "bucket", "question"]),
        *_expect_gradable(),
        *_expect_counts(plan),
        *_expect_telling_set(),
    ]


def _expect_gradable() -> list["Expectation"]:
    from great_expectations import expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    gold = {"fact_count": "a fact to include", "page_count": "a gold page"}
    return [
        expect_own_ids("case_id", "case"),
        *expect_askable("question", "question"),
        gxe.ExpectColumnValuesToBeInSet(
            column="bucket", value_set=list(BUCKETS), description="every bucket is a known one"
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="expected",
            value_set=["answer"],
            row_condition=Column("bucket") == "answerable",
            description="every answerable case expects an answer",
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="expected",
            value_set=["refusal"],
            row_condition=Column("bucket") == "out_of_scope",
            description="every out-of-scope case expects a refusal",
        ),
        *(
            gxe.ExpectColumnValuesToBeBetween(
                column=column,
                min_value=1,
                row_condition=Column("expected") == "answer",
                description=f"every case that expects an answer has {what}",
            )
            for column, what in gold.items()
        ),
        *(
            gxe.ExpectColumnValuesToBeBetween(
                column=column,
                max_value=0,
                row_condition=Column("expected") == "refusal",
                description=f"no case that expects a refusal has {what}",
            )
            for column, what in gold.items()
        ),
    ]


def _expect_counts(plan: GoldenPlan) -> list["Expectation"]:
    from great_expectations import expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    return [
        gxe.ExpectTableRowCountToEqual(
            value=count,
            row_condition=Column("bucket") == bucket,
            description=f"the set has {count} {bucket} cases, as eval.cases_by_bucket says",
        )
        for bucket, count in plan.cases_by_bucket.items()
    ]


def _expect_telling_set() -> list["Expectation"]:
    from great_expectations import expectations as gxe

    low, high = REFUSAL_LIMITS
    return [
        gxe.ExpectColumnValuesToBeUnique(
            column="folded",
            severity="warning",
            description="no question is asked twice: paired statistics count independent cases",
        ),
        gxe.ExpectColumnValuesToBeNull(
            column="given_away",
            severity="warning",
            description="no question states all the facts its answer is graded by",
        ),
        expect_read_whole("question", "question"),
        gxe.ExpectColumnMeanToBeBetween(
            column="refusal",
            min_value=low,
            max_value=high,
            severity="warning",
            description=f"{low:.0%} to {high:.0%} of the cases expect a refusal",
        ),
    ]
