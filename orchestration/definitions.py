"""The one code location: every stage's assets and checks, with policy applied once to all of them.

Belongs here: composition. Does not belong here: what an asset computes, how a resource works.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import dagster as dg
import polars as pl

from assets import STAGES, tables
from orchestration.bindings import Bindings
from orchestration.config import Config, load_config
from orchestration.console import CONSOLE_LOGGER
from resources.progress import LogProgress
from serving.hashing import content_hash

OWNERS = ["team:understudy"]

STUDENT_KEYS = (
    "students.*.provider",
    "students.*.base_model",
    "students.*.revision",
    "students.*.base_url",
    "students.*.context_tokens",
    "students.*.max_answer_tokens",
    "students.*.price",
)

CONFIG_KEYS: dict[str, tuple[str, ...]] = {
    "corpus": ("product.corpus.include", "product.corpus.url", "embedder", "chunking"),
    "traces": (),
    "seeds": ("embedder",),
    "eval_set": ("embedder", "eval.cases_by_bucket"),
    "paraphrases": (
        "seeds.paraphrases_per_medoid",
        "seeds.paraphrase_temperature",
        "seeds.seeds_per_cluster",
        "embedder",
        "teacher.provider",
        "teacher.model",
        "teacher.base_url",  # two servers may give one name to two models
    ),
    "labels": (
        "retrieval",
        "prompt",
        "validator",
        "scorer.provider",
        "scorer.model",
        "scorer.revision",
        "scorer.top_k",
        "scorer.maximum_examples",
        "teacher.provider",
        "teacher.model",
        "teacher.base_url",
        "teacher.top_logprobs",
        "teacher.license",
        "teacher.trainable",
        "judge.provider",
        "judge.model",
        "judge.base_url",
        "judge.epoch",
        "judge.minimum_score",
        "students.*.max_answer_tokens",  # the longest is the limit of every answer
        "students.*.context_tokens",  # the longest is what the scorer reads
    ),
    "students": ("embedder", "held_out", "router", *STUDENT_KEYS),
    "parity": (
        "retrieval",
        "prompt",
        "router",
        "validator",
        *STUDENT_KEYS,
        "teacher.provider",
        "teacher.model",
        "teacher.base_url",
        "teacher.price",
        "judge.provider",
        "judge.model",
        "judge.base_url",
        "judge.epoch",
    ),
    "releases": (
        "product.name",
        "embedder",
        "retrieval",
        "prompt",
        "router",
        "validator",
        "gates",
        "serving",
        *STUDENT_KEYS,
        "students.*.api_key_env",
        "students.*.timeout_seconds",
        "teacher.provider",
        "teacher.model",
        "teacher.base_url",
        "teacher.api_key_env",
        "teacher.price",
        "teacher.timeout_seconds",
    ),
}
"""The keys (or whole sections) of the configuration that decide what a stage writes: a change makes
its assets stale. `*` is every entry. A budget or a concurrency changes no answer: not here."""


def build_defs(config: Config | None = None, **overrides: Any) -> dg.Definitions:
    """Return the definitions of one configuration.

    Args:
        config: the product; by default the file `UNDERSTUDY_CONFIG` names.
        overrides: resources by key, replacing the configured ones (tests pass plain objects).
    """
    config = config or load_config()
    bindings = Bindings(config, overrides.get("progress") or LogProgress(dg.get_dagster_logger()))
    assets: list[Any] = []
    checks: list[Any] = []
    for stage in STAGES:
        declarations = import_module(f"assets.{stage}.assets")
        declared = dg.load_assets_from_modules([declarations], group_name=stage)
        made = [asset for asset in declared if isinstance(asset, dg.AssetsDefinition)]
        assets += dg.map_asset_specs(lambda spec: _apply_policy(spec, config), made)
        assets += [asset for asset in declared if not isinstance(asset, dg.AssetsDefinition)]
        checks += dg.load_asset_checks_from_modules([import_module(f"assets.{stage}.checks")])
    return dg.Definitions(
        assets=assets,
        asset_checks=checks,
        jobs=[dg.define_asset_job("whole_chain", selection="*")],
        resources={**bindings.to_resources(), **overrides},
        executor=dg.in_process_executor,  # models load once per run, not once per step
        loggers={"console": CONSOLE_LOGGER},
    )


@dg.definitions
def defs() -> dg.Definitions:
    """The code location that `workspace.yaml` names."""
    return build_defs()


def _apply_policy(spec: dg.AssetSpec, config: Config) -> dg.AssetSpec:
    stage = spec.key.path[0]
    schema = tables.BY_KEY[tuple(spec.key.path)]
    return spec.replace_attributes(
        owners=OWNERS,
        code_version=f"{spec.code_version}+config.{fingerprint_stage(stage, config)}",
    ).merge_attributes(metadata={"dagster/column_schema": describe_columns(schema)})


def fingerprint_stage(stage: str, config: Config) -> str:
    """Return the identity of the configuration that decides a stage's output (8 hex digits)."""
    values = config.model_dump(mode="json")
    parts = {path: _pick(values, path.split(".")) for path in CONFIG_KEYS[stage]}
    return content_hash(parts, digits=8)


def _pick(values: Any, path: Sequence[str]) -> Any:
    if not path or values is None:  # an optional section that is left out
        return values
    if path[0] == "*":
        return {name: _pick(value, path[1:]) for name, value in values.items()}
    return _pick(values[path[0]], path[1:])


def describe_columns(schema: pl.Schema) -> dg.TableSchema:
    """Return a declared schema in the form the UI shows."""
    return dg.TableSchema(
        columns=[dg.TableColumn(name=name, type=str(dtype)) for name, dtype in schema.items()]
    )
