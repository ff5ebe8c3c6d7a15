"""The metrics and slices of the parity table, each with the words its readers are told.

Belongs here: names, units, directions, definitions. Does not belong here: grading one answer
(`graders`), making one number of many cases (`comparison`).
"""

from dataclasses import dataclass
from typing import Literal

from assets.parity.exposure import SEEN, UNSEEN

UNPAIRED = "refusal_precision"  # arms refuse different questions: there is nothing to pair
BUCKETS = ("answerable", "boundary", "out_of_scope")
SLICES = ("all", *BUCKETS, SEEN, UNSEEN)
"""Buckets are frozen with the golden set, so they may gate. What the student trained on is known
after the fact only: the last two slices explain a result and decide nothing."""

RUBRIC_AXES = ("grounded", "complete", "cites_right", "refuses_right", "clear")

Unit = Literal["ratio", "score", "ms", "usd"]
Method = Literal["binary", "share", "mean", "percentile"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One row of the parity table. `definition` is what a reader of the report is told."""

    name: str
    label: str
    unit: Unit
    method: Method
    definition: str
    is_higher_better: bool = True
    percentile: float = 50.0
    measured: str = ""
    """The name under which `measure_cases` has it, where percentiles share one; else its own."""


METRICS = (
    Metric(
        name="exact_match",
        label="Exact match",
        unit="ratio",
        method="binary",
        definition=(
            "Share of cases answered right: every fact the golden case asks for occurs in the "
            "answer (case, markup and number style aside) or, where the documentation has no "
            "answer, the arm refused. Wilson interval."
        ),
    ),
    Metric(
        name="cite_coverage",
        label="Cite coverage",
        unit="ratio",
        method="share",
        definition=(
            "Share of statements that carry a citation, over answers that were not refused. The "
            "interval counts answers, not statements, because one answer's statements stand or "
            "fall together."
        ),
    ),
    Metric(
        name="cite_correctness",
        label="Cite correctness",
        unit="ratio",
        method="share",
        definition=(
            "Share of citations whose chunk lies on a gold page under a gold heading. Cases that "
            "name no gold page say nothing here."
        ),
    ),
    Metric(
        name="groundedness",
        label="Groundedness",
        unit="ratio",
        method="share",
        definition=(
            "Share of cited statements whose content words, or else whose sense by the embedder, "
            "the cited chunk holds. It catches text that came from nowhere; it cannot see a "
            "negation."
        ),
    ),
    Metric(
        name="refusal_precision",
        label="Refusal precision",
        unit="ratio",
        method="binary",
        definition=(
            "Of the questions the arm refused, the share it should have refused. Low means it "
            "turns away questions the documentation answers. Arms refuse different questions, so "
            "no paired difference."
        ),
    ),
    Metric(
        name="refusal_recall",
        label="Refusal recall",
        unit="ratio",
        method="binary",
        definition=(
            "Of the questions that should be refused, the share the arm refused. Low means it "
            "answers where the documentation is silent."
        ),
    ),
    Metric(
        name="rubric",
        label="Rubric",
        unit="score",
        method="mean",
        definition=(
            "The judge's score, 1 to 5, averaged over its axes and then over cases. A composite "
            "is a view: it never gates, and the axes stand in the table of each slice."
        ),
    ),
    Metric(
        name="p50_latency_ms",
        label="Latency p50",
        unit="ms",
        method="percentile",
        measured="latency_ms",
        is_higher_better=False,
        definition=(
            "Half of the timed answers took at most this long, retrieval and every attempt "
            "included; asked one at a time, all arms on the same machine. Bootstrap interval."
        ),
    ),
    Metric(
        name="p95_latency_ms",
        label="Latency p95",
        unit="ms",
        method="percentile",
        measured="latency_ms",
        percentile=95.0,
        is_higher_better=False,
        definition=(
            "Nineteen of twenty answers took at most this long. The tail is where fallbacks show."
        ),
    ),
    Metric(
        name="usd_per_1k",
        label="US$ per 1,000",
        unit="usd",
        method="mean",
        is_higher_better=False,
        definition=(
            "Cost of a thousand questions at the configured prices of a token, the wasted student "
            "call of a fallback included. What a student's machine costs by the hour is told under "
            "Economics."
        ),
    ),
)

SUPPORTING_METRICS = (
    Metric(
        name="p50_first_token_ms",
        label="First token p50",
        unit="ms",
        method="percentile",
        measured="first_token_ms",
        is_higher_better=False,
        definition=(
            "Half of the timed answers began within this, retrieval and any attempt before it "
            "included. Of engines that report their first token; the others show none. A user "
            "sees an answer only once the validator has read all of it."
        ),
    ),
    Metric(
        name="valid_ratio",
        label="Valid first answers",
        unit="ratio",
        method="binary",
        definition=(
            "Share of cases whose first attempt passed the validator. What does not is replaced by "
            "the teacher (routed) or shown as a refusal (student alone)."
        ),
    ),
    Metric(
        name="cite_page_correctness",
        label="Cite correctness, page alone",
        unit="ratio",
        method="share",
        definition=("Share of citations on a gold page, whatever the heading."),
    ),
    *(
        Metric(
            name=f"rubric_{axis}",
            label=f"Rubric: {axis.replace('_', ' ')}",
            unit="score",
            method="mean",
            definition=f"The judge's mean score on the axis {axis}.",
        )
        for axis in RUBRIC_AXES
    ),
)
"""Measured like the ten and shown beside them, but never part of the headline table."""
