"""Release assets: gate_verdict -> release_bundle, one partition per recipe.

Belongs here: declarations. Does not belong here: the gates (`gate`), the manifest (`bundling`),
signing and verifying (`serving/releases`).
"""

from datetime import UTC, datetime

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.eval_set.golden import Golden
from assets.eval_set.ledger import count_reads
from assets.labels.assets import LabellingPlan
from assets.parity.economics import EconomicsTerms
from assets.parity.last_release import find_last_student
from assets.parity.report_worth import read_optional_sections
from assets.parity.suite_evidence import identify_candidate, read_suite_gates
from assets.partitions import RECIPES
from assets.releases.baseline import compare_with_parent, state_baseline
from assets.releases.bundling import ReleaseTerms, sample_retrieval, write_manifest
from assets.releases.gates import GatePolicy, GateResult
from assets.releases.judging import (
    TABLES,
    Evidence,
    advise,
    choose_gates,
    compose_report,
    describe_worth,
    judge_candidate,
    name_shadowed,
)
from assets.releases.losses import state_losses
from assets.releases.publishing import find_parent, publish_release
from assets.releases.reporting import write_report
from assets.releases.shadow import check_shadow_agreement, read_pairs
from assets.students.calibration import read_calibrator
from serving.aio import run_blocking
from serving.home import Home
from serving.pipeline.assembly import PipelineParts

GOLDEN_PROMPT_COUNT = 4
"""Retrieval is checked on this many seed questions before a server is ready."""


@dg.asset(
    key=keys.GATE_VERDICT,
    ins={name: dg.AssetIn(key=getattr(keys, name.upper())) for name in TABLES},
    partitions_def=RECIPES,
    kinds={"polars", "html"},
    code_version="6",
)
def gate_verdict(
    context: dg.AssetExecutionContext,
    economics_terms: dg.ResourceParam[EconomicsTerms],
    gate_policy: dg.ResourceParam[GatePolicy],
    release_terms: dg.ResourceParam[ReleaseTerms],
    labelling_plan: dg.ResourceParam[LabellingPlan],
    golden: dg.ResourceParam[Golden],
    pipeline_parts: dg.ResourceParam[PipelineParts],
    home: dg.ResourceParam[Home],
    **frames: pl.DataFrame,
) -> dg.MaterializeResult[pl.DataFrame]:
    """PROMOTE, HOLD or INCONCLUSIVE, every gate with its number, and the report of it all."""
    evidence, recipe, lock = Evidence(**frames), context.partition_key, golden.verify_lock()
    baseline = state_baseline(lock, release_terms.teacher, labelling_plan.ruler)
    verdict = judge_candidate(
        evidence,
        locked_sha256=lock,
        policy=gate_policy,
        suites=_choose_suites(evidence, recipe, parts=pipeline_parts, home=home),
        agreement=check_shadow_agreement(
            read_pairs(home, days=gate_policy.shadow_days),
            name_shadowed(evidence, release_terms),
            days=gate_policy.shadow_days,
        ),
        terms=economics_terms,
        baseline=baseline,
    )
    advice = advise(evidence, verdict, economics_terms)
    parent = compare_with_parent(verdict.gates, baseline, find_parent(home))
    contents = compose_report(
        evidence,
        recipe=recipe,
        generated_at=datetime.now(UTC).isoformat(timespec="seconds"),
        verdict=verdict,
        parent=parent,
        margin_ratio=gate_policy.margin_ratio,
        readers=count_reads(home.ledger),
        sections=(
            *describe_worth(evidence, advice, economics_terms),
            *read_optional_sections(home),
        ),
        baseline=baseline,
        terms=release_terms,
    )
    files = write_report(home.reports / recipe, contents)
    return dg.MaterializeResult(
        value=verdict.to_frame(),
        metadata={
            "verdict": verdict.verdict,
            "statement": verdict.statement,
            "against_the_parent": parent.statement,
            "strategy": ": ".join(advice),
            "report": dg.MetadataValue.path(str(files.html)),
            "parity_chart": dg.MetadataValue.md(files.chart_markdown),
        },
    )


def _choose_suites(
    evidence: Evidence, recipe: str, *, parts: PipelineParts, home: Home
) -> list[GateResult]:
    candidate = identify_candidate(
        parts,
        index_fingerprint=evidence.vector_index["index_fingerprint"].item(),
        adapter=evidence.adapter,
        calibration=evidence.fitted,
    )
    measured = read_suite_gates(home, recipe)
    last = None if measured.is_empty() else find_last_student(home, evidence.adapter)
    return choose_gates(evidence, measured, candidate, last)


@dg.asset(
    key=keys.RELEASE_BUNDLE,
    ins={
        "gate_verdict": dg.AssetIn(key=keys.GATE_VERDICT),
        "parity_report": dg.AssetIn(key=keys.PARITY_REPORT),
        "student_adapter": dg.AssetIn(key=keys.STUDENT_ADAPTER),
        "vector_index": dg.AssetIn(key=keys.VECTOR_INDEX),
        "seed_questions": dg.AssetIn(key=keys.SEED_QUESTIONS),
        "calibration": dg.AssetIn(key=keys.CALIBRATION),
    },
    partitions_def=RECIPES,
    kinds={"json", "safetensors"},
    code_version="1",
)
def release_bundle(
    gate_verdict: pl.DataFrame,
    parity_report: pl.DataFrame,
    student_adapter: pl.DataFrame,
    vector_index: pl.DataFrame,
    seed_questions: pl.DataFrame,
    calibration: pl.DataFrame,
    pipeline_parts: dg.ResourceParam[PipelineParts],
    release_terms: dg.ResourceParam[ReleaseTerms],
    home: dg.ResourceParam[Home],
) -> dg.MaterializeResult[pl.DataFrame]:
    """The signed bundle a server loads: adapter, index, prompt, policies, the gate's evidence."""
    adapter = student_adapter.row(0, named=True)
    index = vector_index.row(0, named=True)
    questions = seed_questions["text"].head(GOLDEN_PROMPT_COUNT).to_list()
    manifest = write_manifest(
        terms=release_terms,
        gates=gate_verdict.to_dicts(),
        losses=state_losses(parity_report),
        adapter=adapter,
        calibration=read_calibrator(calibration.row(0, named=True)),
        index=index,
        golden_prompts=run_blocking(
            sample_retrieval(pipeline_parts, index["index_fingerprint"], questions)
        ),
    )
    published = publish_release(home, manifest, home.adapters / adapter["adapter"])
    row = published.describe() | {
        "phase": manifest.phase,
        "verdict": manifest.gate.verdict,
        "folder": str(home.releases / published.release_id),
    }
    return dg.MaterializeResult(
        value=pl.DataFrame([row], schema=tables.RELEASE_BUNDLE), metadata=dict(row)
    )
