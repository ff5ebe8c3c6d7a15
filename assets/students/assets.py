"""Student assets: training_set -> student_adapter -> training_curve, and how good it is.

The latter: held_out_answers -> validation_report and calibration. One partition per recipe.

The recipe's kind decides what a student is: an adapter that a process trains, or a prompt that the
factory writes.

Belongs here: declarations. Does not belong here: tokenisation, the loss, the loop, the process.
"""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.labels.answering import read_index
from assets.labels.refusals import read_refusal_rule
from assets.partitions import RECIPES
from assets.reuse import LastTables
from assets.students.agreement import build_validation_report, find_metric
from assets.students.calibration import Engine, calibrate, draw_reliability
from assets.students.curve_chart import describe_speed, draw_curve
from assets.students.factory import (
    FACTORY_VERSION,
    FactoryParts,
    list_examples,
    make_student,
    refuse_unfit,
)
from assets.students.held_out import (
    ARMS,
    BASE,
    STUDENT,
    HeldOutCase,
    HeldOutPlan,
    answer_cases,
    draw_cases,
)
from assets.students.lanes import add_leak, cap_harvested
from assets.students.prompt_folders import read_searched
from assets.students.provenance import gather_facts, tabulate_adapter
from assets.students.recipe import (
    TRAINING_VERSION,
    AnyRecipe,
    Recipe,
    is_contaminated,
    load_recipe,
)
from assets.students.reporting import follow_reports, raise_failure
from assets.students.taught import choose_taught
from assets.students.train import make_command
from assets.students.training_set import (
    TrainingSet,
    build_training_set,
    refuse_empty,
    require_one_teacher,
)
from serving.aio import run_blocking
from serving.home import Home
from serving.models.causal_lm import hash_base_model
from serving.models.embedded import ResolvedModel
from serving.models.engines import LocalEngine
from serving.models.prompted_student import TRAINED_KINDS, OpenedBase
from serving.models.protocols import ChatModel, Embedder, Progress
from serving.models.student_rules import NO_RULES, StudentRules
from serving.pipeline.assembly import PipelineParts
from serving.pipeline.prompt import PROMPT_WORDING
from serving.pipeline.validator import VALIDATOR_VERSION


class StudentSettings(Protocol):
    """What the configuration says of one student."""

    provider: str
    base_model: str
    revision: str
    local_engine: LocalEngine
    context_tokens: int
    max_answer_tokens: int


class StudentBases(Protocol):
    """The configured students and the recipe files."""

    def recipe_path(self, recipe: str) -> Path:
        """Return the file of a recipe."""
        ...

    def find(self, student: str) -> StudentSettings:
        """Return a student's settings."""
        ...

    def base(self, student: str) -> ResolvedModel:
        """Return the verified folder of its base model."""
        ...

    def tokenizer(self, student: str) -> Any:
        """Return the tokenizer of its base model."""
        ...

    def open_base(self, student: str) -> OpenedBase:
        """Return its base model ready to answer, its answers kept and budgeted."""
        ...

    def open_embedder(self) -> Embedder:
        """Return the product's embedder, by which examples are chosen."""
        ...

    def load(self, adapter: dict[str, Any]) -> ChatModel:
        """Return the student of a student_adapter row, its answers kept by content key."""
        ...


@dg.observable_source_asset(key=keys.RECIPE_FILE, partitions_def=RECIPES)
def recipe_file(
    context: dg.OpExecutionContext, students: dg.ResourceParam[StudentBases]
) -> dg.DataVersionsByPartition:
    """The recipe files; a version is the hash of what in a recipe can change the adapter."""
    names = context.instance.get_dynamic_partitions("recipes")
    return dg.DataVersionsByPartition(
        {name: load_recipe(students.recipe_path(name)).fingerprint for name in names}
    )


@dg.asset(
    key=keys.TRAINING_SET,
    ins={
        "labelled_examples": dg.AssetIn(key=keys.LABELLED_EXAMPLES),
        "teacher_answers": dg.AssetIn(key=keys.TEACHER_ANSWERS),
        "seed_questions": dg.AssetIn(key=keys.SEED_QUESTIONS),
        "refusal_rule": dg.AssetIn(key=keys.REFUSAL_RULE),
    },
    deps=[keys.RECIPE_FILE],
    partitions_def=RECIPES,
    kinds={"transformers", "polars"},
    code_version="1",
)
def training_set(
    context: dg.AssetExecutionContext,
    labelled_examples: pl.DataFrame,
    teacher_answers: pl.DataFrame,
    seed_questions: pl.DataFrame,
    refusal_rule: pl.DataFrame,
    students: dg.ResourceParam[StudentBases],
    last_tables: dg.ResourceParam[LastTables],
) -> dg.MaterializeResult[pl.DataFrame]:
    """The labelled examples as the student's tokens: prompt, answer, citation spans.

    A kind that trains nothing has ids and splits alone.
    """
    recipe = load_recipe(students.recipe_path(context.partition_key))
    provider = students.find(recipe.student).provider
    refuse_unfit(context.partition_key, recipe, provider=provider)
    offered = _choose_lane(recipe, labelled_examples, last_tables)
    if isinstance(recipe, Recipe):
        ratio = recipe.maximum_harvested_ratio
        offered = cap_harvested(offered, seed_questions, maximum_ratio=ratio, seed=recipe.seed)
    taught = choose_taught(offered, teacher_answers, _choose_rules(recipe, refusal_rule))
    built = _build_set(recipe, taught, students)
    frame = built.frame
    counts = {
        "left_to_rules_count": offered.height - taught.height,
        "too_long_count": len(built.too_long),
        "not_sampled_count": built.not_sampled,
    }
    refuse_empty(context.partition_key, frame, {"offered_count": offered.height} | counts)
    prompt_tokens = frame["prefix_ids"].list.len() + frame["suffix_ids"].list.len()
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "examples_by_split": dict(frame["split"].value_counts().sort("split").iter_rows()),
            "mean_prompt_tokens": float(prompt_tokens.mean() or 0),
            "refusal_ratio": built.refusal_ratio,
            **counts,
            f"input_version/{keys.RECIPE_FILE.to_user_string()}": recipe.fingerprint,
        },
    )


@dg.asset(
    key=keys.STUDENT_ADAPTER,
    ins={
        "training_set": dg.AssetIn(key=keys.TRAINING_SET),
        "labelled_examples": dg.AssetIn(key=keys.LABELLED_EXAMPLES),
        "vector_index": dg.AssetIn(key=keys.VECTOR_INDEX),
        "refusal_rule": dg.AssetIn(key=keys.REFUSAL_RULE),
    },
    deps=[keys.TEACHER_LOGPROBS],
    partitions_def=RECIPES,
    kinds={"pytorch", "safetensors"},
    code_version=f"2+{TRAINING_VERSION}+{FACTORY_VERSION}",
    pool="training",
)
def student_adapter(
    context: dg.AssetExecutionContext,
    training_set: pl.DataFrame,
    labelled_examples: pl.DataFrame,
    vector_index: pl.DataFrame,
    refusal_rule: pl.DataFrame,
    students: dg.ResourceParam[StudentBases],
    home: dg.ResourceParam[Home],
    pipes: dg.PipesSubprocessClient,
    last_tables: dg.ResourceParam[LastTables],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[pl.DataFrame]:
    """The student: an adapter trained in a subprocess, or a prompt; an equal one is found again."""
    recipe = load_recipe(students.recipe_path(context.partition_key))
    settings = students.find(recipe.student)
    refuse_unfit(context.partition_key, recipe, provider=settings.provider)
    labelled_examples = _choose_lane(recipe, labelled_examples, last_tables)
    facts = gather_facts(training_set, labelled_examples, vector_index.row(0, named=True), settings)
    if isinstance(recipe, Recipe):
        rules = _choose_rules(recipe, refusal_rule)
        outcome = _train(
            context, pipes, recipe, students=students, home=home, facts=facts, rules=rules
        )
    else:
        used = labelled_examples.join(training_set, on="example_id", how="semi")
        parts = FactoryParts(
            base=students.open_base(recipe.student),
            open_embedder=students.open_embedder,
            max_answer_tokens=settings.max_answer_tokens,
            progress=progress,
        )
        outcome = asdict(
            make_student(recipe, used, parts=parts, facts=facts, adapters_folder=home.adapters)
        )
    row = tabulate_adapter(
        context.partition_key, Path(outcome["adapter"]), recipe, settings, training_set
    )
    return dg.MaterializeResult(
        value=pl.DataFrame([row], schema=tables.STUDENT_ADAPTER),
        metadata={
            "kind": recipe.kind,
            "adapter": row["adapter"],
            "is_reused": outcome["is_reused"],
            "training_seconds": outcome["seconds"],
            "final_validation_loss": row["final_validation_loss"],
        },
    )


def _choose_lane(
    recipe: AnyRecipe, labelled_examples: pl.DataFrame, last_tables: LastTables
) -> pl.DataFrame:
    """Return what the recipe may draw from. Only an experiment reads the contaminated table."""
    if not is_contaminated(recipe):
        return labelled_examples
    return add_leak(labelled_examples, last_tables.read(keys.CONTAMINATED_EXAMPLES.path))


def _choose_rules(recipe: AnyRecipe, refusal_rule: pl.DataFrame) -> StudentRules:
    """Return what is decided before the model of the recipe's student is asked."""
    if not isinstance(recipe, Recipe):
        return NO_RULES
    rule = read_refusal_rule(refusal_rule.row(0, named=True))
    return StudentRules(
        refusal=rule if recipe.refuses_by == "retrieval" else None, sources=recipe.sources
    )


def _build_set(
    recipe: AnyRecipe, labelled_examples: pl.DataFrame, students: StudentBases
) -> TrainingSet:
    if not isinstance(recipe, Recipe):
        require_one_teacher(labelled_examples)
        return list_examples(labelled_examples, max_examples=recipe.max_examples, seed=recipe.seed)
    return build_training_set(
        labelled_examples,
        students.tokenizer(recipe.student),
        context_tokens=students.find(recipe.student).context_tokens,
        activation=recipe.activation,
        max_examples=recipe.max_examples,
        maximum_refusal_ratio=recipe.maximum_refusal_ratio,
        seed=recipe.seed,
    )


def _train(
    context: dg.AssetExecutionContext,
    pipes: dg.PipesSubprocessClient,
    recipe: Recipe,
    *,
    students: StudentBases,
    home: Home,
    facts: dict[str, Any],
    rules: StudentRules,
) -> Any:
    """Train in a process of its own, and return what it says of its outcome."""
    base, engine = students.base(recipe.student), students.find(recipe.student).local_engine
    with tempfile.TemporaryDirectory() as folder:
        spec, reports = Path(folder) / "spec.json", Path(folder) / "reports.jsonl"
        spec.write_text(
            json.dumps(
                {
                    "training_set": str(home.table("students/training_set", context.partition_key)),
                    "logprobs": str(home.table("labels/teacher_logprobs")),
                    "recipe": recipe.model_dump(mode="json"),
                    "base_folder": str(base.path),
                    "base_hash": hash_base_model(base.path),
                    "adapters_folder": str(home.adapters),
                    # int8 rounds: a training reads what the unrounded base reads.
                    "prefix_engine": "openvino" if engine == "openvino" else "transformers",
                    "models_folder": str(home.models),
                    "facts": facts,
                    "rules": rules.model_dump(),
                    "reports": str(reports),
                }
            ),
            encoding="utf-8",
        )
        with (
            raise_failure(spec),
            follow_reports(reports, lambda report: _observe(context, report)),
        ):
            invocation = pipes.run(context=context, command=make_command(spec, recipe.processes))
    return invocation.get_custom_messages()[-1]


def _observe(context: dg.AssetExecutionContext, report: dict[str, Any]) -> None:
    """Show a step as an observation of the adapter: the UI plots these while training runs.

    What a run yields is stored when the asset returns; this is stored at once.
    """
    shown = {name: value for name, value in report.items() if value is not None}
    context.instance.report_runless_asset_event(
        dg.AssetObservation(
            asset_key=keys.STUDENT_ADAPTER,
            partition=context.partition_key,
            metadata=shown | {"run_id": context.run.run_id},
        )
    )


@dg.asset(
    key=keys.TRAINING_CURVE,
    ins={"student_adapter": dg.AssetIn(key=keys.STUDENT_ADAPTER)},
    partitions_def=RECIPES,
    kinds={"polars"},
    code_version="1",
)
def training_curve(
    student_adapter: pl.DataFrame, home: dg.ResourceParam[Home]
) -> dg.MaterializeResult[pl.DataFrame]:
    """Loss, gradient norm, speed and memory, step by step, as stored beside the adapter.

    Empty for a kind that trains nothing.
    """
    frame = pl.DataFrame(schema=tables.TRAINING_CURVE)
    if student_adapter["kind"].item() in TRAINED_KINDS:
        folder = home.adapters / student_adapter["adapter"].item()
        frame = pl.read_parquet(folder / "training_curve.parquet")
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "step_count": frame.height,
            "first_loss": float(frame["loss"].head(5).mean() or 0),
            "last_loss": float(frame["loss"].tail(5).mean() or 0),
            **describe_speed(frame),
            **({} if frame.is_empty() else {"losses": dg.MetadataValue.md(draw_curve(frame))}),
        },
    )


@dg.asset(
    key=keys.HELD_OUT_ANSWERS,
    ins={
        "labelled_examples": dg.AssetIn(key=keys.LABELLED_EXAMPLES),
        "teacher_answers": dg.AssetIn(key=keys.TEACHER_ANSWERS),
        "seed_questions": dg.AssetIn(key=keys.SEED_QUESTIONS),
        "vector_index": dg.AssetIn(key=keys.VECTOR_INDEX),
        "student_adapter": dg.AssetIn(key=keys.STUDENT_ADAPTER),
    },
    partitions_def=RECIPES,
    kinds={"pytorch", "lancedb", "polars"},
    code_version=f"4+prompt.{PROMPT_WORDING}+validator.{VALIDATOR_VERSION}",
    pool="student",
)
def held_out_answers(
    labelled_examples: pl.DataFrame,
    teacher_answers: pl.DataFrame,
    seed_questions: pl.DataFrame,
    vector_index: pl.DataFrame,
    student_adapter: pl.DataFrame,
    held_out_plan: dg.ResourceParam[HeldOutPlan],
    pipeline_parts: dg.ResourceParam[PipelineParts],
    students: dg.ResourceParam[StudentBases],
    home: dg.ResourceParam[Home],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[pl.DataFrame]:
    """Validation and calibration questions answered through the production pipeline.

    By the student, and validation questions by the baselines: the base model, the best chunk. What
    a prompt was searched on is not asked.
    """
    adapter = student_adapter.row(0, named=True)
    index = read_index(vector_index, pipeline_parts.embedder)
    searched = read_searched(home.adapters / adapter["adapter"])
    cases = draw_cases(
        labelled_examples, teacher_answers, seed_questions, held_out_plan, searched=searched
    )
    validation = [case for case in cases if case.split == "validation"]
    student = students.load(adapter)
    asked = [(STUDENT, student, cases)]
    if held_out_plan.base_cases:
        base = students.open_base(adapter["student"])
        asked.append((BASE, base.model, validation[: held_out_plan.base_cases]))

    async def answer_all() -> list[dict[str, Any]]:
        rows = []
        for arm, model, chosen in asked:
            pipeline = await pipeline_parts.assemble(index, student=model)
            rows += await answer_cases(chosen, arm=arm, pipeline=pipeline, progress=progress)
        return rows

    engine = {
        "adapter_sha256": adapter["adapter_sha256"],
        "engine": students.find(adapter["student"]).provider,
        "dtype": getattr(student, "dtype", "unknown"),
    }
    rows = [row | engine for row in run_blocking(answer_all())]
    frame = pl.DataFrame(rows, schema=tables.HELD_OUT_ANSWERS)
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "cases_by_split": _count_splits(cases),
            "searched_count": len(searched),
            "answers_by_arm": {arm: int((frame["arm"] == arm).sum()) for arm in ARMS},
            "error_count": frame["error"].len() - frame["error"].null_count(),
        },
    )


def _count_splits(cases: list[HeldOutCase]) -> dict[str, int]:
    return {
        split: sum(case.split == split for case in cases) for split in ("validation", "calibration")
    }


@dg.asset(
    key=keys.VALIDATION_REPORT,
    ins={"held_out_answers": dg.AssetIn(key=keys.HELD_OUT_ANSWERS)},
    partitions_def=RECIPES,
    kinds={"scipy", "polars"},
    code_version="1",
)
def validation_report(held_out_answers: pl.DataFrame) -> dg.MaterializeResult[pl.DataFrame]:
    """How near the student and the baselines come to the teacher's labels on validation questions.

    Recipes are chosen by these numbers, and never by the golden set's.
    """
    frame = build_validation_report(held_out_answers)
    shown = ("agreement", "same_citations", "valid_answerable", "refusal_recall", "answer_f1")
    return dg.MaterializeResult(
        value=frame,
        metadata={
            f"{metric}_ratio": find_metric(frame, STUDENT, metric)["value"] for metric in shown
        },
    )


@dg.asset(
    key=keys.CALIBRATION,
    ins={"held_out_answers": dg.AssetIn(key=keys.HELD_OUT_ANSWERS)},
    partitions_def=RECIPES,
    kinds={"scikitlearn", "scipy"},
    code_version="3",
)
def calibration(
    context: dg.AssetExecutionContext, held_out_answers: pl.DataFrame
) -> dg.MaterializeResult[pl.DataFrame]:
    """How the student's confidence is computed, how good it is, and the thresholds it certifies.

    Fitted and certified on the calibration split, measured on the validation split. It holds for
    this adapter, engine and precision.
    """
    engine = Engine(
        **held_out_answers.select("adapter_sha256", "engine", "dtype").row(0, named=True)
    )
    row = {"recipe": context.partition_key, **calibrate(held_out_answers, engine)}
    certified = [limit["risk_limit_ratio"] for limit in row.get("thresholds", [])
                 if limit["threshold"] is not None]  # fmt: skip
    return dg.MaterializeResult(
        value=pl.DataFrame([row], schema=tables.CALIBRATION),
        metadata={
            "method": row["method"],
            "case_count": row["fit_count"] + row["certify_count"],
            "brier_before": row.get("brier_before"),
            "brier_after": row.get("brier_after"),
            "ece_before": row.get("ece_before"),
            "ece_after": row.get("ece_after"),
            "smallest_certified_risk_ratio": min(certified, default=None),
            "reliability": dg.MetadataValue.md(draw_reliability(row, held_out_answers)),
        },
    )
