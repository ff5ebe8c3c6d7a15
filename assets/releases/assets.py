"""Release assets: gate_verdict -> release_bundle, one partition per recipe.

Belongs here: declarations. Does not belong here: the gates (`gate`), the manifest (`bundling`),
signing and verifying (`serving/releases`).
"""

from dataclasses import asdict
from datetime import UTC, datetime

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.eval_set.golden import Golden
from assets.eval_set.guard import LEAKAGE_COSINE_LIMIT
from assets.eval_set.ledger import count_reads
from assets.labels.assets import LabellingPlan
from assets.parity.economics import EconomicsTerms, choose_strategy
from assets.parity.report import ReportContents
from assets.parity.report_confidence import describe_reliability
from assets.parity.report_worth import (
    describe_economics,
    describe_router,
    read_optional_sections,
)
from assets.parity.suite_evidence import choose_suite_gates, read_suite_gates
from assets.partitions import RECIPES
from assets.releases.baseline import compare_with_parent, state_baseline
from assets.releases.bundling import ReleaseTerms, write_manifest
from assets.releases.gate import QUALITY_OF, decide
from assets.releases.gates import GatePolicy, GateResult
from assets.releases.integrity import gather_integrity
from assets.releases.losses import state_losses
from assets.releases.publishing import find_parent, publish_release
from assets.releases.reporting import write_report
from assets.students.calibration import read_calibrator
from serving.aio import run_blocking
from serving.home import Home
from serving.pipeline.assembly import PipelineParts
from serving.releases.manifest import GoldenPrompt, hash_retrieved

GOLDEN_PROMPT_COUNT = 4
"""Retrieval is checked on this many seed questions before a server is ready."""


@dg.asset(
    key=keys.GATE_VERDICT,
    ins={
        "parity_report": dg.AssetIn(key=keys.PARITY_REPORT),
        "arm_answers": dg.AssetIn(key=keys.ARM_ANSWERS),
        "graded_answers": dg.AssetIn(key=keys.GRADED_ANSWERS),
        "operating_points": dg.AssetIn(key=keys.OPERATING_POINTS),
        "golden_cases": dg.AssetIn(key=keys.GOLDEN_CASES),
        "guarded_questions": dg.AssetIn(key=keys.GUARDED_QUESTIONS),
        "chunks": dg.AssetIn(key=keys.CHUNKS),
        "student_adapter": dg.AssetIn(key=keys.STUDENT_ADAPTER),
        "training_curve": dg.AssetIn(key=keys.TRAINING_CURVE),
        "held_out_answers": dg.AssetIn(key=keys.HELD_OUT_ANSWERS),
        "calibration": dg.AssetIn(key=keys.CALIBRATION),
        "labelled_examples": dg.AssetIn(key=keys.LABELLED_EXAMPLES),
        "router_curve": dg.AssetIn(key=keys.ROUTER_CURVE),
        "router_figures": dg.AssetIn(key=keys.ROUTER_FIGURES),
        "economics": dg.AssetIn(key=keys.ECONOMICS),
        "refusal_suite": dg.AssetIn(key=keys.REFUSAL_SUITE),
        "over_refusal_suite": dg.AssetIn(key=keys.OVER_REFUSAL_SUITE),
        "behaviour_registry": dg.AssetIn(key=keys.BEHAVIOUR_REGISTRY),
    },
    partitions_def=RECIPES,
    kinds={"polars", "html"},
    code_version="3",
)
def gate_verdict(
    context: dg.AssetExecutionContext,
    parity_report: pl.DataFrame,
    arm_answers: pl.DataFrame,
    graded_answers: pl.DataFrame,
    operating_points: pl.DataFrame,
    golden_cases: pl.DataFrame,
    guarded_questions: pl.DataFrame,
    chunks: pl.DataFrame,
    student_adapter: pl.DataFrame,
    training_curve: pl.DataFrame,
    held_out_answers: pl.DataFrame,
    calibration: pl.DataFrame,
    labelled_examples: pl.DataFrame,
    router_curve: pl.DataFrame,
    router_figures: pl.DataFrame,
    economics: pl.DataFrame,
    refusal_suite: pl.DataFrame,
    over_refusal_suite: pl.DataFrame,
    behaviour_registry: pl.DataFrame,
    economics_terms: dg.ResourceParam[EconomicsTerms],
    gate_policy: dg.ResourceParam[GatePolicy],
    release_terms: dg.ResourceParam[ReleaseTerms],
    labelling_plan: dg.ResourceParam[LabellingPlan],
    golden: dg.ResourceParam[Golden],
    home: dg.ResourceParam[Home],
) -> dg.MaterializeResult[pl.DataFrame]:
    """PROMOTE, HOLD or INCONCLUSIVE, every gate with its number, and the report of it all."""
    adapter, fitted = student_adapter.row(0, named=True), calibration.row(0, named=True)
    lock = golden.verify_lock()
    baseline = state_baseline(lock, release_terms.teacher, labelling_plan.ruler)
    verdict = decide(
        parity_report,
        integrity=gather_integrity(
            golden_cases,
            guarded_questions,
            locked_sha256=lock,
            calibration=fitted,
            adapter=adapter,
        ),
        policy=gate_policy,
        suites=[
            GateResult(**vars(gate))
            for gate in choose_suite_gates(
                read_suite_gates(home, context.partition_key),
                adapter_sha256=adapter["adapter_sha256"],
                refusal_suite=refusal_suite,
                over_refusal_suite=over_refusal_suite,
                behaviour_registry=behaviour_registry,
            )
        ],
        evidence={"baseline": asdict(baseline)},
    )
    month = economics.row(
        by_predicate=(pl.col("arm") == "routed") & (pl.col("scenario") == "expected"), named=True
    )
    strategy, reason = choose_strategy(
        teacher_usd_per_month=month["teacher_usd_per_month"],
        saving_usd_per_month=month["saving_usd_per_month"],
        terms=economics_terms,
        example_count=labelled_examples.height,
        quality=QUALITY_OF[verdict.verdict],
    )
    parent = compare_with_parent(verdict.gates, baseline, find_parent(home))
    files = write_report(
        home.reports / context.partition_key,
        ReportContents(
            product=release_terms.product,
            recipe=context.partition_key,
            generated_at=datetime.now(UTC).isoformat(timespec="seconds"),
            parity_report=parity_report,
            arm_answers=arm_answers,
            graded_answers=graded_answers,
            golden_cases=golden_cases,
            chunks=chunks,
            leakage_cosine_limit=LEAKAGE_COSINE_LIMIT,
            margin_ratio=gate_policy.margin_ratio,
            readers=count_reads(home.ledger),
            guarded_questions=guarded_questions,
            training_curve=training_curve,
            operating_points=operating_points,
            verdict=verdict,
            parent=parent,
            sections=(
                describe_reliability(fitted, held_out_answers),
                describe_router(router_curve, router_figures),
                describe_economics(economics, strategy=strategy, reason=reason),
                *read_optional_sections(home),
            ),
            provenance=adapter | asdict(baseline) | release_terms.describe(),
        ),
    )
    return dg.MaterializeResult(
        value=verdict.to_frame(),
        metadata={
            "verdict": verdict.verdict,
            "statement": verdict.statement,
            "against_the_parent": parent.statement,
            "strategy": f"{strategy}: {reason}",
            "report": dg.MetadataValue.path(str(files.html)),
            "parity_chart": dg.MetadataValue.md(files.chart_markdown),
        },
    )


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

    async def sample_retrieval() -> list[GoldenPrompt]:
        pipeline = await pipeline_parts.assemble(index["index_fingerprint"])
        return [
            GoldenPrompt(
                question=question,
                retrieved_hash=hash_retrieved(
                    [hit.chunk_id for hit in await pipeline.retriever.retrieve(question)]
                ),
            )
            for question in questions
        ]

    manifest = write_manifest(
        terms=release_terms,
        gates=gate_verdict.to_dicts(),
        losses=state_losses(parity_report),
        adapter=adapter,
        calibration=read_calibrator(calibration.row(0, named=True)),
        index=index,
        golden_prompts=run_blocking(sample_retrieval()),
    )
    published = publish_release(home, manifest, home.adapters / adapter["adapter"])
    pointer = published.current if published.is_current else None
    row = {
        "release_id": published.release_id,
        "parent": pointer.parent if pointer else None,
        "sequence": pointer.sequence if pointer else None,
        "phase": manifest.phase,
        "verdict": manifest.gate.verdict,
        "is_current": published.is_current,
        "folder": str(home.releases / published.release_id),
    }
    return dg.MaterializeResult(
        value=pl.DataFrame([row], schema=tables.RELEASE_BUNDLE), metadata=dict(row)
    )
