"""Assets of the suites and of the judge's anchors: asked on demand, since answers take time.

Belongs here: declarations. Does not belong here: asking (`suites`), gates (`suites`, `behaviours`),
statistics of the judge (`rulers`, `liveness`).
"""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.eval_set.ledger import record_read
from assets.eval_set.suites import BEHAVIOURS, RATINGS, Suites
from assets.eval_set.vectors import read_vectors
from assets.labels.answering import read_index
from assets.labels.assets import LabellingPlan
from assets.labels.rating import rate_answers
from assets.parity.arms import BASELINE, CANDIDATE, ArmPlan
from assets.parity.baselines import StudentShelf
from assets.parity.behaviours import (
    check_no_unregistered_cluster,
    decide_behaviour_gates,
    find_disagreement_clusters,
    find_lost_cases,
    leave_disagreements_open,
)
from assets.parity.last_release import find_last_student
from assets.parity.suite_evidence import identify_candidate, read_candidate
from assets.parity.suites import (
    SuiteGate,
    SuiteLimits,
    answer_suites,
    decide_suite_gates,
    hash_sets,
)
from assets.parity.tiers import (
    SMALLER_VERSION,
    Tiers,
    assemble_tiers,
    fingerprint_before,
    gather_tiers,
)
from assets.parity.waves import (
    BLIND_EVERY,
    append_wave,
    choose_wave,
    list_rateables,
    read_waves,
    reseed,
    tabulate_human,
    tabulate_wave,
)
from assets.partitions import RECIPES
from assets.spending import describe_spending, read_spending
from serving.aio import run_blocking
from serving.home import Home
from serving.models.protocols import ChatModel, Embedder, Progress
from serving.pipeline.answer import AnswerPipeline
from serving.pipeline.assembly import PipelineParts
from serving.pipeline.prompt import PROMPT_WORDING
from serving.pipeline.questions import normalise_question
from serving.pipeline.validator import VALIDATOR_VERSION


@dg.asset(
    key=keys.SUITE_ANSWERS,
    ins={
        "refusal_suite": dg.AssetIn(key=keys.REFUSAL_SUITE),
        "over_refusal_suite": dg.AssetIn(key=keys.OVER_REFUSAL_SUITE),
        "behaviour_registry": dg.AssetIn(key=keys.BEHAVIOUR_REGISTRY),
        "vector_index": dg.AssetIn(key=keys.VECTOR_INDEX),
        "student_adapter": dg.AssetIn(key=keys.STUDENT_ADAPTER),
        "calibration": dg.AssetIn(key=keys.CALIBRATION),
    },
    deps=[keys.SMALLER_STUDENTS],
    partitions_def=RECIPES,
    kinds={"pytorch", "lancedb", "polars"},
    code_version=f"4+prompt.{PROMPT_WORDING}+validator.{VALIDATOR_VERSION}",
    pool="student",
)
def suite_answers(
    refusal_suite: pl.DataFrame,
    over_refusal_suite: pl.DataFrame,
    behaviour_registry: pl.DataFrame,
    vector_index: pl.DataFrame,
    student_adapter: pl.DataFrame,
    calibration: pl.DataFrame,
    pipeline_parts: dg.ResourceParam[PipelineParts],
    arm_plan: dg.ResourceParam[ArmPlan],
    students: dg.ResourceParam[StudentShelf],
    home: dg.ResourceParam[Home],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[pl.DataFrame]:
    """The suites answered by teacher, last release and candidate, in three wordings.

    The base model is asked where `parity.arms` names it: it talks to its limit each time.
    """
    adapter, fitted = student_adapter.row(0, named=True), calibration.row(0, named=True)
    index = read_index(vector_index, pipeline_parts.embedder)
    cases = pl.concat([refusal_suite, over_refusal_suite, behaviour_registry])
    before = read_spending(pipeline_parts.teacher)
    tiers = gather_tiers(home, arm_plan.released, adapter=adapter, fitted=fitted)
    last = find_last_student(home, *(tier.adapter for tier in tiers))

    async def assemble(asked: Tiers) -> AnswerPipeline:
        return await assemble_tiers(pipeline_parts, index, [tier.open(students) for tier in asked])

    async def answer_all() -> list[dict[str, Any]]:
        routed = await assemble(tiers)
        pipelines = {BASELINE: routed, CANDIDATE: routed}
        if "base" in arm_plan.arms:
            base = students.open_base(adapter["student"]).model
            pipelines["base"] = await pipeline_parts.assemble(index, student=base)
        if last:
            pipelines["last_release"] = await assemble(last.tiers)
        return await answer_suites(cases, pipelines=pipelines, progress=progress)

    candidate = identify_candidate(pipeline_parts, index_fingerprint=index, tiers=tiers)
    whose = asdict(candidate) | {"released_fingerprint": last.fingerprint if last else None}
    rows = [row | whose for row in run_blocking(answer_all())]
    frame = pl.DataFrame(rows, schema=tables.SUITE_ANSWERS)
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "case_count": cases.height,
            "answer_count": frame.height,
            "error_count": frame["error"].len() - frame["error"].null_count(),
            "last_release": last.adapter["adapter"] if last else "none but this one",
            SMALLER_VERSION: fingerprint_before(home, arm_plan, adapter["recipe"]),
            **describe_spending(pipeline_parts.teacher, since=before),
        },
    )


@dg.asset(
    key=keys.SUITE_GATES,
    ins={
        "suite_answers": dg.AssetIn(key=keys.SUITE_ANSWERS),
        "refusal_suite": dg.AssetIn(key=keys.REFUSAL_SUITE),
        "over_refusal_suite": dg.AssetIn(key=keys.OVER_REFUSAL_SUITE),
        "behaviour_registry": dg.AssetIn(key=keys.BEHAVIOUR_REGISTRY),
        "eval_embeddings": dg.AssetIn(key=keys.EVAL_EMBEDDINGS),
        "graded_answers": dg.AssetIn(key=keys.GRADED_ANSWERS),
        "golden_cases": dg.AssetIn(key=keys.GOLDEN_CASES),
    },
    partitions_def=RECIPES,
    kinds={"scipy", "scikitlearn", "polars"},
    code_version="4",
)
def suite_gates(
    context: dg.AssetExecutionContext,
    embedder: dg.ResourceParam[Embedder],
    suite_limits: dg.ResourceParam[SuiteLimits],
    home: dg.ResourceParam[Home],
    **frames: pl.DataFrame,
) -> dg.MaterializeResult[pl.DataFrame]:
    """Refusals, over-refusals, behaviours and unregistered disagreements against their limits."""
    reader = f"suite_gates:{context.partition_key}"
    record_read(home.ledger, reader=reader, run_id=context.run.run_id)
    frame = tabulate_gates(**frames, embedder=embedder, limits=suite_limits)
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "gate_count": frame.height,
            "failed": frame.filter(outcome="FAIL")["name"].to_list(),
            "open": frame.filter(outcome="INCONCLUSIVE")["name"].to_list(),
        },
    )


def tabulate_gates(
    *,
    suite_answers: pl.DataFrame,
    refusal_suite: pl.DataFrame,
    over_refusal_suite: pl.DataFrame,
    behaviour_registry: pl.DataFrame,
    eval_embeddings: pl.DataFrame,
    graded_answers: pl.DataFrame,
    golden_cases: pl.DataFrame,
    embedder: Embedder,
    limits: SuiteLimits,
) -> pl.DataFrame:
    """Return the suite_gates table: each gate, and of whom and by which files and limits it is.

    Whose answers they are is read from the answers: student and pipeline may be others by now.
    """
    candidate = read_candidate(suite_answers)
    is_own = candidate is not None and candidate == read_candidate(graded_answers)
    gates = (
        *decide_suite_gates(suite_answers, refusal_suite, over_refusal_suite, limits),
        *decide_behaviour_gates(suite_answers, behaviour_registry, limits),
        _check_disagreements(graded_answers, golden_cases, eval_embeddings, embedder, limits)
        if is_own
        else leave_disagreements_open(limits),
    )
    suites = (refusal_suite, over_refusal_suite, behaviour_registry)
    identity = {"set_hash": hash_sets(*suites, limits=limits)}
    if candidate:
        released = suite_answers["released_fingerprint"][0]
        identity |= asdict(candidate) | {"released_fingerprint": released}
    return pl.DataFrame([asdict(gate) | identity for gate in gates], schema=tables.SUITE_GATES)


def _check_disagreements(
    graded_answers: pl.DataFrame,
    golden_cases: pl.DataFrame,
    eval_embeddings: pl.DataFrame,
    embedder: Embedder,
    limits: SuiteLimits,
) -> SuiteGate:
    lost, compared = find_lost_cases(graded_answers, golden_cases)
    registered = eval_embeddings.filter(suite=BEHAVIOURS)
    clusters = find_disagreement_clusters(
        lost["case_id"].to_list(),
        embedder.embed([normalise_question(text) for text in lost["question"]]),
        registered=read_vectors(registered, embedder=embedder),
        behaviours=registered["case_id"].to_list(),
    )
    return check_no_unregistered_cluster(clusters, compared=compared, limits=limits)


@dg.asset(
    key=keys.JUDGE_ANCHOR_RUN,
    ins={"judge_anchors": dg.AssetIn(key=keys.JUDGE_ANCHORS)},
    kinds={"openai", "polars"},
    code_version="1",
    pool="judge",
)
def judge_anchor_run(
    judge_anchors: pl.DataFrame,
    suites: dg.ResourceParam[Suites],
    judge: dg.ResourceParam[ChatModel],
    labelling_plan: dg.ResourceParam[LabellingPlan],
    home: dg.ResourceParam[Home],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[pl.DataFrame]:
    """The judge's ratings of anchors, wave by wave: all under a new ruler, then 50 a day.

    Every tenth is rated again blind, and people's ratings of anchors stand beside the judge's.
    """
    today, ruler, waves = datetime.now(UTC).date(), labelling_plan.ruler, read_waves(home)
    chosen = choose_wave(judge_anchors, waves, ruler=ruler, day=today)
    before = read_spending(judge)

    def rate(anchors: pl.DataFrame, kind: str) -> pl.DataFrame:
        ratings = run_blocking(
            rate_answers(
                list_rateables(anchors),
                judge=reseed(judge, today, is_blind=kind == "blind"),
                concurrency=labelling_plan.judge_concurrency,
                progress=progress,
            )
        )
        return tabulate_wave(
            judge_anchors, anchors, ratings, rater_kind=kind, ruler=ruler, wave=today
        )

    made = [rate(chosen, "judge"), rate(chosen.gather_every(BLIND_EVERY), "blind")]
    human = tabulate_human(judge_anchors, suites.read(RATINGS)[1])
    frame = append_wave(waves, *made, human)
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "rated_count": chosen.height,
            "wave_count": frame["wave"].n_unique(),
            "human_rating_count": human.height,
            **describe_spending(judge, since=before),
        },
    )
