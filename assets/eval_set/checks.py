"""What the eval set promises."""

import dagster as dg
import polars as pl

from assets import keys
from assets.check_results import report_outcome
from assets.corpus.chunks import read_pages
from assets.eval_set.expectations import GoldenPlan, evaluate_golden
from assets.eval_set.golden import Golden, find_missing_facts, find_missing_pages
from assets.eval_set.guard import LEAKAGE_COSINE_LIMIT
from assets.eval_set.planting import COPY
from serving.pipeline.chunking import visible_text


@dg.asset_check(asset=keys.GOLDEN_CASES, blocking=True)
def golden_set_matches_its_lock(
    golden_cases: pl.DataFrame, golden: dg.ResourceParam[Golden]
) -> dg.AssetCheckResult:
    """The table was read from the file that was frozen."""
    locked, read = golden.verify_lock(), golden_cases["set_hash"].unique().to_list()
    return dg.AssetCheckResult(
        passed=read == [locked], metadata={"locked_sha256": locked, "read_sha256": read}
    )


@dg.asset_check(asset=keys.GOLDEN_CASES, blocking=True)
def golden_cases_meet_expectations(
    golden_cases: pl.DataFrame, golden_plan: dg.ResourceParam[GoldenPlan]
) -> dg.AssetCheckResult:
    """Every case can be graded, and each bucket has the cases it was frozen with.

    A case that no answer or every answer would pass blocks, and so does a bucket of another size
    than the configuration names. A repeated question, one that gives its facts away, or a lopsided
    set weakens the statistics without making them wrong, so they warn.
    """
    return report_outcome(evaluate_golden(golden_cases, plan=golden_plan))


@dg.asset_check(
    asset=keys.GOLDEN_CASES,
    additional_ins={"pages": dg.AssetIn(key=keys.PAGES)},
    blocking=True,
)
def golden_facts_occur_in_gold_pages(
    golden_cases: pl.DataFrame, pages: pl.DataFrame
) -> dg.AssetCheckResult:
    """Every fact an answer must include can be read on a gold page of its case; all pages exist."""
    texts = {page.slug: visible_text(page) for page in read_pages(pages)}
    cases = golden_cases.to_dicts()
    missing, lost = find_missing_facts(cases, texts), find_missing_pages(cases, texts)
    worst = [f"{m.case_id}: {m.fact!r} in none of {list(m.gold_pages)}" for m in missing[:20]]
    absent = [f"{case_id}: no page {slug!r}" for case_id, slug in lost[:20]]
    return dg.AssetCheckResult(
        passed=not missing and not lost,
        description="; ".join(absent + worst) or None,
        metadata={
            "case_count": golden_cases.height,
            "missing_fact_count": len(missing),
            "missing_facts": worst,
            "missing_page_count": len(lost),
            "missing_pages": absent,
            "next_step": "mend the page, or freeze a new version of the golden set",
        },
    )


@dg.asset_check(
    asset=keys.EVAL_EMBEDDINGS,
    additional_ins={"golden_cases": dg.AssetIn(key=keys.GOLDEN_CASES)},
    blocking=True,
)
def every_case_is_embedded(
    eval_embeddings: pl.DataFrame, golden_cases: pl.DataFrame
) -> dg.AssetCheckResult:
    """The guard sees every golden case, as a unit vector."""
    missing = set(golden_cases["case_id"]) - set(eval_embeddings["case_id"])
    norms = eval_embeddings.select(
        pl.col("vector").list.eval(pl.element() ** 2).list.sum().sqrt().alias("norm")
    )["norm"]
    off_unit = int(((norms - 1).abs() > 1e-3).sum())
    return dg.AssetCheckResult(
        passed=not missing and off_unit == 0,
        metadata={"missing_cases": sorted(missing), "vectors_not_of_unit_length": off_unit},
    )


@dg.asset_check(asset=keys.GUARD_RECALL, blocking=True)
def guard_catches_every_copy(guard_recall: pl.DataFrame) -> dg.AssetCheckResult:
    """The guard rejects every eval question typed again in another case without punctuation.

    Other kinds of paraphrase are measured and shown; how many of them are caught is a property of
    the embedder, and no promise.
    """
    at_limit = guard_recall.filter(
        pl.col("is_planted"), rule="guard", threshold=LEAKAGE_COSINE_LIMIT
    )
    missed = {kind: n - caught for kind, n, caught in at_limit.select(
        "kind", "n", "caught"
    ).iter_rows()}  # fmt: skip
    return dg.AssetCheckResult(
        passed=not at_limit.is_empty() and missed.get(COPY, 0) == 0,
        metadata={
            "missed_copies": missed.get(COPY, 0),
            "missed_by_kind": missed,
            "limit": LEAKAGE_COSINE_LIMIT,
        },
    )
