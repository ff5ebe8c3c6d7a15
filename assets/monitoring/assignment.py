"""The assignment's audit: is who gets which arm of the canary chance, and nothing else?

An arm that depends on what was asked makes every comparison of the arms one of questions. Belongs
here: the sample ratio, independence of the arm, and guessing it from the prompt. Does not belong
here: the draw (`serving/pipeline/canary`).
"""

import polars as pl

from assets.monitoring.comparing import compare_counts, tell_apart
from assets.monitoring.measurements import Measurement, compare_interval, compare_number, leave_open
from assets.monitoring.slices import name_hour_block
from assets.monitoring.traffic import MINIMUM_CONVERSATIONS, Traffic, find_gap, take_first_asks
from assets.statistics import Interval

SMALLEST_P = 0.001
LARGEST_V = 0.05
LARGEST_AUC = 0.55
ATTRIBUTES = ("topic", "hour_block", "key_id")
MINIMUM_ARM = 50


def measure_assignment(traffic: Traffic) -> list[Measurement]:
    """Return the audit of the conversations that the canary drew for."""
    drawn = take_first_asks(traffic.asks.filter(pl.col("canary_arm").is_not_null()))
    drawn = drawn.with_columns(name_hour_block())
    gap = _find_gap(traffic, drawn)
    if gap:
        named = (("sample_ratio", SMALLEST_P), ("independence", SMALLEST_P))
        return [
            *(leave_open(m, gap, n=drawn.height, relation="at least", limit=x) for m, x in named),
            leave_open("arm_from_prompt", gap, n=drawn.height, relation="at most",
                       limit=LARGEST_AUC),
        ]  # fmt: skip
    return [
        _test_ratio(drawn),
        *(row for name in ATTRIBUTES for row in _test_attribute(drawn, name)),
        _guess_arm(drawn),
    ]


def _find_gap(traffic: Traffic, drawn: pl.DataFrame) -> str | None:
    if traffic.asks.is_empty():
        return "no traffic in the window"
    if drawn.is_empty():
        return "no canary ran in the window"
    if gap := find_gap(drawn, minimum=MINIMUM_CONVERSATIONS, unit="conversations in the canary"):
        return gap
    smaller = min(drawn["canary_arm"].value_counts()["count"].to_list())
    if drawn["canary_arm"].n_unique() < 2 or smaller < MINIMUM_ARM:
        return f"the smaller arm has {smaller} conversations, {MINIMUM_ARM} are needed"
    return None


def _test_ratio(drawn: pl.DataFrame) -> Measurement:
    """Compare the arms' sizes with the shares that each release drew with.

    The propensity of a teacher's conversation is its arm's share; exploration never touches it.
    """
    from scipy.stats import chisquare

    is_teacher = pl.col("canary_arm") == "teacher"
    by_release = (
        drawn.group_by("release_id", "phase")
        .agg(
            pl.len().alias("n"),
            (~is_teacher).sum().alias("student"),
            (1 - pl.col("propensity").filter(is_teacher).max()).alias("share"),
        )
        .drop_nulls("share")
    )
    n, student = int(by_release["n"].sum()), int(by_release["student"].sum())
    expected = float((by_release["n"] * by_release["share"]).sum())
    p = float(chisquare([student, n - student], [expected, n - expected]).pvalue)
    return compare_number(
        "sample_ratio",
        p,
        relation="at least",
        limit=SMALLEST_P,
        n=n,
        p_value=p,
        detail=f"{student} conversations of {n} in the student's arm, {expected:.1f} expected",
    )


def _test_attribute(drawn: pl.DataFrame, name: str) -> list[Measurement]:
    is_student = pl.col("canary_arm") == "student"
    tested = compare_counts(drawn.filter(is_student)[name], drawn.filter(~is_student)[name])
    told = f"{tested.category_count} categories of {name}"
    return [
        compare_number("independence", tested.p_value, relation="at least", limit=SMALLEST_P,
                       n=tested.n, p_value=tested.p_value, detail=told, slice_name=name),
        compare_number("cramers_v", tested.cramers_v, relation="at most", limit=LARGEST_V,
                       n=tested.n, p_value=tested.p_value, detail=told, slice_name=name),
    ]  # fmt: skip


def _guess_arm(drawn: pl.DataFrame) -> Measurement:
    """Guess the arm from the question's words; what can be guessed is not chance."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    features = TfidfVectorizer(ngram_range=(1, 2)).fit_transform(
        drawn["question"].fill_null("").to_list()
    )
    told = tell_apart(features, (drawn["canary_arm"] == "student").to_list())
    return compare_interval(
        "arm_from_prompt",
        Interval(value=told.auc, lower=told.lower, upper=told.upper, n=told.n),
        relation="at most",
        limit=LARGEST_AUC,
        p_value=told.p_value,
        detail="area under the curve of guessing the arm from the question",
    )
