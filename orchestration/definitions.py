"""The one code location: every stage's assets and checks, with policy applied once to all of them.

Belongs here: composition. Does not belong here: what an asset computes, how a resource works.
"""

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import dagster as dg
import polars as pl

from assets import STAGES, tables
from assets.automation import choose_condition, choose_freshness
from assets.traces.marts import connect_dbt, declare_marts, prepare_manifest
from orchestration.bindings import Bindings
from orchestration.config import PROJECT_ROOT, Config, load_config
from orchestration.console import CONSOLE_LOGGER
from orchestration.dbt_loading import import_dagster_dbt
from orchestration.jobs import NIGHTLY_TRACES, build_jobs, build_nightly_job
from orchestration.schedules import build_schedules, build_sensors
from resources.progress import LogProgress
from serving.hashing import content_hash
from serving.home import Home

__all__ = ["NIGHTLY_TRACES", "build_defs", "build_nightly_defs", "defs"]

OWNERS = ["team:understudy"]

STUDENT_KEYS = (
    "students.*.provider",
    "students.*.base_model",
    "students.*.revision",
    "students.*.local_engine",
    "students.*.base_url",
    "students.*.context_tokens",
    "students.*.max_answer_tokens",
    "students.*.price",
)

CONFIG_KEYS: dict[str, tuple[str, ...]] = {
    "corpus": (
        "product.corpus.include",
        "product.corpus.exclude",
        "product.corpus.url",
        "embedder",
        "chunking",
    ),
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
        "gates.suite_margin_ratio",
        "gates.behaviour_margin_ratio",
        "gates.unregistered_cluster_cases",
        "parity",
        "economics",
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
        "releases",
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
    "monitoring": (
        "embedder",
        "monitoring",
        "gates.minimum_agreement_ratio",
        "gates.minimum_agreement_pairs",
        "gates.unregistered_cluster_cases",
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
        declared = dg.load_assets_from_modules(_find_modules(stage, "assets"), group_name=stage)
        made = [asset for asset in declared if isinstance(asset, dg.AssetsDefinition)]
        assets += dg.map_asset_specs(lambda spec: _apply_policy(spec, config), made)
        assets += [asset for asset in declared if not isinstance(asset, dg.AssetsDefinition)]
        checks += dg.load_asset_checks_from_modules(_find_modules(stage, "checks"))
    return dg.Definitions(
        assets=assets,
        asset_checks=checks,
        jobs=build_jobs(),
        resources={**bindings.to_resources(), **overrides},
        executor=dg.in_process_executor,  # models load once per run, not once per step
        loggers={"console": CONSOLE_LOGGER},
    )


@dg.definitions
def defs() -> dg.Definitions:
    """The code location that `workspace.yaml` names."""
    return build_nightly_defs()


def build_nightly_defs(config: Config | None = None, **overrides: Any) -> dg.Definitions:
    """Return everything of `build_defs`, and the dbt marts with the job that builds them.

    Apart, because dbt costs seconds to import and to start: the command line's runs need neither.
    """
    config = config or load_config()
    home, project = Home(config.home), PROJECT_ROOT / "dbt_traces"
    import_dagster_dbt()
    marts = declare_marts(prepare_manifest(project, home), home)
    (declared,) = dg.map_asset_specs(lambda spec: _apply_policy(spec, config), [marts])
    return dg.Definitions.merge(
        build_defs(config, **overrides),
        dg.Definitions(
            assets=[declared],
            jobs=[build_nightly_job()],
            sensors=build_sensors(config),
            schedules=build_schedules(config),
            resources={"dbt": connect_dbt(project)},
        ),
    )


def _find_modules(stage: str, ending: str) -> list[ModuleType]:
    """Return a stage's declarations: `assets`, and what tells a chapter of its own, `suite_assets`.

    A stage of many assets is declared in several modules; all of them end in the same word.
    """
    found = iter_modules(import_module(f"assets.{stage}").__path__, f"assets.{stage}.")
    names = (module.name for module in found)
    return [import_module(name) for name in names if name.endswith((f".{ending}", f"_{ending}"))]


def _apply_policy(spec: dg.AssetSpec, config: Config) -> dg.AssetSpec:
    stage = spec.key.path[0]
    schema = tables.BY_KEY[tuple(spec.key.path)]
    return spec.replace_attributes(
        owners=OWNERS,
        code_version=f"{spec.code_version}+config.{fingerprint_stage(stage, config)}",
        automation_condition=choose_condition(spec.key),
        freshness_policy=choose_freshness(spec.key),
    ).merge_attributes(metadata={"dagster/column_schema": describe_columns(schema)})


def fingerprint_stage(stage: str, config: Config) -> str:
    """Return the identity of the configuration that decides a stage's output (8 hex digits).

    Where a model's folder lies is not what it holds: it counts as it is seen from the file.
    """
    values = config.model_dump(mode="json")
    parts = {path: _pick(values, path.split(".")) for path in CONFIG_KEYS[stage]}
    return content_hash(_see_from(config.source, parts), digits=8)


def _see_from(source: Path | None, value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _see_from(source, entry) for name, entry in value.items()}
    if source is None or not isinstance(value, str) or not value.startswith("/"):
        return value
    return os.path.relpath(value, source.parent)


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
