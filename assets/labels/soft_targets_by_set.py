"""Soft targets by data set: how far they cover each, and how much mass lies outside the top K.

A data set is where a question is from: written by hand, harvested from production, or reworded by
a model. Belongs here: telling the sets apart, their numbers and charts. Does not belong here: the
same numbers by kind of token (`coverage`), how the report shows them (`assets/parity`).
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from assets.charts import BLUE, INK, LINE, ORANGE, draw_histogram, draw_shares, embed_png
from assets.labels.coverage import list_tokens
from assets.labels.projection import MAXIMUM_TAIL

DATA_SETS = ("written by hand", "harvested", "reworded")
COLOURS = (BLUE, INK, ORANGE)
TAIL_QUANTILES = (0.5, 0.9)

SETS_SCHEMA = pl.Schema(
    {
        "data_set": pl.String(),
        "answer_count": pl.Int64(),
        "asked_answer_count": pl.Int64(),
        "token_count": pl.Int64(),
        "soft_token_ratio": pl.Float64(),
        "asked_soft_token_ratio": pl.Float64(),
        "mean_tail_mass": pl.Float64(),
        "median_tail_mass": pl.Float64(),
        "p90_tail_mass": pl.Float64(),
    }
)
"""One row per data set that has an answer. Ratios are of answer tokens, all or those of answers
that a source was asked about; tail masses are over soft tokens, null without any."""


def name_sets(labelled_examples: pl.DataFrame, seed_questions: pl.DataFrame) -> pl.DataFrame:
    """Return the data set of each example: columns example_id, data_set."""
    harvested = seed_questions.filter(pl.col("source") == "harvested")["question_id"].implode()
    named = (
        pl.when(pl.col("question_id") != pl.col("seed_id"))
        .then(pl.lit("reworded"))
        .when(pl.col("question_id").is_in(harvested))
        .then(pl.lit("harvested"))
        .otherwise(pl.lit("written by hand"))
    )
    return labelled_examples.select("example_id", named.alias("data_set"))


def list_tokens_by_set(frame: pl.DataFrame, sets: pl.DataFrame) -> pl.DataFrame:
    """Return `list_tokens` of a table of soft targets, with the column data_set."""
    return list_tokens(frame).join(sets, on="example_id", how="inner")


def measure_sets(frame: pl.DataFrame, sets: pl.DataFrame) -> pl.DataFrame:
    """Return a row of `SETS_SCHEMA` for each data set, in the order of `DATA_SETS`."""
    is_asked, tail = pl.col("source") != "none", pl.col("tail_mass").filter("soft_ok")
    soft_count = pl.col("soft_ok").sum()
    median, high = (tail.quantile(share, "linear") for share in TAIL_QUANTILES)
    measured = (
        list_tokens_by_set(frame, sets)
        .group_by("data_set")
        .agg(
            pl.col("example_id").n_unique().cast(pl.Int64).alias("answer_count"),
            pl.col("example_id").filter(is_asked).n_unique().cast(pl.Int64)
            .alias("asked_answer_count"),
            pl.len().cast(pl.Int64).alias("token_count"),
            (soft_count / pl.len()).alias("soft_token_ratio"),
            pl.when(is_asked.any()).then(soft_count / is_asked.sum())
            .alias("asked_soft_token_ratio"),
            tail.mean().alias("mean_tail_mass"),
            median.alias("median_tail_mass"),
            high.alias("p90_tail_mass"),
        )
    )  # fmt: skip
    return measured.sort(order_sets()).select(list(SETS_SCHEMA)).match_to_schema(SETS_SCHEMA)


def order_sets() -> pl.Expr:
    """Return the place of a row's data set in `DATA_SETS`."""
    return pl.col("data_set").replace_strict(
        list(DATA_SETS), list(range(len(DATA_SETS))), return_dtype=pl.Int64
    )


def draw_set_charts(frame: pl.DataFrame, sets: pl.DataFrame) -> dict[str, str]:
    """Return the charts as Markdown by name; none where no token has a soft target."""
    measured = measure_sets(frame, sets)
    if not measured["soft_token_ratio"].sum():
        return {}
    return {
        "coverage_by_data_set": _draw_coverage(measured),
        "tail_mass_by_data_set": _draw_tails(frame, sets, measured["data_set"].to_list()),
    }


def _draw_coverage(measured: pl.DataFrame) -> str:
    rows = measured.select("data_set", "answer_count").iter_rows()
    png = draw_shares(
        {"soft target": measured["soft_token_ratio"].to_list()},
        colours=[BLUE],
        rows=[f"{name} ({count:,} answers)" for name, count in rows],
        rest=("hard only", LINE),
        title="Answer tokens with a soft target, by data set",
    )
    return embed_png(png, alt="Share of answer tokens with a soft target, by data set")


def _draw_tails(frame: pl.DataFrame, sets: pl.DataFrame, names: Sequence[str]) -> str:
    soft = list_tokens_by_set(frame, sets).filter("soft_ok")
    masses = {name: soft.filter(data_set=name)["tail_mass"].to_list() for name in names}
    drawn = {name: values for name, values in masses.items() if values}
    png = draw_histogram(
        drawn,
        colours=[COLOURS[DATA_SETS.index(name)] for name in drawn],
        edges=np.linspace(0, 1, 41),
        limit=MAXIMUM_TAIL,
        title="Probability outside the top K (projected rows above the limit stay hard)",
        axis_label="tail mass of an answer token",
    )
    return embed_png(png, alt="Histogram of the tail mass of soft targets, by data set")
