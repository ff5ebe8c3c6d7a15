"""What the eval set promises."""

import dagster as dg
import polars as pl

from assets import keys
from assets.check_results import report_outcome
from assets.corpus.chunks import read_pages
from assets.eval_set.anchors import find_anchor_faults
from assets.eval_set.behaviours import measure_diversity
from assets.eval_set.expectations import GoldenPlan, evaluate_golden
from assets.eval_set.golden import Golden, find_missing_facts, find_missing_pages
from assets.eval_set.guard import LEAKAGE_COSINE_LIMIT
from assets.eval_set.planting import COPY
from assets.eval_set.suites import (
    OVER_REFUSAL,
    OVER_REFUSAL_KINDS,
    REFUSAL,
    REFUSAL_KINDS,
    find_suite_faults,
    find_thin_suite,
    join_protected,
)
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
    additional_ins={
        "golden_cases": dg.AssetIn(key=keys.GOLDEN_CASES),
        "refusal_suite": dg.AssetIn(key=keys.REFUSAL_SUITE),
        "over_refusal_suite": dg.AssetIn(key=keys.OVER_REFUSAL_SUITE),
        "behaviour_registry": dg.AssetIn(key=keys.BEHAVIOUR_REGISTRY),
    },
    blocking=True,
)
def every_case_is_embedded(
    eval_embeddings: pl.DataFrame,
    golden_cases: pl.DataFrame,
    refusal_suite: pl.DataFrame,
    over_refusal_suite: pl.DataFrame,
    behaviour_registry: pl.DataFrame,
) -> dg.AssetCheckResult:
    """The guard sees every golden case and every case of the suites, as a unit vector."""
    cases = join_protected(golden_cases, refusal_suite, over_refusal_suite, behaviour_registry)
    missing = set(cases["case_id"]) - set(eval_embeddings["case_id"])
    norms = eval_embeddings.select(
        pl.col("vector").list.eval(pl.element() ** 2).list.sum().sqrt().alias("norm")
    )["norm"]
    off_unit = int(((norms - 1).abs() > 1e-3).sum())
    return dg.AssetCheckResult(
        passed=not missing and off_unit == 0,
        metadata={"missing_cases": sorted(missing)[:20], "vectors_not_of_unit_length": off_unit},
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


@dg.asset_check(asset=keys.REFUSAL_SUITE, blocking=True)
def refusal_suite_can_be_measured_with(refusal_suite: pl.DataFrame) -> dg.AssetCheckResult:
    """Every case must be refused and is there once; too few cases warn: the gates stay open."""
    faults = find_suite_faults(refusal_suite, should_refuse=True, kinds=REFUSAL_KINDS)
    return _report_suite(refusal_suite, faults, find_thin_suite(refusal_suite, REFUSAL))


@dg.asset_check(asset=keys.OVER_REFUSAL_SUITE, blocking=True)
def over_refusal_suite_can_be_measured_with(
    over_refusal_suite: pl.DataFrame,
) -> dg.AssetCheckResult:
    """Every case can be answered and is there once; too few cases warn: the gates stay open."""
    faults = find_suite_faults(over_refusal_suite, should_refuse=False, kinds=OVER_REFUSAL_KINDS)
    return _report_suite(
        over_refusal_suite, faults, find_thin_suite(over_refusal_suite, OVER_REFUSAL)
    )


@dg.asset_check(asset=keys.OVER_REFUSAL_SUITE, additional_ins={"pages": dg.AssetIn(key=keys.PAGES)})
def over_refusal_facts_occur_in_gold_pages(
    over_refusal_suite: pl.DataFrame, pages: pl.DataFrame
) -> dg.AssetCheckResult:
    """The docs state what each over-refusal case asks for.

    It does not block: a page that lost a fact makes one case unfair and no label wrong.
    """
    return _report_facts(over_refusal_suite, pages)


@dg.asset_check(asset=keys.BEHAVIOUR_REGISTRY, additional_ins={"pages": dg.AssetIn(key=keys.PAGES)})
def behaviour_facts_occur_in_gold_pages(
    behaviour_registry: pl.DataFrame, pages: pl.DataFrame
) -> dg.AssetCheckResult:
    """The docs state every fact by which a behaviour is recognised.

    It does not block: a page that lost a fact makes some cases unfair and no label wrong.
    """
    return _report_facts(behaviour_registry, pages)


@dg.asset_check(asset=keys.BEHAVIOUR_REGISTRY)
def every_behaviour_has_enough_different_cases(
    behaviour_registry: pl.DataFrame,
) -> dg.AssetCheckResult:
    """A critical behaviour has 59 cases, another 100, of 12 cores and 4 templates that differ.

    It does not block: a behaviour with fewer is measured, and its gate stays open.
    """
    measured = measure_diversity(behaviour_registry)
    faults = [fault for behaviour in measured for fault in behaviour.faults]
    return dg.AssetCheckResult(
        passed=not faults,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(faults[:5]) or None,
        metadata={
            "behaviour_count": len(measured),
            "cases_by_behaviour": {m.behaviour_id: m.case_count for m in measured},
            "largest_repeated_ratio": max((m.repeated_ratio for m in measured), default=0.0),
            "faults": faults,
        },
    )


@dg.asset_check(asset=keys.JUDGE_ANCHORS)
def anchors_are_enough_and_two_sided(judge_anchors: pl.DataFrame) -> dg.AssetCheckResult:
    """There are 400 anchors, and every axis has known-good and known-bad ones.

    It does not block: fewer anchors leave the judge unmeasured and no label wrong.
    """
    faults = find_anchor_faults(judge_anchors) if judge_anchors.height else []
    return dg.AssetCheckResult(
        passed=not faults,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(faults) or None,
        metadata={"anchor_count": judge_anchors["anchor_id"].n_unique(), "faults": faults},
    )


def _report_suite(cases: pl.DataFrame, faults: list[str], thin: list[str]) -> dg.AssetCheckResult:
    """A product without the suite has no faults: its gates say that nothing was measured."""
    found = [*faults, *thin] if cases.height else []
    severity = dg.AssetCheckSeverity.ERROR if faults else dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(
        passed=not found,
        severity=severity,
        description="; ".join(found) or None,
        metadata={"case_count": cases.height, "faults": found},
    )


def _report_facts(suite: pl.DataFrame, pages: pl.DataFrame) -> dg.AssetCheckResult:
    texts = {page.slug: visible_text(page) for page in read_pages(pages)}
    cases = suite.to_dicts()
    missing, lost = find_missing_facts(cases, texts), find_missing_pages(cases, texts)
    worst = [f"{m.case_id}: {m.fact!r} in none of {list(m.gold_pages)}" for m in missing[:20]]
    absent = [f"{case_id}: no page {slug!r}" for case_id, slug in lost[:20]]
    return dg.AssetCheckResult(
        passed=not missing and not lost,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(absent + worst) or None,
        metadata={
            "case_count": suite.height,
            "missing_fact_count": len(missing),
            "missing": absent + worst,
            "next_step": "mend the page, or freeze a new version of the suite",
        },
    )
