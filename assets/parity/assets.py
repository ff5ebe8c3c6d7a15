"""Parity assets: operating_points -> arm_answers -> graded_answers -> parity_report, per recipe.

Belongs here: declarations. Does not belong here: graders, statistics, what the report looks like.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.eval_set.ledger import record_read
from assets.labels.assets import LabellingPlan
from assets.labels.rating import rate_answers, read_rateables
from assets.parity.answering import ask_models
from assets.parity.arms import ArmPlan
from assets.parity.baselines import StudentShelf
from assets.parity.cascade import derive_cascade, describe_cascade
from assets.parity.comparison import build_parity_table, describe_headline
from assets.parity.deriving import derive_arm, describe_routing
from assets.parity.economics import EconomicsTerms
from assets.parity.experiments import Experiment
from assets.parity.exposure import (
    find_trained,
    list_offered,
    list_read_chunks,
    slice_by_exposure,
)
from assets.parity.graders import grade_answers
from assets.parity.operating_points import choose_operating_points, read_thresholds
from assets.parity.prices import find_free, find_unpriced
from assets.parity.registering import find_predictions, register_predictions
from assets.parity.rubric import read_rubric, tabulate_rubric
from assets.parity.suite_evidence import identify_candidate, read_candidate
from assets.parity.tiers import SMALLER_VERSION, fingerprint_before, gather_tiers
from assets.partitions import RECIPES
from assets.spending import describe_spending, read_spending
from assets.students.calibration import read_calibrator
from serving.aio import run_blocking
from serving.home import Home
from serving.models.protocols import ChatModel, Embedder, Progress
from serving.models.student_rules import read_rules
from serving.pipeline.assembly import PipelineParts
from serving.pipeline.prompt import PROMPT_WORDING
from serving.pipeline.validator import VALIDATOR_VERSION


@dg.asset(
    key=keys.OPERATING_POINTS,
    ins={
        "held_out_answers": dg.AssetIn(key=keys.HELD_OUT_ANSWERS),
        "calibration": dg.AssetIn(key=keys.CALIBRATION),
    },
    partitions_def=RECIPES,
    kinds={"polars", "statsmodels"},
    code_version="2",
)
def operating_points(
    held_out_answers: pl.DataFrame,
    calibration: pl.DataFrame,
    pipeline_parts: dg.ResourceParam[PipelineParts],
) -> dg.MaterializeResult[pl.DataFrame]:
    """Thresholds that give the teacher 10, 20 and 40 % of the held-out questions."""
    fitted = calibration.row(0, named=True)
    rows = choose_operating_points(
        held_out_answers, read_calibrator(fitted), policy=pipeline_parts.router
    )
    frame = pl.DataFrame(
        [row | {"adapter_sha256": fitted["adapter_sha256"]} for row in rows],
        schema=tables.OPERATING_POINTS,
    )
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "case_count": int(frame["case_count"][0]),
            **{f"{row['arm']}_teacher_ratio": row["teacher_ratio"] for row in rows},
        },
    )


@dg.observable_source_asset(key=keys.SMALLER_STUDENTS, partitions_def=RECIPES)
def smaller_students(
    context: dg.OpExecutionContext,
    arm_plan: dg.ResourceParam[ArmPlan],
    home: dg.ResourceParam[Home],
) -> dg.DataVersionsByPartition:
    """The students asked before that of a recipe, made by other runs; the version is their hash."""
    recipes = context.instance.get_dynamic_partitions("recipes")
    return dg.DataVersionsByPartition(
        {recipe: fingerprint_before(home, arm_plan, recipe) for recipe in recipes}
    )


@dg.asset(
    key=keys.ARM_ANSWERS,
    ins={
        "golden_cases": dg.AssetIn(key=keys.GOLDEN_CASES),
        "vector_index": dg.AssetIn(key=keys.VECTOR_INDEX),
        "labelled_examples": dg.AssetIn(key=keys.LABELLED_EXAMPLES),
        "student_adapter": dg.AssetIn(key=keys.STUDENT_ADAPTER),
        "calibration": dg.AssetIn(key=keys.CALIBRATION),
        "operating_points": dg.AssetIn(key=keys.OPERATING_POINTS),
    },
    deps=[keys.SMALLER_STUDENTS],
    partitions_def=RECIPES,
    kinds={"pytorch", "lancedb", "polars"},
    code_version=f"4+prompt.{PROMPT_WORDING}+validator.{VALIDATOR_VERSION}",
    pool="student",
)
def arm_answers(
    context: dg.AssetExecutionContext,
    arm_plan: dg.ResourceParam[ArmPlan],
    experiments: dg.ResourceParam[Mapping[str, Experiment]],
    pipeline_parts: dg.ResourceParam[PipelineParts],
    students: dg.ResourceParam[StudentShelf],
    home: dg.ResourceParam[Home],
    progress: dg.ResourceParam[Progress],
    **frames: pl.DataFrame,
) -> dg.MaterializeResult[pl.DataFrame]:
    """The golden cases answered by every arm of the plan, through the production pipeline.

    A smaller student answers them too, in the partition of the recipe whose student is asked after
    it. What the two in turn do is executed where a release holds both, and else derived.
    """
    adapter, fitted = (
        frames[name].row(0, named=True) for name in ("student_adapter", "calibration")
    )
    tiers = gather_tiers(home, arm_plan.tiers, adapter=adapter, fitted=fitted)
    released = arm_plan.choose_released(tiers)
    registered = _announce_asking(context, experiments, adapter=adapter, home=home)
    spent = read_spending(pipeline_parts.teacher)
    rows = ask_models(
        frames,
        plan=arm_plan,
        parts=pipeline_parts,
        tiers=tiers,
        students=students,
        adapters_folder=home.adapters,
        progress=progress,
    )
    for point in arm_plan.choose("operating_point"):
        row = frames["operating_points"].row(by_predicate=pl.col("arm") == point.name, named=True)
        rows += derive_arm(point.name, rows, read_thresholds(row, pipeline_parts.router))
    if len(tiers) > len(released):
        rows += derive_cascade(rows, tiers, pipeline_parts.router)
    candidate = identify_candidate(
        pipeline_parts,
        index_fingerprint=frames["vector_index"]["index_fingerprint"].item(),
        tiers=released,
    )
    frame = pl.DataFrame([row | asdict(candidate) for row in rows], schema=tables.ARM_ANSWERS)
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "case_count": frames["golden_cases"].height,
            "arms": list(arm_plan.arms),
            "predictions_registered": registered,
            **describe_routing(frame),
            **describe_cascade(frame),
            "error_count": frame["error"].len() - frame["error"].null_count(),
            SMALLER_VERSION: fingerprint_before(home, arm_plan, adapter["recipe"]),
            **describe_spending(pipeline_parts.teacher, since=spent),
        },
    )


def _announce_asking(
    context: dg.AssetExecutionContext,
    experiments: Mapping[str, Experiment],
    *,
    adapter: dict[str, Any],
    home: Home,
) -> list[str]:
    """Note that the golden set is read, and what is predicted of a student never asked before."""
    run_id = context.run.run_id
    _note_read(context, home)
    kept = home.table(keys.ARM_ANSWERS.to_user_string(), context.partition_key).parent
    asked = (pl.read_parquet(path, columns=["model"])["model"] for path in kept.glob("*.parquet"))
    return register_predictions(
        find_predictions(home),
        experiments.values(),
        adapter_sha256=adapter["adapter_sha256"],
        run_id=run_id,
        was_asked=any(adapter["adapter"] in models for models in asked),
    )


@dg.asset(
    key=keys.GRADED_ANSWERS,
    ins={
        "arm_answers": dg.AssetIn(key=keys.ARM_ANSWERS),
        "golden_cases": dg.AssetIn(key=keys.GOLDEN_CASES),
        "chunks": dg.AssetIn(key=keys.CHUNKS),
    },
    partitions_def=RECIPES,
    kinds={"openai", "polars"},
    code_version="3",
    pool="judge",
)
def graded_answers(
    context: dg.AssetExecutionContext,
    arm_answers: pl.DataFrame,
    golden_cases: pl.DataFrame,
    chunks: pl.DataFrame,
    judge: dg.ResourceParam[ChatModel],
    embedder: dg.ResourceParam[Embedder],
    labelling_plan: dg.ResourceParam[LabellingPlan],
    home: dg.ResourceParam[Home],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[pl.DataFrame]:
    """Every answer under every metric, and the judge's rubric by axis."""
    _note_read(context, home)
    first = arm_answers.filter(pl.col("repeat") == 0)  # later repeats are there to be timed
    graded = grade_answers(first, golden_cases, chunks, embedder=embedder)
    answered = first.filter(pl.col("error").is_null())
    items = read_rateables(answered)
    before = read_spending(judge)
    ratings = run_blocking(
        rate_answers(
            items, judge=judge, concurrency=labelling_plan.judge_concurrency, progress=progress
        )
    )
    rubric = tabulate_rubric(answered, ratings)
    candidate = read_candidate(arm_answers)
    whose = {name: pl.lit(value) for name, value in asdict(candidate).items()} if candidate else {}
    frame = pl.concat([graded, rubric]).with_columns(**whose).select(tables.GRADED_ANSWERS.names())
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "grade_count": frame.height,
            "inconclusive_count": int((frame["status"] == "inconclusive").sum()),
            **describe_spending(judge, since=before),
        },
    )


@dg.asset(
    key=keys.PARITY_REPORT,
    ins={
        "arm_answers": dg.AssetIn(key=keys.ARM_ANSWERS),
        "graded_answers": dg.AssetIn(key=keys.GRADED_ANSWERS),
        "golden_cases": dg.AssetIn(key=keys.GOLDEN_CASES),
        "chunks": dg.AssetIn(key=keys.CHUNKS),
        "labelled_examples": dg.AssetIn(key=keys.LABELLED_EXAMPLES),
        "teacher_answers": dg.AssetIn(key=keys.TEACHER_ANSWERS),
        "training_set": dg.AssetIn(key=keys.TRAINING_SET),
        "student_adapter": dg.AssetIn(key=keys.STUDENT_ADAPTER),
    },
    partitions_def=RECIPES,
    kinds={"scipy", "polars"},
    code_version="7",
)
def parity_report(
    context: dg.AssetExecutionContext,
    arm_answers: pl.DataFrame,
    graded_answers: pl.DataFrame,
    golden_cases: pl.DataFrame,
    chunks: pl.DataFrame,
    labelled_examples: pl.DataFrame,
    teacher_answers: pl.DataFrame,
    training_set: pl.DataFrame,
    student_adapter: pl.DataFrame,
    economics_terms: dg.ResourceParam[EconomicsTerms],
    home: dg.ResourceParam[Home],
) -> dg.MaterializeResult[pl.DataFrame]:
    """The arms side by side: metrics and slices, intervals and deltas.

    Slices: the buckets, and the cases whose gold chunks this very student did or did not train on.
    """
    _note_read(context, home)
    adapter = student_adapter.row(0, named=True)
    offered = list_offered(labelled_examples, lane=adapter["lane"], home=home)
    trained = find_trained(training_set, offered)
    sources = read_rules(home.adapters / adapter["adapter"]).sources
    read = list_read_chunks(trained, teacher_answers, arm_answers, sources=sources)
    seen = set(read["chunk_id"])
    exposure = slice_by_exposure(golden_cases, chunks, seen)
    frame = build_parity_table(
        arm_answers=arm_answers,
        graded_answers=graded_answers,
        golden_cases=golden_cases,
        rubric_scores=read_rubric(graded_answers),
        exposure=exposure,
        unpriced=find_unpriced(economics_terms.prices, adapter["student"]),
        free=find_free(economics_terms.prices, adapter["student"]),
    )
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "trained_example_count": trained.height,
            "trained_without_known_sources_count": trained.height - read["example_id"].n_unique(),
            "seen_chunk_count": len(seen),
            "cases_by_exposure": dict(exposure.group_by("slice").len().sort("slice").iter_rows()),
            **describe_headline(frame),
        },
    )


def _note_read(context: dg.AssetExecutionContext, home: Home) -> None:
    """Write into the ledger that an asset reads the golden cases of a recipe."""
    noun = context.asset_key.path[-1]
    record_read(home.ledger, reader=f"{noun}:{context.partition_key}", run_id=context.run.run_id)
