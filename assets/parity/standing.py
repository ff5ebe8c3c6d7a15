"""Who stands: the rulers whose ratings say something about the measurement of today.

Waves are appended for ever, so the history holds judges, epochs and rubrics that took over from one
another. What a retired one did is history: it neither blocks the ruler of today nor covers for it.
Belongs here: the order of rulers, and who stands. Does not belong here: what ratings say (`rulers`,
`liveness`).
"""

import polars as pl

RULER = ("rater_id", "judge_epoch", "rubric_version")
PEOPLE = "human"


def order_rulers(ratings: pl.DataFrame) -> pl.DataFrame:
    """Return one row per ruler, the one of today last: who rated last, else who began last.

    A judge that is put back after another stood in for it is the ruler of today again.
    """
    return (
        ratings.group_by(RULER)
        .agg(began=pl.col("wave").min(), rated=pl.col("wave").max())
        .sort("rated", "began", *RULER)
    )


def choose_ruler(ratings: pl.DataFrame, place: int = -1) -> pl.DataFrame:
    """Return the ratings of the ruler at a place of the order: -1 is that of today."""
    ruler = order_rulers(ratings)[place]
    return ratings.join(ruler, on=RULER, how="semi", nulls_equal=True)


def keep_standing(ratings: pl.DataFrame) -> pl.DataFrame:
    """Return the ratings of the rulers that stand, all their waves.

    Of each kind of rater stands the ruler of today. People do not take over from one another: each
    stands who has rated since the judge of today began.
    """
    parts = {str(kind): rows for (kind,), rows in ratings.group_by("rater_kind")}
    standing = [choose_ruler(parts[kind]) for kind in sorted(parts) if kind != PEOPLE]
    people = parts.get(PEOPLE, ratings.clear())
    if standing:
        began = pl.concat(standing)["wave"].min()
        active = people.filter(pl.col("wave") >= began).select(RULER).unique()
        people = people.join(active, on=RULER, how="semi", nulls_equal=True)
    return pl.concat([*standing, people]) if standing else people
