"""Measuring: every metric of every case in one shape, a numerator over a denominator.

Belongs here: how grades, scores, costs and latencies become rows that can be summed. Does not
belong here: intervals and differences (`comparison`).
"""

from collections.abc import Collection

import polars as pl

from serving.models.protocols import ServedBy

_MODELS: tuple[ServedBy, ...] = ("teacher", "student")
_HAS_TOKENS = pl.col("prompt_tokens") + pl.col("completion_tokens") > 0


def measure_cases(
    arm_answers: pl.DataFrame,
    graded_answers: pl.DataFrame,
    golden_cases: pl.DataFrame,
    rubric_scores: pl.DataFrame,
    *,
    unpriced: Collection[ServedBy],
    free: Collection[ServedBy],
) -> pl.DataFrame:
    """Bring every metric to one shape: numerator and denominator of one case of one arm.

    Columns: arm, case_id, repeat, metric, numerator, denominator, status, bucket, cluster. The
    cluster is the case's first gold page, or the case itself where it has none. Rubric metrics come
    from `rubric_scores`, whatever `graded_answers` holds of them. `unpriced` names the models whose
    price the config does not state, `free` those for which it states 0.
    """
    cases = golden_cases.select(
        "case_id",
        "bucket",
        "should_refuse",
        cluster=pl.coalesce(pl.col("gold_pages").list.first(), "case_id"),
    )
    columns = ("arm", "case_id", "repeat", "metric", "numerator", "denominator", "status")
    first = graded_answers.filter(pl.col("repeat") == pl.col("repeat").min().over("arm", "case_id"))
    parts = (
        first.filter(pl.col("metric") != "refused", ~pl.col("metric").str.starts_with("rubric")),
        _measure_refusals(first.filter(metric="refused").join(cases, on="case_id")),
        _measure_rubric(rubric_scores),
        _measure_column(
            price_answers(arm_answers, unpriced, free), "cost_usd", "usd_per_1k", scale=1000.0
        ),
        _measure_column(
            arm_answers.filter(repeat=0).with_columns(is_valid=pl.col("verdict") == "valid"),
            "is_valid",
            "valid_ratio",
            scale=1.0,
        ),
        *(_measure_time(arm_answers, column) for column in ("latency_ms", "first_token_ms")),
    )
    types = pl.Schema({"repeat": pl.Int32, "numerator": pl.Float64, "denominator": pl.Float64})
    measured = pl.concat([part.select(columns).cast(types) for part in parts])
    return measured.join(cases.drop("should_refuse"), on="case_id", maintain_order="left")


def _measure_time(arm_answers: pl.DataFrame, column: str) -> pl.DataFrame:
    """Return the rows that carry this time; answers of before it was measured carry none."""
    if column not in arm_answers.columns:
        arm_answers = arm_answers.with_columns(pl.lit(None, dtype=pl.Float64).alias(column))
    timed = arm_answers.filter(pl.col(column).is_not_null(), pl.col("error").is_null())
    return _measure_column(timed, column, column, scale=1.0)


def price_answers(
    arm_answers: pl.DataFrame, unpriced: Collection[ServedBy], free: Collection[ServedBy]
) -> pl.DataFrame:
    """Return the first answers with their cost, null where a model without a price was asked.

    A price that the configuration leaves out would make an arm look free; one that it states as 0
    is free. So is an answer without a token, which a student's rules gave. A stored cost of 0 of
    any other model is of before its price was stated.
    """
    is_unknown = _is_any_asked(unpriced) | _is_unpaid(set(_MODELS) - set(free))
    return arm_answers.filter(repeat=0).with_columns(
        pl.when(~(is_unknown & _HAS_TOKENS)).then("cost_usd")
    )


def find_outdated(arm_answers: pl.DataFrame, free: Collection[ServedBy]) -> tuple[ServedBy, ...]:
    """Return the models with answers that cost 0 and are not free: made before a price was stated.

    Args:
        arm_answers: of every arm.
        free: the models whose price is stated as 0.
    """
    first = arm_answers.filter(_HAS_TOKENS, pl.col("error").is_null(), repeat=0)
    return tuple(
        model
        for model in _MODELS
        if model not in free and not first.filter(_is_unpaid({model})).is_empty()
    )


def _is_any_asked(models: Collection[ServedBy]) -> pl.Expr:
    asked = (pl.col("served_by").is_in(list(models)), pl.col("used_fallback"))
    return pl.any_horizontal(*asked) if models else pl.lit(value=False)


def _is_unpaid(models: Collection[ServedBy]) -> pl.Expr:
    """Return the predicate of answers that one of these models was asked for, and that cost 0."""
    return (pl.col("cost_usd") == 0) & _is_any_asked(models)


def _measure_refusals(flags: pl.DataFrame) -> pl.DataFrame:
    """Turn refused flags into precision (over refusals) and recall (over should_refuse) rows."""
    unknown, wanted = pl.col("status") == "inconclusive", pl.col("should_refuse")
    recall = flags.filter(wanted).with_columns(metric=pl.lit("refusal_recall"))
    precision = flags.filter(unknown | (pl.col("value") == 1)).with_columns(
        metric=pl.lit("refusal_precision"),
        numerator=pl.when(unknown).then(None).otherwise(wanted.cast(pl.Float64)),
    )
    return pl.concat([recall, precision])


def _measure_rubric(scores: pl.DataFrame) -> pl.DataFrame:
    """Give each axis a row, and the composite one: inconclusive where an axis was left open."""
    axes = scores.select(
        "arm",
        "case_id",
        metric=pl.format("rubric_{}", "axis"),
        numerator=pl.col("score").cast(pl.Float64),
    )
    composite = axes.group_by("arm", "case_id", maintain_order=True).agg(
        pl.when(pl.col("numerator").null_count() == 0).then(pl.col("numerator").mean())
    )
    both = pl.concat([axes, composite.with_columns(metric=pl.lit("rubric")).select(axes.columns)])
    return _with_status(both.with_columns(repeat=pl.lit(0)))


def _measure_column(
    answers: pl.DataFrame, column: str, metric: str, *, scale: float
) -> pl.DataFrame:
    return _with_status(
        answers.select(
            "arm",
            "case_id",
            "repeat",
            metric=pl.lit(metric),
            numerator=pl.col(column).cast(pl.Float64) * scale,
        )
    )


def _with_status(frame: pl.DataFrame) -> pl.DataFrame:
    known = pl.col("numerator").is_not_null()
    return frame.with_columns(
        denominator=pl.when(known).then(1.0),
        status=pl.when(known).then(pl.lit("graded")).otherwise(pl.lit("inconclusive")),
    )
