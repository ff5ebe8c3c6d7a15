"""The agreement gate: what a shadow run says of this student on real questions.

Only pairs of this very pipeline are evidence: its student, its teacher, its index, its prompt, and
not longer ago than the policy allows. The rest is counted and left out. Belongs here: reading the
traces of production, that choice, and the gate. Does not belong here: pairing (`pairing`), what
monitoring watches from week to week (`assets/monitoring/agreement`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import polars as pl

from assets.releases.gates import GatePolicy, GateResult, Outcome
from assets.releases.pairing import pair_answers
from assets.statistics import wilson_interval
from assets.traces.hours import find_folder, list_hours, read_hour, scan_hours
from serving.home import Home

MINIMUM_HOURS = 24  # different hours with traffic: less is no day, whatever its volume
ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class ShadowedPipeline:
    """What both answers of a pair have to come from, as traces name it.

    `students` are asked in turn: a pair is of them if the first ones of them were asked, and no
    others.
    """

    students: tuple[str, ...]
    teacher: str
    index_fingerprint: str
    prompt_version: str

    @property
    def student(self) -> str:
        """What readers call the students."""
        return ", then ".join(self.students)


def read_pairs(home: Home, *, days: int, until: datetime | None = None) -> pl.DataFrame:
    """Return the pairs of production of so many days; no rows where there was no shadow run."""
    since = (until or datetime.now(UTC)) - timedelta(days=days)
    hours = [path for path in list_hours(find_folder(home)) if read_hour(path) >= since]
    answered = scan_hours(hours).filter(
        pl.col("env") == "prod", pl.col("outcome") == "answered", pl.col("asked_at").is_not_null()
    )
    is_shadow = pl.col("selection_mode").eq_missing("shadow")
    shadows = answered.filter(is_shadow).collect()
    asks = answered.filter(
        ~is_shadow, pl.col("trace_id").is_in(shadows["parent_trace_id"].implode())
    )
    return pair_answers(asks.collect(), shadows)


def leave_out_others(
    pairs: pl.DataFrame, pipeline: ShadowedPipeline
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the pairs of this pipeline, and how many were left out, each by its first reason."""
    reason = (
        pl.when(~is_of(pipeline.students))
        .then(pl.lit("another student"))
        .when(pl.col("teacher").ne_missing(pipeline.teacher))
        .then(pl.lit("another teacher"))
        .when(_has_other("indexes", pipeline.index_fingerprint))
        .then(pl.lit("another index"))
        .when(_has_other("prompts", pipeline.prompt_version))
        .then(pl.lit("another prompt"))
    )
    judged = pairs.with_columns(reason.alias("reason"))
    strange = judged["reason"].drop_nulls().value_counts().sort("reason")
    own = judged.filter(pl.col("reason").is_null()).drop("reason")
    return own, dict(strange.iter_rows())


def is_of(students: Sequence[str]) -> pl.Expr:
    """Return whether a pair asked the first of the students, or that and the next, and no other."""
    turns = ["\n".join(students[:count]) for count in range(1, len(students) + 1)]
    return pl.col("asked").list.join("\n").is_in(turns)


def _has_other(column: str, value: str) -> pl.Expr:
    return pl.col(column).list.eval(pl.element().ne_missing(value)).list.any()


def take_first(pairs: pl.DataFrame) -> pl.DataFrame:
    """Return one pair per conversation: who asks again asks about the same."""
    return pairs.unique("conversation", keep="first", maintain_order=True)


def find_shortage(own: pl.DataFrame, pipeline: ShadowedPipeline, policy: GatePolicy) -> str | None:
    """Say why so few pairs of the pipeline judge nothing; None where they do."""
    first = take_first(own)
    hours = first["asked_at"].dt.truncate("1h").n_unique()
    if first.height >= policy.minimum_agreement_pairs and hours >= MINIMUM_HOURS:
        return None
    return (
        f"{first.height} pairs of {pipeline.student} in {hours} different hours of the last "
        f"{policy.shadow_days} days; {policy.minimum_agreement_pairs} pairs in {MINIMUM_HOURS} "
        "hours are needed"
    )


def check_shadow_agreement(
    pairs: pl.DataFrame, pipeline: ShadowedPipeline, policy: GatePolicy
) -> GateResult:
    """Student and teacher answer alike in shadow: the Wilson lower bound is at or above the limit.

    One pair counts of each conversation: who asks again asks about the same. Fails when the upper
    bound is below. With too few pairs of this very pipeline, or of fewer than 24 different hours,
    the gate is shown and not counted: production has not been asked yet.
    """
    limit, days = policy.minimum_agreement_ratio, policy.shadow_days
    own, left_out = leave_out_others(pairs, pipeline)
    own = take_first(own)
    named = ", ".join(f"{count} of {reason}" for reason, count in left_out.items())
    aside = f"; left out: {named}" if named else ""
    if pairs.is_empty():
        detail = f"no shadow run in the last {days} days: the phase `imposter` makes one"
        return _describe("INCONCLUSIVE", limit=limit, n=0, detail=detail)
    if shortage := find_shortage(own, pipeline, policy):
        detail = f"{shortage}{aside}"
        return _describe("INCONCLUSIVE", limit=limit, n=own.height, detail=detail)
    hits, newest = int(own["agrees"].sum()), own["asked_at"].dt.date().max()
    # One-sided at 5 %: the two-sided interval at 10 %.
    bounds = wilson_interval(hits, own.height, alpha=2 * ALPHA)
    holds, is_lost = bounds.lower >= limit, bounds.upper < limit
    return _describe(
        "PASS" if holds else "FAIL" if is_lost else "INCONCLUSIVE",
        limit=limit,
        n=own.height,
        detail=f"{hits} of {own.height} pairs of {pipeline.student}, Wilson bounds "
        f"{bounds.lower:.3f} and {bounds.upper:.3f}, until {newest!s}{aside}",
        number=bounds.lower,
        is_gating=True,
    )


def _describe(
    outcome: Outcome,
    *,
    limit: float,
    n: int,
    detail: str,
    number: float | None = None,
    is_gating: bool = False,
) -> GateResult:
    return GateResult(
        name="shadow_agreement",
        unit="ratio",
        relation="at least",
        outcome=outcome,
        number=number,
        limit=limit,
        n=n,
        detail=detail,
        is_gating=is_gating,
    )
