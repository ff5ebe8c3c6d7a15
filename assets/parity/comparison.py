"""The comparison: arms on every metric and slice, with intervals, and against the teacher.

Belongs here: how an arm's cases become one number, and two arms' one difference. Does not belong
here: which metrics exist (`metrics`), one case's numbers (`measuring`), formulas of intervals
(`statistics`), how numbers are written (`formatting`), what a difference means for a release
(stage `releases`).
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import polars as pl

from assets import tables
from assets.parity.arms import ARM_NAMES, BASELINE
from assets.parity.measuring import measure_cases
from assets.parity.metrics import METRICS, SLICES, SUPPORTING_METRICS, UNPAIRED, Metric
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
from serving.models.protocols import ServedBy

_KEY = ("case_id", "repeat")
DEFAULT_SETTINGS: Mapping[str, Any] = MappingProxyType(
    {"alpha": 0.05, "resamples": BOOTSTRAP_RESAMPLES, "seed": BOOTSTRAP_SEED}
)
"""How intervals are made where nobody says otherwise."""


def build_parity_table(
    *,
    arm_answers: pl.DataFrame,
    graded_answers: pl.DataFrame,
    golden_cases: pl.DataFrame,
    rubric_scores: pl.DataFrame,
    exposure: pl.DataFrame,
    unpriced: Collection[ServedBy] = (),
    free: Collection[ServedBy] = (),
    alpha: float = 0.05,
    resamples: int = BOOTSTRAP_RESAMPLES,
    seed: int = BOOTSTRAP_SEED,
) -> pl.DataFrame:
    """Compare the arms: a row per arm, slice and metric, and each arm's distance to the teacher.

    Quality and cost are read from each case's first repeat, latency from the rows that carry one.
    Intervals are two-sided at 1 - alpha. `exposure` (case_id, slice) says which cases rest on
    chunks the student trained on; the other slices are the buckets. `unpriced` names the models
    whose price the config does not state: what asked one of them has no cost. `free` names those
    for which it states 0: what another is said to have answered for nothing has no known cost.
    """
    present = set(arm_answers["arm"].unique())
    arms = [arm for arm in ARM_NAMES if arm in present] + sorted(present - set(ARM_NAMES))
    if BASELINE not in present:
        raise InvalidInputError(
            "comparing the arms",
            expected=f"answers of the arm {BASELINE!r} to compare with",
            found=f"arms {arms}",
            next_step="rebuild parity/arm_answers with every arm",
        )
    measured = measure_cases(
        arm_answers, graded_answers, golden_cases, rubric_scores, unpriced=unpriced, free=free
    )
    settings = {"alpha": alpha, "resamples": resamples, "seed": seed}
    rows: list[dict[str, Any]] = []
    slices = pl.concat([golden_cases.select("case_id", slice="bucket"), exposure])
    for slice_name in SLICES:
        members = slices if slice_name == "all" else slices.filter(slice=slice_name)
        kept = measured.join(members, on="case_id", how="semi", maintain_order="left")
        parts = kept.partition_by("arm", "metric", as_dict=True, maintain_order=True)
        nothing = kept.clear()
        for metric in (*METRICS, *SUPPORTING_METRICS):
            of = {arm: parts.get((arm, measured_as(metric)), nothing) for arm in arms}
            place = {"slice": slice_name, "metric": metric.name}
            for arm in arms:
                rows.append(place | _summarise_arm(metric, arm, of[arm], settings))
            for arm in (a for a in arms if a != BASELINE):
                compared = compare_rows(metric, of[arm], of[BASELINE], settings)
                rows.append(place | compared | {"arm": f"{arm}-{BASELINE}"})
                if metric.unit == "usd":
                    rows.append(place | _divide_costs(arm, of[arm], of[BASELINE], settings))
    return pl.DataFrame(rows, schema=tables.PARITY_REPORT)


def measured_as(metric: Metric) -> str:
    """Return the name under which `measure_cases` has a metric: percentiles share one."""
    return metric.measured or metric.name


def _summarise_arm(
    metric: Metric, arm: str, rows: pl.DataFrame, settings: Mapping[str, Any]
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


def compare_rows(
    metric: Metric, rows: pl.DataFrame, baseline: pl.DataFrame, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Compare two arms' rows of `measure_cases` on the cases both have a value for.

    Cases that one of them lacks are counted. Without a pair there is no value.
    """
    pairs, inconclusive = pair_cases(rows, baseline)
    head = {"kind": "difference", "inconclusive_count": inconclusive}
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
    arm: str, rows: pl.DataFrame, baseline: pl.DataFrame, settings: Mapping[str, Any]
) -> dict[str, Any]:
    pairs, inconclusive = pair_cases(rows, baseline)
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


def pair_cases(rows: pl.DataFrame, baseline: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Return the cases graded in both arms, and how many are inconclusive in either."""
    both = rows.join(
        baseline, on=_KEY, how="full", coalesce=True, suffix="_base", maintain_order="left"
    )
    is_unknown = pl.any_horizontal(
        (pl.col(name) == "inconclusive").fill_null(value=False)
        for name in ("status", "status_base")
    )
    pairs = both.filter(pl.col("status") == "graded", pl.col("status_base") == "graded")
    return pairs, both.select(is_unknown.sum()).item()


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


def describe_headline(report: pl.DataFrame) -> dict[str, float | None]:
    """Return the figures of a report that its asset shows: exact match, its distance, cost."""
    shown = report.filter(pl.col("metric").is_in(["exact_match", "usd_per_1k"]), slice="all")
    return {
        f"{row['arm']}_{row['metric']}": row["value"]
        for row in shown.iter_rows(named=True)
        if row["value"] is not None
    }
