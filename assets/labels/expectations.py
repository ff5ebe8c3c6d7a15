"""What the table of labelled examples promises, row by row, whatever the product.

That splits share no seed is promised by the check `splits_share_no_seed`. Belongs here: the
promises and the scalars they read. Does not belong here: which answers teach (`selection`).
"""

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from assets.expectations import (
    SuiteOutcome,
    evaluate_suite,
    expect_askable,
    expect_no_nulls,
    expect_own_ids,
)
from serving.pipeline.prompt import CITATION_PATTERN, REFUSAL_WORD
from serving.pipeline.questions import fold_text

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

SPLITS = ("train", "validation", "calibration")
REFUSED_LIMITS = (0.02, 0.60)
"""Share of refusals; one in five is what the seeds should aim at. With next to none a student never
learns to refuse, and where most are, refusing becomes its safe bet."""

TRAIN_LIMITS = (0.50, 0.90)
"""Share of training examples: 70 % of the seeds, and seeds differ in how many answers they keep."""

MAXIMUM_WEIGHT = 10.0  # above it one example outweighs a batch

_MALFORMED = re.compile(
    r"\[\d{1,3}(?:\s*[,;-]\s*\d{1,3})+\]|\[(?:source|doc)\s*\d{1,3}\]|\[docs:[^\]\s]*\s|【[^】]*】",
    re.IGNORECASE,
)
"""What other assistants write for `[1] [2]`: `[1, 2]`, `[source 1]`, a broken docs id, 【1】."""


def evaluate_examples(
    examples: pl.DataFrame, guarded: pl.DataFrame, *, private_seeds: Collection[str]
) -> SuiteOutcome:
    """Evaluate `labelled_examples` rows against the `guarded_questions` they came from.

    What grew from `private_seeds` is told by its id alone.
    """
    private = examples.filter(pl.col("seed_id").is_in(private_seeds))
    return evaluate_suite(
        flatten_examples(examples, guarded),
        expect_examples(),
        id_column="example_id",
        private_ids=frozenset(private["example_id"]),
    )


def flatten_examples(examples: pl.DataFrame, guarded: pl.DataFrame) -> pl.DataFrame:
    """Return the scalars the promises read.

    `other_question` is what the prompt asks where the guard kept no such text under that id.
    `stray_citations`, `malformed_citations`, `other_question` and `splits_of_question` are null
    where all is well and hold the offending text where not.
    """
    kept = guarded.filter(pl.col("verdict") == "kept").select("question_id", "text")
    texts = dict(kept.iter_rows())
    read = [
        _read_example(row, texts.get(row["question_id"])) for row in examples.iter_rows(named=True)
    ]
    schema = {
        "kind": pl.String(), "roles": pl.String(), "citation_count": pl.Int32(),
        "own_words": pl.String(), "stray_citations": pl.String(),
        "malformed_citations": pl.String(), "other_question": pl.String(),
    }  # fmt: skip
    folded = pl.Series([fold_text(text or "") for text in examples["question"]], dtype=pl.String)
    splits = pl.col("split").unique().sort().over(pl.lit(folded), mapping_strategy="join")
    return pl.concat(
        [
            examples.select(
                "example_id", "seed_id", "question", "completion", "split", "weight",
                "teacher_id", "teacher_license", "prompt_version", "index_fingerprint",
                pl.col("refused").cast(pl.Float64).alias("refusal"),
                (pl.col("split") == "train").cast(pl.Float64).alias("training"),
                pl.when(splits.list.len() > 1).then(splits.list.join(" + "))
                .alias("splits_of_question"),
            ),
            pl.DataFrame(read, schema=schema),
        ],
        how="horizontal",
    )  # fmt: skip


def expect_examples() -> list["Expectation"]:
    """Return what training rests on (critical), and what a useful set looks like (warnings)."""
    return [
        *expect_no_nulls(
            ["example_id", "seed_id", "question", "completion", "split", "weight", "teacher_id",
             "teacher_license", "prompt_version", "index_fingerprint"]
        ),
        *_expect_identity(),
        *_expect_texts(),
        *_expect_citations(),
        *_expect_shares(),
    ]  # fmt: skip


def _read_example(row: Mapping[str, Any], guarded_text: str | None) -> dict[str, object]:
    messages, completion = row["messages"] or [], row["completion"] or ""
    from serving.models.extractive.sources import read_sources  # its package loads a web framework

    cited = [match["id"] for match in CITATION_PATTERN.finditer(completion)]
    system = messages[0]["content"] if messages else ""
    labels = {source.label for source in read_sources(system)} if cited else set()
    stray = [f"[{label}]" for label in dict.fromkeys(cited) if label not in labels]
    malformed = [match[0] for match in _MALFORMED.finditer(completion)]
    asked = messages[-1]["content"] if messages else ""
    return {
        "kind": "refusal" if row["refused"] else "answer",
        "roles": ", ".join(message["role"] for message in messages),
        "citation_count": len(cited),
        "own_words": CITATION_PATTERN.sub("", completion).strip(),
        "stray_citations": " ".join(stray) or None,
        "malformed_citations": " ".join(malformed) or None,
        "other_question": asked if asked != guarded_text else None,
    }


def _expect_identity() -> list["Expectation"]:
    from great_expectations import expectations as gxe

    return [
        expect_own_ids("example_id", "example"),
        gxe.ExpectColumnValuesToBeInSet(
            column="split", value_set=list(SPLITS), description="every split is a known one"
        ),
        gxe.ExpectColumnValuesToBeNull(
            column="splits_of_question",
            description="no question stands in two splits, whatever seed it came from",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="weight",
            min_value=0,
            strict_min=True,
            max_value=MAXIMUM_WEIGHT,
            description=f"every weight is above 0 and at most {MAXIMUM_WEIGHT:g}",
        ),
        gxe.ExpectColumnValuesToMatchRegex(
            column="teacher_license",
            regex=r"(?i)^\s*(?!(?:unknown|none|n/a|todo|tbd)\s*$)\S",
            description="every example names the licence of its answer",
        ),
        *(
            gxe.ExpectColumnUniqueValueCountToBeBetween(
                column=column, max_value=1, description=f"all examples share one {column}"
            )
            for column in ("prompt_version", "index_fingerprint")
        ),
    ]


def _expect_texts() -> list["Expectation"]:
    from great_expectations import expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    return [
        *expect_askable("question", "question"),
        gxe.ExpectColumnValuesToBeInSet(
            column="roles",
            value_set=["system, user"],
            description="every prompt is a system and a user message, as production writes it",
        ),
        gxe.ExpectColumnValuesToBeNull(
            column="other_question",
            description="every prompt asks the question that the guard has kept",
        ),
        gxe.ExpectColumnValuesToMatchRegex(
            column="completion",
            regex=rf"(?i)^\s*{REFUSAL_WORD}\.*\s*$",
            row_condition=Column("kind") == "refusal",
            description=f"every refusal is the bare word {REFUSAL_WORD}",
        ),
        gxe.ExpectColumnValueLengthsToBeBetween(
            column="own_words",
            min_value=1,
            row_condition=Column("kind") == "answer",
            description="every answer says something beside its citations",
        ),
    ]


def _expect_citations() -> list["Expectation"]:
    from great_expectations import expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    return [
        gxe.ExpectColumnValuesToBeBetween(
            column="citation_count",
            min_value=1,
            row_condition=Column("kind") == "answer",
            description="every answer cites a source",
        ),
        gxe.ExpectColumnValuesToBeNull(
            column="stray_citations",
            description="every citation is one of the sources in the prompt",
        ),
        gxe.ExpectColumnValuesToBeNull(
            column="malformed_citations",
            mostly=0.98,  # documentation of arrays may quote [1, 2]
            severity="warning",
            description="hardly any completion has a citation in another form, such as [1, 2]",
        ),
    ]


def _expect_shares() -> list["Expectation"]:
    from great_expectations import expectations as gxe

    shares = {
        "refusal": (REFUSED_LIMITS, "of the examples are refusals"),
        "training": (TRAIN_LIMITS, "of the examples are for training"),
    }
    return [
        gxe.ExpectTableRowCountToBeBetween(min_value=1, description="there are examples"),
        *(
            gxe.ExpectColumnMeanToBeBetween(
                column=column,
                min_value=low,
                max_value=high,
                severity="warning",
                description=f"{low:.0%} to {high:.0%} {what}",
            )
            for column, ((low, high), what) in shares.items()
        ),
    ]
