"""Release assets: gate_verdict -> release_bundle, one partition per recipe.

Belongs here: declarations. Does not belong here: the gates (`gate`), the manifest (`bundling`),
signing and verifying (`serving/releases`).
"""

from datetime import UTC, datetime
from typing import Any

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.eval_set.golden import Golden
from assets.eval_set.ledger import count_reads, record_read
from assets.labels.answering import read_index
from assets.labels.assets import LabellingPlan
from assets.parity.arms import SMALLER, STUDENT
from assets.parity.economics import EconomicsTerms
from assets.parity.last_release import find_last_student
from assets.parity.report_worth import read_optional_sections
from assets.parity.suite_evidence import (
    CandidateIdentity,
    identify_candidate,
    read_suite_gates,
)
from assets.parity.tiers import Tiers, TierStudent, gather_tiers
from assets.partitions import RECIPES
from assets.releases.baseline import compare_with_parent, state_baseline
from assets.releases.bundling import ReleaseTerms, sample_retrieval, write_manifest
from assets.releases.composing import compose_report, describe_worth
from assets.releases.disagreements import read_registered
from assets.releases.gates import GatePolicy, GateResult
from assets.releases.judging import (
    TABLES,
    Evidence,
    advise,
    choose_gates,
    judge_candidate,
    name_shadowed,
)
from assets.releases.losses import state_losses
from assets.releases.publishing import find_parent, publish_release
from assets.releases.reporting import write_report
from assets.releases.shadow import check_shadow_agreement, read_pairs
from assets.releases.shadow_clusters import check_shadow_clusters
from assets.releases.skill_admission import ReleaseStandard, admit_skills
from assets.releases.skills import (
    SkillStudent,
    choose_skills,
    find_skills,
    fingerprint_skills,
    list_students,
)
from assets.releases.tiers import read_training_set, refuse_other_verdict
from assets.students.provenance import read_provenance
from serving.aio import run_blocking
from serving.home import Home
from serving.models.protocols import Embedder
from serving.pipeline.assembly import PipelineParts

GOLDEN_PROMPT_COUNT = 4
"""Retrieval is checked on this many seed questions before a server is ready."""


@dg.asset(
    key=keys.GATE_VERDICT,
    ins={
        name: dg.AssetIn(key=getattr(keys, name.upper())) for name in (*TABLES, "eval_embeddings")
    },
    partitions_def=RECIPES,
    kinds={"polars", "html"},
    code_version="10",
)
def gate_verdict(
    context: dg.AssetExecutionContext,
    eval_embeddings: pl.DataFrame,
    economics_terms: dg.ResourceParam[EconomicsTerms],
    gate_policy: dg.ResourceParam[GatePolicy],
    release_terms: dg.ResourceParam[ReleaseTerms],
    labelling_plan: dg.ResourceParam[LabellingPlan],
    golden: dg.ResourceParam[Golden],
    pipeline_parts: dg.ResourceParam[PipelineParts],
    live_embedder: dg.ResourceParam[Embedder],
    home: dg.ResourceParam[Home],
    **frames: pl.DataFrame,
) -> dg.MaterializeResult[pl.DataFrame]:
    """PROMOTE, HOLD or INCONCLUSIVE, every gate with its number, and the report of it all."""
    evidence, recipe, lock = Evidence(**frames), context.partition_key, golden.verify_lock()
    record_read(home.ledger, reader=f"gate_verdict:{recipe}", run_id=context.run.run_id)
    tiers = gather_tiers(
        home, release_terms.tiers, adapter=evidence.adapter, fitted=evidence.fitted
    )
    candidate = identify_candidate(
        pipeline_parts,
        index_fingerprint=evidence.vector_index["index_fingerprint"].item(),
        tiers=tiers,
    )
    baseline = state_baseline(lock, release_terms.teacher, labelling_plan.ruler)
    shadowed = (
        read_pairs(home, days=gate_policy.shadow_days),
        name_shadowed(evidence, tiers, release_terms),
        gate_policy,
    )
    verdict = judge_candidate(
        evidence,
        smaller=[(tier, read_training_set(home, tier.adapter)) for tier in tiers[:-1]],
        locked_sha256=lock,
        policy=gate_policy,
        suites=(
            *_choose_suites(evidence, tiers, candidate=candidate, policy=gate_policy, home=home),
            check_shadow_clusters(
                *shadowed, live_embedder, read_registered(eval_embeddings, embedder=live_embedder)
            ),
        ),
        agreement=check_shadow_agreement(*shadowed),
        terms=economics_terms,
        router=release_terms.router,
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
            *describe_worth(evidence, advice, economics_terms, release_terms.router),
            *read_optional_sections(home),
        ),
        baseline=baseline,
        terms=release_terms,
        training=read_provenance(home.adapters / evidence.adapter["adapter"]),
    )
    files = write_report(home.reports / recipe, contents)
    return dg.MaterializeResult(
        value=verdict.to_frame(candidate),
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
    evidence: Evidence,
    tiers: Tiers,
    *,
    candidate: CandidateIdentity,
    policy: GatePolicy,
    home: Home,
) -> list[GateResult]:
    measured = read_suite_gates(home, evidence.adapter["recipe"])
    rows = (tier.adapter for tier in tiers)
    last = None if measured.is_empty() else find_last_student(home, *rows)
    return choose_gates(evidence, measured, candidate, last, policy)


@dg.observable_source_asset(key=keys.SKILL_STUDENTS)
def skill_students(
    release_terms: dg.ResourceParam[ReleaseTerms], home: dg.ResourceParam[Home]
) -> dg.DataVersion:
    """The students of the configured skills, and the verdicts on them, made by other runs.

    Each is made and judged in the partition of its own recipe; the version is the hash of all.
    """
    return dg.DataVersion(fingerprint_skills(home, release_terms.skills))


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
    deps=[keys.SKILL_STUDENTS],
    partitions_def=RECIPES,
    kinds={"json", "safetensors"},
    code_version="2",
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
    """The signed bundle a server loads: adapters, index, prompt, policies, the gate's evidence.

    In that of the default recipe lie the students asked before its own, and those of skills; one of
    a skill that the gate did not promote stops the release. Their recipes get bundles of their own,
    which are never published.
    """
    adapter, fitted = student_adapter.row(0, named=True), calibration.row(0, named=True)
    index = vector_index.row(0, named=True)
    index_fingerprint = read_index(vector_index, pipeline_parts.embedder)
    gates, recipe = gate_verdict.to_dicts(), adapter["recipe"]
    tiers = gather_tiers(home, release_terms.tiers, adapter=adapter, fitted=fitted)
    candidate = identify_candidate(pipeline_parts, index_fingerprint=index_fingerprint, tiers=tiers)
    refuse_other_verdict(gates, candidate, recipe=recipe)
    skills = _admit(adapter, gates, index, parts=pipeline_parts, terms=release_terms, home=home)
    questions = seed_questions["text"].head(GOLDEN_PROMPT_COUNT).to_list()
    manifest = write_manifest(
        terms=release_terms,
        gates=gates,
        losses=state_losses(parity_report, (SMALLER, STUDENT)[-len(tiers) :]),
        tiers=tiers,
        index=index,
        golden_prompts=run_blocking(sample_retrieval(pipeline_parts, index_fingerprint, questions)),
        skills=skills,
    )
    served = find_skills(release_terms.skills, recipe)
    is_asked_first = recipe in release_terms.tiers[:-1]
    published = publish_release(
        home,
        manifest,
        {name: home.adapters / student.adapter for name, student in manifest.students.items()},
        is_part=bool(served) or is_asked_first,
    )
    row = published.describe() | {
        "phase": manifest.phase,
        "verdict": manifest.gate.verdict,
        "folder": str(home.releases / published.release_id),
        "skills": list_students(skills),
    }
    return dg.MaterializeResult(
        value=pl.DataFrame([row], schema=tables.RELEASE_BUNDLE),
        metadata=row
        | {"tiers": list(manifest.tier_names)}
        | ({"never_published_but_in_skills": served} if served else {})
        | ({"never_published_but_asked_before": release_terms.tiers[-1]} if is_asked_first else {}),
    )


def _admit(
    adapter: dict[str, Any],
    gates: list[dict[str, Any]],
    index: dict[str, Any],
    *,
    parts: PipelineParts,
    terms: ReleaseTerms,
    home: Home,
) -> dict[str, SkillStudent]:
    standard = ReleaseStandard(
        recipe=adapter["recipe"],
        adapter=adapter,
        gates=gates,
        students=tuple(terms.students),
        identify=lambda student, calibration: identify_candidate(
            parts,
            index_fingerprint=index["index_fingerprint"],
            tiers=[TierStudent(adapter=student, fitted=calibration)],
        ),
    )
    chosen = choose_skills(
        terms.skills, recipe=adapter["recipe"], default_recipe=terms.default_recipe
    )
    return admit_skills(home, chosen, standard)
