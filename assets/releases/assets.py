"""Release assets: gate_verdict -> release_bundle, one partition per recipe.

Belongs here: declarations. Does not belong here: the gates (`gate`), the manifest (`bundling`),
signing and verifying (`serving/releases`).
"""

from datetime import UTC, datetime

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.eval_set.golden import Golden
from assets.eval_set.guard import LEAKAGE_COSINE_LIMIT
from assets.parity.ledger import count_reads
from assets.parity.report import ReportContents
from assets.partitions import RECIPES
from assets.releases.bundling import ReleaseTerms, write_manifest
from assets.releases.gate import GatePolicy, decide, state_losses
from assets.releases.integrity import gather_integrity
from assets.releases.publishing import publish_release
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
        "golden_cases": dg.AssetIn(key=keys.GOLDEN_CASES),
        "guarded_questions": dg.AssetIn(key=keys.GUARDED_QUESTIONS),
        "chunks": dg.AssetIn(key=keys.CHUNKS),
        "student_adapter": dg.AssetIn(key=keys.STUDENT_ADAPTER),
        "training_curve": dg.AssetIn(key=keys.TRAINING_CURVE),
        "calibration": dg.AssetIn(key=keys.CALIBRATION),
    },
    partitions_def=RECIPES,
    kinds={"polars", "html"},
    code_version="1",
)
def gate_verdict(
    context: dg.AssetExecutionContext,
    parity_report: pl.DataFrame,
    arm_answers: pl.DataFrame,
    graded_answers: pl.DataFrame,
    golden_cases: pl.DataFrame,
    guarded_questions: pl.DataFrame,
    chunks: pl.DataFrame,
    student_adapter: pl.DataFrame,
    training_curve: pl.DataFrame,
    calibration: pl.DataFrame,
    gate_policy: dg.ResourceParam[GatePolicy],
    release_terms: dg.ResourceParam[ReleaseTerms],
    golden: dg.ResourceParam[Golden],
    home: dg.ResourceParam[Home],
) -> dg.MaterializeResult[pl.DataFrame]:
    """PROMOTE, HOLD or INCONCLUSIVE, every gate with its number, and the report of it all."""
    verdict = decide(
        parity_report,
        integrity=gather_integrity(
            golden_cases,
            guarded_questions,
            locked_sha256=golden.verify_lock(),
            calibration=calibration.row(0, named=True),
            adapter=student_adapter.row(0, named=True),
        ),
        policy=gate_policy,
    )
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
            access_count=count_reads(home.ledger),
            guarded_questions=guarded_questions,
            training_curve=training_curve,
            verdict=verdict,
            provenance=student_adapter.row(0, named=True) | release_terms.describe(),
        ),
    )
    return dg.MaterializeResult(
        value=verdict.to_frame(),
        metadata={
            "verdict": verdict.verdict,
            "statement": verdict.statement,
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
    row = {
        "release_id": published.release_id,
        "parent": published.current.parent if published.is_current else None,
        "sequence": published.current.sequence if published.is_current else None,
        "phase": manifest.phase,
        "verdict": manifest.gate.verdict,
        "is_current": published.is_current,
        "folder": str(home.releases / published.release_id),
    }
    return dg.MaterializeResult(
        value=pl.DataFrame([row], schema=tables.RELEASE_BUNDLE), metadata=dict(row)
    )
