"""Student assets: training_set -> student_adapter -> training_curve, one partition per recipe.

Belongs here: declarations. Does not belong here: tokenisation, the loss, the loop, the process.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Protocol

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.partitions import RECIPES
from assets.students.provenance import gather_facts, tabulate_adapter
from assets.students.recipe import TRAINING_VERSION, load_recipe
from assets.students.training_set import build_training_set
from serving.home import Home
from serving.models.causal_lm import hash_base_model
from serving.models.embedded import ResolvedModel


class StudentSettings(Protocol):
    """What the configuration says of one student."""

    base_model: str
    revision: str
    context_tokens: int


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
    ins={"labelled_examples": dg.AssetIn(key=keys.LABELLED_EXAMPLES)},
    deps=[keys.RECIPE_FILE],
    partitions_def=RECIPES,
    kinds={"transformers", "polars"},
    code_version="1",
)
def training_set(
    context: dg.AssetExecutionContext,
    labelled_examples: pl.DataFrame,
    students: dg.ResourceParam[StudentBases],
) -> dg.MaterializeResult[pl.DataFrame]:
    """The labelled examples as the student's tokens: prompt, answer, citation spans."""
    recipe = load_recipe(students.recipe_path(context.partition_key))
    built = build_training_set(
        labelled_examples,
        students.tokenizer(recipe.student),
        context_tokens=students.find(recipe.student).context_tokens,
        activation=recipe.activation,
        max_examples=recipe.max_examples,
        seed=recipe.seed,
    )
    frame = built.frame
    prompt_tokens = frame["prefix_ids"].list.len() + frame["suffix_ids"].list.len()
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "examples_by_split": dict(frame["split"].value_counts().sort("split").iter_rows()),
            "mean_prompt_tokens": float(prompt_tokens.mean() or 0),
            "refusal_ratio": built.refusal_ratio,
            "too_long_count": len(built.too_long),
            "not_sampled_count": built.not_sampled,
            f"input_version/{keys.RECIPE_FILE.to_user_string()}": recipe.fingerprint,
        },
    )


@dg.asset(
    key=keys.STUDENT_ADAPTER,
    ins={
        "training_set": dg.AssetIn(key=keys.TRAINING_SET),
        "labelled_examples": dg.AssetIn(key=keys.LABELLED_EXAMPLES),
        "vector_index": dg.AssetIn(key=keys.VECTOR_INDEX),
    },
    deps=[keys.TEACHER_LOGPROBS],
    partitions_def=RECIPES,
    kinds={"pytorch", "safetensors"},
    code_version=f"1+{TRAINING_VERSION}",
    pool="training",
)
def student_adapter(
    context: dg.AssetExecutionContext,
    training_set: pl.DataFrame,
    labelled_examples: pl.DataFrame,
    vector_index: pl.DataFrame,
    students: dg.ResourceParam[StudentBases],
    home: dg.ResourceParam[Home],
    pipes: dg.PipesSubprocessClient,
) -> dg.MaterializeResult[pl.DataFrame]:
    """The LoRA adapter, trained in a subprocess; an equal training is found, not repeated."""
    recipe = load_recipe(students.recipe_path(context.partition_key))
    settings, base = students.find(recipe.student), students.base(recipe.student)
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "spec.json"
        facts = gather_facts(
            training_set, labelled_examples, vector_index.row(0, named=True), settings
        )
        spec.write_text(
            json.dumps(
                {
                    "training_set": str(home.table("students/training_set", context.partition_key)),
                    "logprobs": str(home.table("labels/teacher_logprobs")),
                    "recipe": recipe.model_dump(mode="json"),
                    "base_folder": str(base.path),
                    "base_hash": hash_base_model(base.path),
                    "adapters_folder": str(home.adapters),
                    "facts": facts,
                }
            ),
            encoding="utf-8",
        )
        invocation = pipes.run(
            context=context,
            command=[sys.executable, "-m", "assets.students.train", "--spec", str(spec)],
        )
    outcome = invocation.get_custom_messages()[-1]
    row = tabulate_adapter(
        context.partition_key, Path(outcome["adapter"]), recipe, settings, training_set
    )
    return dg.MaterializeResult(
        value=pl.DataFrame([row], schema=tables.STUDENT_ADAPTER),
        metadata={
            "adapter": row["adapter"],
            "is_reused": outcome["is_reused"],
            "training_seconds": outcome["seconds"],
            "final_validation_loss": row["final_validation_loss"],
        },
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
    """Loss, gradient norm, speed and memory, step by step, as stored beside the adapter."""
    folder = home.adapters / student_adapter["adapter"].item()
    frame = pl.read_parquet(folder / "training_curve.parquet")
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "step_count": frame.height,
            "first_loss": float(frame["loss"].head(5).mean() or 0),
            "last_loss": float(frame["loss"].tail(5).mean() or 0),
        },
    )
