"""The samples' audit: does what is judged stand for what was asked, or only for the 3 am cron?

Shadow pairs, curated questions and the sample that drift is embedded from are compared with all
traffic by hour, weekday and route. Belongs here: drawing a stratified sample, and the comparison.
Does not belong here: what is then measured on a sample.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl

from assets.monitoring.comparing import SEED, count_categories
from assets.monitoring.measurements import Measurement, compare_number, leave_open
from assets.monitoring.slices import name_hour_block
from assets.monitoring.traffic import Traffic, find_gap

MINIMUM_SAMPLE = 300
LARGE_SAMPLE = 1000
SMALLEST_P = 0.01
LARGEST_TVD, LARGEST_TVD_LARGE = 0.15, 0.10
PSI_QUANTILE = 0.99
STRATA = ("hour_block", "weekday", "route_reason")
CURATED = "curated_traces"
STRATA_OF: Mapping[str, tuple[str, ...]] = {CURATED: ("hour_block", "weekday")}
"""What a sample is compared by where that is not all of STRATA: curation chooses by the route, so
that what it chose always differs from the traffic there."""


def add_strata(asks: pl.DataFrame) -> pl.DataFrame:
    """Add what samples are stratified by: three hours of the day, the weekday, the route."""
    weekday = pl.col("asked_at").dt.weekday().cast(pl.String).alias("weekday")
    return asks.with_columns(name_hour_block(), weekday)


def draw_stratified(asks: pl.DataFrame, count: int, *, seed: int = SEED) -> pl.DataFrame:
    """Return `count` rows, or all, spread over the strata in proportion to their size.

    Rows are put in order of their strata, shuffled within each, and every k-th is taken.
    """
    if asks.height <= count:
        return asks
    shuffled = add_strata(asks).sample(fraction=1.0, shuffle=True, seed=seed)
    ordered = shuffled.sort(STRATA, nulls_last=True, maintain_order=True)
    step = asks.height / count
    start = np.random.default_rng(seed).uniform(0, step)
    places = np.minimum((start + step * np.arange(count)).astype(int), asks.height - 1)
    drawn: pl.DataFrame = ordered[places.tolist()].select(asks.columns)
    return drawn.sort("asked_at", "trace_id")


def take_curated(asks: pl.DataFrame, decided: pl.Series) -> pl.DataFrame:
    """Return the asks of the questions that were decided about.

    A question is decided about once, by its latest trace: the traces alone would all be late.
    """
    hashes = asks.filter(pl.col("trace_id").is_in(decided.drop_nulls().implode()))["question_hash"]
    return asks.filter(pl.col("question_hash").is_in(hashes.drop_nulls().unique().implode()))


def measure_samples(traffic: Traffic, samples: Mapping[str, pl.DataFrame]) -> list[Measurement]:
    """Return the audit of each sample against the traffic of the window.

    Args:
        traffic: the window.
        samples: by name, rows of its asks.
    """
    whole = add_strata(traffic.asks)
    found: list[Measurement] = []
    for name, sample in samples.items():
        gap = find_gap(whole, minimum=MINIMUM_SAMPLE, unit="asks")
        if gap is None and sample.height < MINIMUM_SAMPLE:
            gap = f"{sample.height} in the sample, {MINIMUM_SAMPLE} are needed"
        if gap:
            found.append(
                leave_open(
                    "sample_p",
                    gap,
                    n=sample.height,
                    relation="at least",
                    limit=SMALLEST_P,
                    slice_name=name,
                )
            )
        else:
            for stratum in STRATA_OF.get(name, STRATA):
                found += _compare(name, stratum, add_strata(sample), whole)
    return found


def _compare(
    name: str, stratum: str, sample: pl.DataFrame, whole: pl.DataFrame
) -> list[Measurement]:
    from scipy.stats import chi2, chisquare

    counts = count_categories(sample[stratum], whole[stratum])
    where, n, m = f"{name} by {stratum}", sample.height, whole.height
    if counts.shape[1] < 2:
        one = "one category in all"
        return [compare_number("sample_p", 1.0, relation="at least", limit=SMALLEST_P, n=n,
                               p_value=1.0, detail=one, slice_name=where)]  # fmt: skip
    seen, expected = counts / counts.sum(axis=1, keepdims=True)
    p = float(chisquare(counts[0], expected * n).pvalue)
    tvd = float(np.abs(seen - expected).sum() / 2)
    # A category that the sample lacks has no logarithm: half a row stands for it.
    drawn = np.maximum(counts[0], 0.5) / n
    psi = float(((drawn - expected) * np.log(drawn / expected)).sum())
    limit = (1 / n + 1 / m) * float(chi2.ppf(PSI_QUANTILE, counts.shape[1] - 1))
    psi_p = float(chi2.sf(psi / (1 / n + 1 / m), counts.shape[1] - 1))
    told = f"{counts.shape[1]} categories, most missed: {_name_most_missed(stratum, sample, whole)}"
    return [
        compare_number("sample_p", p, relation="at least", limit=SMALLEST_P, n=n, p_value=p,
                       detail=told, slice_name=where),
        compare_number("sample_tvd", tvd, relation="at most", n=n, p_value=p, detail=told,
                       limit=LARGEST_TVD if n < LARGE_SAMPLE else LARGEST_TVD_LARGE,
                       slice_name=where),
        compare_number("sample_psi", psi, relation="at most", limit=limit, n=n, p_value=psi_p,
                       detail=told, slice_name=where),
    ]  # fmt: skip


def _name_most_missed(stratum: str, sample: pl.DataFrame, whole: pl.DataFrame) -> str:
    shares = [
        dict(f[stratum].fill_null("none").value_counts(normalize=True, name="share").iter_rows())
        for f in (sample, whole)
    ]
    worst = max(sorted(shares[1]), key=lambda name: shares[1][name] - shares[0].get(name, 0.0))
    found = shares[0].get(worst, 0.0)
    return f"{worst} ({shares[1][worst]:.1%} of the traffic, {found:.1%} of the sample)"
