"""The comparison: arms on every metric and slice, with intervals, and against the teacher.

Belongs here: which metrics and slices exist, how an arm's cases become one number, how numbers are
written for a reader. Does not belong here: grading one answer (`graders`), formulas of intervals
(`statistics`), HTML (`report`), what a difference means for a release (stage `releases`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from assets import tables
from assets.parity.exposure import SEEN, UNSEEN
from assets.statistics import (
    BOOTSTRAP_RESAMPLES,
    BOOTSTRAP_SEED,
    bootstrap_percentile,
    clustered_bootstrap,
    clustered_bootstrap_difference,
    clustered_wilson_interval,
    mcnemar_exact,
    tango_interval,
    wilson_interval,
)
from serving.errors import InvalidInputError

BASELINE = "teacher"
UNPAIRED = "refusal_precision"  # arms refuse different questions: there is nothing to pair
ARMS = ("teacher", "student", "routed")
BUCKETS = ("answerable", "boundary", "out_of_scope")
SLICES = ("all", *BUCKETS, SEEN, UNSEEN)
"""Buckets are frozen with the golden set, so they may gate. What the student trained on is known
after the fact only: the last two slices explain a result and decide nothing."""

RUBRIC_AXES = ("grounded", "complete", "cites_right", "refuses_right", "clear")

DASH, MINUS = "\u2013", "\u2212"

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
            "Share of cited statements whose content words the cited chunk holds. It catches text"
            " that came from nowhere; it cannot see a negation."
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
            "Cost of a thousand questions at the configured prices, the wasted student call of a "
            "fallback included."
        ),
    ),
)

SUPPORTING_METRICS = (
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

_KEY = ("case_id", "repeat")


def build_parity_table(
    *,
    arm_answers: pl.DataFrame,
    graded_answers: pl.DataFrame,
    golden_cases: pl.DataFrame,
    rubric_scores: pl.DataFrame,
    exposure: pl.DataFrame,
    alpha: float = 0.05,
    resamples: int = BOOTSTRAP_RESAMPLES,
    seed: int = BOOTSTRAP_SEED,
) -> pl.DataFrame:
    """Compare the arms: a row per arm, slice and metric, and each arm's distance to the teacher.

    Quality and cost are read from each case's first repeat, latency from the rows that carry one.
    Intervals are two-sided at 1 - alpha. `exposure` (case_id, slice) says which cases rest on
    chunks the student trained on; the other slices are the buckets.
    """
    present = set(arm_answers["arm"].unique())
    arms = [arm for arm in ARMS if arm in present] + sorted(present - set(ARMS))
    if BASELINE not in present:
        raise InvalidInputError(
            "comparing the arms",
            expected=f"answers of the arm {BASELINE!r} to compare with",
            found=f"arms {arms}",
            next_step="rebuild parity/arm_answers with every arm",
        )
    measured = measure_cases(arm_answers, graded_answers, golden_cases, rubric_scores)
    settings = {"alpha": alpha, "resamples": resamples, "seed": seed}
    rows: list[dict[str, Any]] = []
    slices = pl.concat([golden_cases.select("case_id", slice="bucket"), exposure])
    for slice_name in SLICES:
        members = slices if slice_name == "all" else slices.filter(slice=slice_name)
        kept = measured.join(members, on="case_id", how="semi", maintain_order="left")
        by_arm = {arm: kept.filter(arm=arm) for arm in arms}
        for metric in (*METRICS, *SUPPORTING_METRICS):
            of = {arm: frame.filter(metric=_measured_as(metric)) for arm, frame in by_arm.items()}
            place = {"slice": slice_name, "metric": metric.name}
            for arm in arms:
                rows.append(place | _summarise_arm(metric, arm, of[arm], settings))
            for arm in (a for a in arms if a != BASELINE):
                rows.append(place | _compare(metric, arm, of[arm], of[BASELINE], settings))
                if metric.unit == "usd":
                    rows.append(place | _divide_costs(arm, of[arm], of[BASELINE], settings))
    return pl.DataFrame(rows, schema=tables.PARITY_REPORT)


def measure_cases(
    arm_answers: pl.DataFrame,
    graded_answers: pl.DataFrame,
    golden_cases: pl.DataFrame,
    rubric_scores: pl.DataFrame,
) -> pl.DataFrame:
    """Bring every metric to one shape: numerator and denominator of one case of one arm.

    Columns: arm, case_id, repeat, metric, numerator, denominator, status, bucket, cluster. The
    cluster is the case's first gold page, or the case itself where it has none. Rubric metrics come
    from `rubric_scores`, whatever `graded_answers` holds of them.
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
        _measure_column(arm_answers.filter(repeat=0), "cost_usd", "usd_per_1k", scale=1000.0),
        _measure_column(
            arm_answers.filter(repeat=0).with_columns(is_valid=pl.col("verdict") == "valid"),
            "is_valid",
            "valid_ratio",
            scale=1.0,
        ),
        _measure_column(
            arm_answers.filter(pl.col("latency_ms").is_not_null(), pl.col("error").is_null()),
            "latency_ms",
            "latency_ms",
            scale=1.0,
        ),
    )
    types = pl.Schema({"repeat": pl.Int32, "numerator": pl.Float64, "denominator": pl.Float64})
    measured = pl.concat([part.select(columns).cast(types) for part in parts])
    return measured.join(cases.drop("should_refuse"), on="case_id", maintain_order="left")


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


def _measured_as(metric: Metric) -> str:
    return "latency_ms" if metric.method == "percentile" else metric.name


def _summarise_arm(
    metric: Metric, arm: str, rows: pl.DataFrame, settings: dict[str, Any]
) -> dict[str, Any]:
    graded = rows.filter(status="graded")
    head = {
        "kind": "arm",
        "arm": arm,
        "inconclusive_count": rows.filter(status="inconclusive").height,
    }
    if graded.is_empty():
        return head | _empty_interval()
    num, den = graded["numerator"].to_list(), graded["denominator"].to_list()
    if metric.method == "binary":
        method, interval = "wilson", wilson_interval(sum(num), len(num), alpha=settings["alpha"])
    elif metric.method == "share":
        method = "wilson over answers"
        interval = clustered_wilson_interval(num, den, alpha=settings["alpha"])
    elif metric.method == "mean":
        method, interval = (
            "bootstrap",
            clustered_bootstrap(num, graded["cluster"].to_list(), **settings),
        )
    else:
        method, interval = "bootstrap", bootstrap_percentile(num, metric.percentile, **settings)
    totals = {"numerator": sum(num), "denominator": sum(den)}
    counts = totals if metric.unit == "ratio" else {}
    return head | counts | vars(interval) | {"method": method}


def _compare(
    metric: Metric,
    arm: str,
    rows: pl.DataFrame,
    baseline: pl.DataFrame,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Compare on the cases both arms have a value for; count those that one of them lacks."""
    pairs, inconclusive = _pair(rows, baseline)
    head = {
        "kind": "difference",
        "arm": f"{arm}-{BASELINE}",
        "inconclusive_count": inconclusive,
    }
    if pairs.is_empty() or metric.name == UNPAIRED:
        return head | _empty_interval()
    num, base = pairs["numerator"].to_list(), pairs["numerator_base"].to_list()
    if metric.method == "percentile":
        interval = bootstrap_percentile(num, metric.percentile, minus=base, **settings)
        return head | vars(interval) | {"method": "bootstrap"}
    bootstrap = clustered_bootstrap_difference(
        (num, pairs["denominator"].to_list()),
        (base, pairs["denominator_base"].to_list()),
        pairs["cluster"].to_list(),
        **settings,
    )
    limits = {"bootstrap_lower": bootstrap.lower, "bootstrap_upper": bootstrap.upper}
    if metric.method != "binary":
        return head | vars(bootstrap) | {"method": "bootstrap by gold page"} | limits
    n10 = sum(a > b for a, b in zip(num, base, strict=True))
    n01 = sum(a < b for a, b in zip(num, base, strict=True))
    tango = tango_interval(n10, n01, len(num), alpha=settings["alpha"])
    tests = {"n10": n10, "n01": n01, "mcnemar_p": mcnemar_exact(n10, n01)}
    return head | vars(tango) | {"method": "tango"} | tests | limits


def _divide_costs(
    arm: str, rows: pl.DataFrame, baseline: pl.DataFrame, settings: dict[str, Any]
) -> dict[str, Any]:
    pairs, inconclusive = _pair(rows, baseline)
    head = {
        "kind": "ratio",
        "arm": f"{arm}/{BASELINE}",
        "inconclusive_count": inconclusive,
    }
    if pairs.is_empty() or not pairs["numerator_base"].sum():
        return head | _empty_interval()
    interval = clustered_bootstrap(
        pairs["numerator"].to_list(),
        pairs["cluster"].to_list(),
        denominators=pairs["numerator_base"].to_list(),
        **settings,
    )
    return head | vars(interval) | {"method": "bootstrap by gold page"}


def _pair(rows: pl.DataFrame, baseline: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Return the cases graded in both arms, and how many are inconclusive in either."""
    unknown = pl.concat([rows, baseline]).filter(status="inconclusive").unique(_KEY).height
    pairs = rows.filter(status="graded").join(
        baseline.filter(status="graded"), on=_KEY, suffix="_base", maintain_order="left"
    )
    return pairs, unknown


def _empty_interval() -> dict[str, Any]:
    return {"value": None, "lower": None, "upper": None, "n": 0, "method": "none"}


def find_row(
    report: pl.DataFrame, arm: str, metric: str, slice_name: str = "all"
) -> dict[str, Any]:
    """Return the parity table's one row for an arm (or `student-teacher`, `routed/teacher`)."""
    found = report.filter(arm=arm, metric=metric, slice=slice_name)
    if found.height != 1:
        raise InvalidInputError(
            "reading the parity table",
            expected=f"one row for arm {arm!r}, metric {metric!r}, slice {slice_name!r}",
            found=f"{found.height} rows",
            next_step="rebuild parity/parity_report",
        )
    return found.row(0, named=True)


def format_value(value: float | None, unit: Unit, *, is_difference: bool = False) -> str:
    """Write a number for a reader; rounding happens here and nowhere else. No value is a dash."""
    if value is None:
        return DASH
    sign = "" if not is_difference and value >= 0 else "+" if value > 0 else MINUS
    size = abs(value)
    if unit == "ratio":
        text = f"{100 * size:.1f}{' pp' if is_difference else ' %'}"
    elif unit == "score":
        text = f"{size:.2f}"
    elif unit == "ms":
        text = f"{size:,.0f} ms" if size >= 100 else f"{size:.1f} ms"
    else:
        text = f"${size:,.2f}" if size >= 0.1 or size == 0 else f"${size:.4f}"
    is_zero = not any(digit in text for digit in "123456789")
    return text if is_zero else f"{sign}{text}"


def format_limits(row: dict[str, Any], unit: Unit) -> str:
    """Write a row's interval, `88.1 to 96.4 %`, or why there is none."""
    if row["value"] is None:
        if row["kind"] == "difference" and row["metric"] == UNPAIRED:
            return "not paired"
        unknown = row["inconclusive_count"]
        return f"inconclusive ({unknown} failed)" if unknown else "no case"
    is_difference = row["kind"] == "difference"
    if is_difference and row["value"] == row["lower"] == row["upper"] == 0:
        return "no case differs"
    ends = [format_value(row[end], unit, is_difference=is_difference) for end in ("lower", "upper")]
    suffix = ends[1][ends[1].find(" ") :] if " " in ends[1] else ""
    return f"{ends[0].removesuffix(suffix)} to {ends[1]}"


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table of strings for a console."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def render_parity_table_text(report: pl.DataFrame, *, slice_name: str = "all") -> TextTable:
    """Return a slice's headline table as text: a metric per row, the arms, then the differences."""
    columns = list_columns(report)
    rows = []
    for metric in METRICS:
        cells = (find_row(report, arm, metric.name, slice_name) for arm in columns)
        rows.append((metric.label, *(_write_cell(cell, metric.unit) for cell in cells)))
    return TextTable(columns=("metric", *columns), rows=tuple(rows))


def list_columns(report: pl.DataFrame) -> Sequence[str]:
    """Return the arms of a report and then its differences, each in the order they were built."""
    kinds = report.filter(pl.col("kind") != "ratio").sort(pl.col("kind") == "difference")
    return list(dict.fromkeys(kinds["arm"].to_list()))


def _write_cell(row: dict[str, Any], unit: Unit) -> str:
    if row["value"] is None:
        return DASH
    value = format_value(row["value"], unit, is_difference=row["kind"] == "difference")
    return f"{value}  [{format_limits(row, unit)}]"
