"""Agreement: how near a student comes to its teacher's labels on held-out questions.

Belongs here: what counts as agreement on one case, the metrics of an arm, arms against each other.
Does not belong here: asking (`held_out`), formulas of intervals (`assets.statistics`).
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from assets import tables
from assets.eval_set.facts import normalise_text
from assets.statistics import (
    Interval,
    clustered_bootstrap,
    clustered_bootstrap_difference,
    clustered_wilson_interval,
    mcnemar_exact,
    tango_interval,
    wilson_interval,
)
from assets.students.held_out import ARMS, BASE, STUDENT, TOP_CHUNK

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A metric that is a share of cases.

    `among` says which cases count, `hit` which of them are right. Where `among` reads the label
    alone, two arms are counted on the same cases and can be paired.
    """

    name: str
    among: pl.Expr
    hit: pl.Expr
    is_paired: bool = True


_REFUSED, _LABEL_REFUSED = pl.col("refused"), pl.col("label_refused")
_ALL = pl.lit(value=True)

RATES = (
    Rate(name="agreement", among=_ALL, hit=pl.col("agrees")),
    Rate(name="exact_match", among=_ALL, hit=pl.col("is_exact")),
    Rate(name="same_citations", among=~_LABEL_REFUSED, hit=pl.col("has_same_citations")),
    Rate(
        name="same_citations_answered",
        among=~_LABEL_REFUSED & ~_REFUSED,
        hit=pl.col("has_same_citations"),
        is_paired=False,
    ),
    Rate(name="valid", among=_ALL, hit=pl.col("is_valid")),
    Rate(name="valid_answerable", among=~_LABEL_REFUSED, hit=pl.col("is_valid")),
    Rate(name="refusal_precision", among=_REFUSED, hit=_LABEL_REFUSED, is_paired=False),
    Rate(name="refusal_recall", among=_LABEL_REFUSED, hit=_REFUSED),
    Rate(name="out_of_scope_refused", among=pl.col("is_out_of_scope"), hit=_REFUSED),
)
"""`agreement` is what confidence predicts: a valid answer with the label's decision to refuse and,
where both answer, its citation set. `exact_match` also asks for its normalised text."""


def compare_with_labels(answers: pl.DataFrame) -> pl.DataFrame:
    """Return the answered rows with is_valid, is_exact, has_same_citations, agrees, answer_f1."""
    answered = answers.filter(pl.col("error").is_null())
    compared = [compare_row(row) for row in answered.iter_rows(named=True)]
    schema = {
        "is_valid": pl.Boolean(),
        "is_exact": pl.Boolean(),
        "has_same_citations": pl.Boolean(),
        "agrees": pl.Boolean(),
        "answer_f1": pl.Float64(),
    }
    return pl.concat([answered, pl.DataFrame(compared, schema=schema)], how="horizontal")


def compare_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what one held_out_answers row and its label have in common.

    An invalid answer may still cite what the label cites; it never agrees.
    """
    is_valid = row["verdict"] == "valid"
    decides_alike = row["refused"] == row["label_refused"]
    both_refuse = decides_alike and row["refused"]
    both_answer = decides_alike and not row["refused"]
    cites_alike = both_answer and set(row["citations"]) == set(row["label_citations"])
    says_alike = normalise_text(row["answer"]) == normalise_text(row["label_answer"])
    return {
        "is_valid": is_valid,
        "is_exact": both_refuse or (both_answer and says_alike),
        "has_same_citations": cites_alike,
        "agrees": is_valid and (both_refuse or cites_alike),
        "answer_f1": score_f1(row["answer"], row["label_answer"]) if both_answer else 0.0,
    }


def score_f1(answer: str, label: str) -> float:
    """Return the harmonic mean of precision and recall of the label's words, citations aside."""
    said = Counter(_WORD.findall(normalise_text(answer)))
    meant = Counter(_WORD.findall(normalise_text(label)))
    shared = (said & meant).total()
    return 2 * shared / (said.total() + meant.total()) if shared else 0.0


def build_validation_report(answers: pl.DataFrame) -> pl.DataFrame:
    """Return the table validation_report of held_out_answers: arms, then the student against each.

    No evidence: value and limits are null and n is 0, never a zero.
    """
    compared = compare_with_labels(answers.filter(pl.col("split") == "validation"))
    by_arm = {arm: compared.filter(pl.col("arm") == arm) for arm in ARMS}
    rows = [
        {"kind": "arm", "arm": arm} | row
        for arm, cases in by_arm.items()
        if not cases.is_empty()
        for row in measure_arm(cases)
    ]
    for baseline in (BASE, TOP_CHUNK):
        pairs = by_arm[STUDENT].join(by_arm[baseline], on="example_id", suffix="_baseline")
        name = f"{STUDENT}-{baseline}"
        rows += [{"kind": "difference", "arm": name} | row for row in measure_difference(pairs)]
    return pl.DataFrame(rows, schema=tables.VALIDATION_REPORT)


def measure_arm(cases: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield every metric of one arm."""
    for rate in RATES:
        counted = cases.filter(rate.among)
        hits = int(counted.select(rate.hit.sum()).item() or 0) if counted.height else 0
        interval = wilson_interval(hits, counted.height) if counted.height else None
        yield _describe(rate.name, interval, "wilson", numerator=hits, denominator=counted.height)
    yield _measure_citations(cases)
    yield _measure_refusal_f1(cases)
    answerable = cases.filter(~_LABEL_REFUSED)
    f1 = answerable["answer_f1"].to_list()
    interval = clustered_bootstrap(f1, answerable["seed_id"].to_list()) if f1 else None
    yield _describe("answer_f1", interval, "bootstrap")


def measure_difference(pairs: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield the paired metrics of a student minus a baseline, on the cases that both answered."""
    for rate in RATES:
        if not rate.is_paired:
            continue
        first = pairs.filter(rate.among).select(rate.hit.alias("hit")).to_series()
        second = _read_baseline(pairs).filter(rate.among).select(rate.hit.alias("hit")).to_series()
        n10, n01 = int((first & ~second).sum()), int((~first & second).sum())
        interval = tango_interval(n10, n01, len(first)) if len(first) else None
        yield _describe(rate.name, interval, "tango") | {
            "n10": n10,
            "n01": n01,
            "mcnemar_p": mcnemar_exact(n10, n01) if len(first) else None,
        }
    answerable = pairs.filter(~_LABEL_REFUSED)
    ones = [1.0] * answerable.height
    interval = None
    if ones:
        interval = clustered_bootstrap_difference(
            (answerable["answer_f1"].to_list(), ones),
            (answerable["answer_f1_baseline"].to_list(), ones),
            answerable["seed_id"].to_list(),
        )
    yield _describe("answer_f1", interval, "bootstrap")


def find_metric(report: pl.DataFrame, arm: str, metric: str) -> dict[str, Any]:
    """Return the row of an arm (or difference) and metric; a baseline never asked has none: n 0."""
    found = report.filter((pl.col("arm") == arm) & (pl.col("metric") == metric))
    if found.is_empty():
        return dict.fromkeys(tables.VALIDATION_REPORT.names()) | {"arm": arm, "n": 0}
    return found.row(0, named=True)


def _read_baseline(pairs: pl.DataFrame) -> pl.DataFrame:
    """Return the baseline's columns under their own names, so that one expression reads both."""
    suffix = "_baseline"
    return pairs.select(
        pl.col(name).alias(name.removesuffix(suffix))
        for name in pairs.columns
        if name.endswith(suffix)
    )


def _measure_citations(cases: pl.DataFrame) -> dict[str, Any]:
    """Cite correctness: share of citations that are among the label's, where both answer."""
    both = cases.filter(~_LABEL_REFUSED & ~_REFUSED & (pl.col("citations").list.len() > 0))
    right = both.select(
        pl.col("citations").list.set_intersection("label_citations").list.len()
    ).to_series()
    cited = both["citations"].list.len()
    interval = clustered_wilson_interval(right.to_list(), cited.to_list()) if len(both) else None
    return _describe(
        "cite_correctness",
        interval,
        "clustered wilson",
        numerator=float(right.sum()),
        denominator=float(cited.sum()),
    )


def _measure_refusal_f1(cases: pl.DataFrame) -> dict[str, Any]:
    """Refusal F1: 2 TP / (2 TP + FP + FN), with whole seeds resampled."""
    parts = cases.select(
        "seed_id",
        numerator=2.0 * (_REFUSED & _LABEL_REFUSED).cast(pl.Float64),
        denominator=_REFUSED.cast(pl.Float64) + _LABEL_REFUSED.cast(pl.Float64),
    )
    interval = None
    if parts["denominator"].sum():
        interval = clustered_bootstrap(
            parts["numerator"].to_list(),
            parts["seed_id"].to_list(),
            denominators=parts["denominator"].to_list(),
        )
    return _describe("refusal_f1", interval, "bootstrap")


def _describe(
    metric: str,
    interval: Interval | None,
    method: str,
    *,
    numerator: float | None = None,
    denominator: float | None = None,
) -> dict[str, Any]:
    return {
        "metric": metric,
        "value": interval.value if interval else None,
        "lower": interval.lower if interval else None,
        "upper": interval.upper if interval else None,
        "n": interval.n if interval else 0,
        "numerator": numerator,
        "denominator": denominator,
        "method": method,
    }
