"""Composing the report of a recipe: which evidence goes into which of its sections.

Belongs here: bringing gathered tables together for a reader, purely. Does not belong here: the
verdict (`judging`), what a section says and how it looks (`assets/parity/report`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import polars as pl

from assets.eval_set.guard import LEAKAGE_COSINE_LIMIT
from assets.eval_set.ledger import ReaderCount
from assets.parity.arms import CANDIDATE
from assets.parity.costs import measure_costs
from assets.parity.curve_points import place_points
from assets.parity.economics import EconomicsTerms, explain_costs
from assets.parity.economics_chart import read_one_off, tabulate_sensitivity
from assets.parity.prices import state_zeros
from assets.parity.report import ReportContents
from assets.parity.report_confidence import describe_reliability
from assets.parity.report_sections import ReportSection
from assets.parity.report_worth import describe_economics, describe_router
from assets.parity.strategy import Strategy
from assets.releases.baseline import Baseline, ParentComparison
from assets.releases.bundling import ReleaseTerms
from assets.releases.gate import GateVerdict
from assets.releases.judging import Evidence
from assets.students.calibration import read_calibrator
from assets.students.threshold_in_force import describe_threshold
from serving.pipeline.router import RouterPolicy

TRAINING_FACTS = (
    "seed", "recipe_fingerprint", "data_hash", "logprobs_hash", "training_code_version",
    "trained_at", "software", "hardware", "dtype",
)  # fmt: skip
"""What a reader asks of a training that no table says."""


def describe_worth(
    evidence: Evidence,
    advice: tuple[Strategy, str],
    terms: EconomicsTerms,
    router: RouterPolicy,
) -> tuple[ReportSection, ...]:
    """Return the report's sections that are read from the verdict's own tables."""
    strategy, reason = advice
    return (
        describe_reliability(evidence.fitted, evidence.held_out_answers),
        describe_router(
            evidence.router_curve,
            evidence.router_figures,
            place_points(
                evidence.operating_points,
                evidence.held_out_answers,
                read_calibrator(evidence.fitted),
                router,
            ),
        ),
        describe_economics(
            evidence.economics,
            strategy=strategy,
            reason=reason,
            remarks=(
                *state_zeros(terms.prices, evidence.adapter["student"]),
                *explain_costs(terms),
            ),
            sensitivity=_sweep_savings(evidence, terms),
        ),
    )


def _sweep_savings(evidence: Evidence, terms: EconomicsTerms) -> pl.DataFrame | None:
    """Return what a month saves by volume and utilisation; None where a price is missing."""
    if evidence.economics["inconclusive_reason"].null_count() < evidence.economics.height:
        return None
    one_off = read_one_off(
        evidence.economics, training_seconds=evidence.adapter["training_seconds"], terms=terms
    )
    return tabulate_sensitivity(measure_costs(evidence.arm_answers, CANDIDATE), one_off, terms)


def compose_report(
    evidence: Evidence,
    *,
    recipe: str,
    generated_at: str,
    verdict: GateVerdict,
    parent: ParentComparison,
    margin_ratio: float,
    readers: Sequence[ReaderCount],
    sections: Sequence[ReportSection],
    baseline: Baseline,
    terms: ReleaseTerms,
    training: Mapping[str, Any],
) -> ReportContents:
    """Return everything the report of a recipe is made of.

    `training` is the provenance that lies beside the student's weights.
    """
    return ReportContents(
        product=terms.product,
        recipe=recipe,
        generated_at=generated_at,
        parity_report=evidence.parity_report,
        arm_answers=evidence.arm_answers,
        graded_answers=evidence.graded_answers,
        golden_cases=evidence.golden_cases,
        chunks=evidence.chunks,
        leakage_cosine_limit=LEAKAGE_COSINE_LIMIT,
        margin_ratio=margin_ratio,
        readers=readers,
        guarded_questions=evidence.guarded_questions,
        protected_cases=evidence.protected_cases,
        trained_question_ids=evidence.trained_question_ids,
        training_curve=evidence.training_curve,
        operating_points=evidence.operating_points,
        verdict=verdict,
        parent=parent,
        sections=tuple(sections),
        provenance=_gather_provenance(evidence, verdict, baseline, terms, training),
    )


def _gather_provenance(
    evidence: Evidence,
    verdict: GateVerdict,
    baseline: Baseline,
    terms: ReleaseTerms,
    training: Mapping[str, Any],
) -> dict[str, object]:
    """Return what the numbers come from: weights and data, index and code, ruler and limits."""
    known = {
        name: _join_facts(training[name])
        for name in TRAINING_FACTS
        if training.get(name) is not None
    }
    index, fitted = evidence.vector_index.row(0, named=True), evidence.fitted
    policy = verdict.evidence.get("policy", {})
    return {
        **evidence.adapter,
        **known,
        "index_fingerprint": index["index_fingerprint"],
        "embedder": f"{terms.embedder_model}@{terms.embedder_revision}",
        "embedder_fingerprint": index["embedder_fingerprint"],
        "calibration": f"{fitted['method']}, {fitted['calibrator_hash'] or 'none fitted'}",
        **asdict(baseline),
        **terms.describe(),
        "confidence_threshold": describe_threshold(fitted, terms.router.maximum_risk_ratio),
        "gate_policy": _join_facts(policy),
        "understudy": version("understudy"),
    }


def _join_facts(value: object) -> object:
    """Return facts under names as one line; anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    return ", ".join(f"{name} {one}" for name, one in value.items())
