"""What the guard catches: recall on planted paraphrases, and what it costs on unrelated questions.

A measurement, never a tuning: the limit stays where it is. Belongs here: planting in every eval
question, counting by kind and threshold. Does not belong here: how a question is reworded
(`planting`), the verdict itself (`guard`), pictures (`evidence`).
"""

from collections.abc import Iterable

import polars as pl

from assets.eval_set.guard import LEAKAGE_COSINE_LIMIT
from assets.eval_set.planting import KINDS, plant

RECALL_THRESHOLDS = (0.85, 0.90, LEAKAGE_COSINE_LIMIT, 0.95)
ANY_KIND = "any_kind"  # all planted paraphrases together
UNRELATED = "unrelated_seed"
RULES = ("cosine", "guard")
"""`cosine`: the nearest cosine alone. `guard`: that, or repeated words, as the guard decides."""


def plant_paraphrases(cases: Iterable[tuple[str, str]]) -> pl.DataFrame:
    """Reword every (case_id, question) in every way that changes it: kind, case_id, text."""
    rows = [
        (kind, case_id, planted)
        for case_id, question in cases
        for kind in KINDS
        if (planted := plant(question, kind)) is not None
    ]
    return pl.DataFrame(rows, schema=["kind", "case_id", "text"], orient="row")


def measure_recall(judged: pl.DataFrame) -> pl.DataFrame:
    """Count what is rejected at each threshold, by kind and rule, with Wilson intervals (95 %).

    Args:
        judged: kind, nearest_cosine and reason of every planted paraphrase, and of questions of the
            kind `UNRELATED`. A share rejected is recall for the former; for the latter it is at
            most the share of false rejections, since a seed may truly be near a case.

    Returns:
        Rows of the table guard_recall: kind (and `ANY_KIND`), rule, threshold, caught, n, ratio and
        its limits.
    """
    from statsmodels.stats.proportion import proportion_confint

    is_planted = pl.col("kind") != UNRELATED
    planted = judged.filter(is_planted).with_columns(kind=pl.lit(ANY_KIND))
    by_words = ~pl.col("reason").is_in(["", "cosine"])
    counts = [
        pl.concat([judged.filter(is_planted), planted, judged.filter(~is_planted)])
        .group_by("kind", maintain_order=True)
        .agg(
            rule=pl.lit(rule),
            threshold=pl.lit(threshold),
            caught=((pl.col("nearest_cosine") >= threshold) | (by_words & (rule == "guard"))).sum(),
            n=pl.len(),
        )
        for rule in RULES
        for threshold in RECALL_THRESHOLDS
    ]
    table = pl.concat(counts)
    lower, upper = proportion_confint(
        table["caught"].to_numpy(), table["n"].to_numpy(), method="wilson"
    )
    return table.with_columns(
        is_planted=is_planted,
        ratio=pl.col("caught") / pl.col("n"),
        lower=pl.Series(lower),
        upper=pl.Series(upper),
    )
