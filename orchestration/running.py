"""Launching runs in this process: observe, plan, materialize, say what happened.

Belongs here: the run the CLI and the demo launch. Does not belong here: how it looks (`console`,
`cli`), which assets are stale (`planning`).
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from assets import keys
from assets.students.recipe import load_recipe
from orchestration.bindings import Bindings
from orchestration.config import PROJECT_ROOT, Config, prepare_environment
from orchestration.definitions import build_defs
from orchestration.planning import PlannedAsset, plan_run, read_states
from serving.errors import InvalidInputError
from serving.models.protocols import Progress


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """What a run did."""

    planned: tuple[PlannedAsset, ...]
    succeeded: bool
    failure: str = ""


def list_recipes(config: Config) -> list[str]:
    """Return the names of the recipe files, sorted."""
    return sorted(path.stem for path in Path(config.recipes).glob("*.yaml"))


def run_chain(
    config: Config,
    *,
    progress: Progress,
    recipe: str,
    select: Sequence[str] = (),
    force: bool = False,
    instance: dg.DagsterInstance | None = None,
    **overrides: object,
) -> RunOutcome:
    """Materialize what is stale (or, with `force`, all that is selected) for one recipe.

    Args:
        config: the product.
        progress: told how far long steps are.
        recipe: the recipe, and so the partition of students, parity and releases.
        select: stages (`labels`) or assets (`labels/teacher_answers`); empty is the whole chain.
        force: run the selection even if nothing changed.
        instance: Dagster's storage; by default the one under the home.
        overrides: resources by key (tests).

    Raises:
        InvalidInputError: the recipe or a selected name does not exist, or an input cannot be read.
    """
    recipes = list_recipes(config)
    if recipe not in recipes:
        raise InvalidInputError(
            f"choosing the recipe {recipe!r}",
            expected=f"one of {recipes} in {config.recipes}",
            found=repr(recipe),
            next_step="name an existing recipe with --recipe, or add a YAML file",
        )
    prepare_environment(config)
    instance = instance or dg.DagsterInstance.get()
    instance.add_dynamic_partitions("recipes", recipes)
    definitions = build_defs(config, progress=progress, **overrides)
    planned = _plan(config, definitions, instance, progress, recipe, select, force=force)
    if not planned:
        return RunOutcome(planned=(), succeeded=True)
    return _execute(definitions, instance, planned, recipe)


def _plan(
    config: Config,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    progress: Progress,
    recipe: str,
    select: Sequence[str],
    *,
    force: bool,
) -> list[PlannedAsset]:
    sources = Bindings(config, progress).observe_sources() | observe_recipe(config, recipe)
    for key, version in sources.items():
        partition = recipe if key.path[0] == "students" else None
        instance.report_runless_asset_event(
            dg.AssetObservation(
                asset_key=key, partition=partition, tags={"dagster/data_version": version}
            )
        )
    states = read_states(definitions, instance, partition=recipe, sources=sources)
    made = [state for state in states if state.source_version is None]
    chosen = choose_assets([state.key for state in made], select)
    if force:
        return [PlannedAsset(key=key, reason="forced") for key in chosen]
    return [planned for planned in plan_run(states) if planned.key in set(chosen)]


def observe_recipe(config: Config, recipe: str) -> dict[dg.AssetKey, str]:
    """Return the data version of the recipe file."""
    return {keys.RECIPE_FILE: load_recipe(config.recipes / f"{recipe}.yaml").fingerprint}


def choose_assets(keys: Sequence[str], select: Sequence[str]) -> list[str]:
    """Return the keys that a selection of stages and assets names; all when it is empty.

    Raises:
        InvalidInputError: a name is neither a stage nor an asset.
    """
    if not select:
        return list(keys)
    stages = {key.split("/")[0] for key in keys}
    unknown = [name for name in select if name not in stages and name not in set(keys)]
    if unknown:
        raise InvalidInputError(
            f"selecting {', '.join(unknown)}",
            expected=f"a stage ({', '.join(sorted(stages))}) or an asset (stage/name)",
            found=", ".join(unknown),
            next_step="see the assets in `understudy ui`, or run without --select",
        )
    return [key for key in keys if key in select or key.split("/")[0] in select]


def _execute(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    planned: Sequence[PlannedAsset],
    recipe: str,
) -> RunOutcome:
    graph = definitions.resolve_asset_graph()
    keys = [dg.AssetKey.from_user_string(asset.key) for asset in planned]
    partition = recipe if any(graph.get(key).is_partitioned for key in keys) else None
    result = definitions.resolve_job_def("whole_chain").execute_in_process(
        asset_selection=keys,
        partition_key=partition,
        instance=instance,
        raise_on_error=False,
        run_config={"loggers": {"console": {}}},
    )
    return RunOutcome(
        planned=tuple(planned), succeeded=result.success, failure=_describe_failure(result)
    )


def launch_ui(config: Config, port: int) -> int:
    """Run the Dagster UI on loopback until it is stopped; return its exit code."""
    prepare_environment(config)
    instance = dg.DagsterInstance.get()
    instance.add_dynamic_partitions("recipes", list_recipes(config))
    command = [sys.executable, "-m", "dagster", "dev", "-w", str(PROJECT_ROOT / "workspace.yaml")]
    try:
        return subprocess.run(  # noqa: S603  (our own interpreter, no shell)
            [*command, "-h", "127.0.0.1", "-p", str(port)], cwd=PROJECT_ROOT, check=False
        ).returncode
    except KeyboardInterrupt:
        return 0


def _describe_failure(result: dg.ExecuteInProcessResult) -> str:
    failed = [e for e in result.get_asset_check_evaluations() if not e.passed]
    if failed:
        return "; ".join(
            f"{e.asset_key.to_user_string()}: {e.check_name} failed. {e.description or ''}".strip()
            for e in failed
        )
    for event in result.all_events:
        if event.is_step_failure and event.step_failure_data.error:
            error = event.step_failure_data.error
            cause = error.cause or error
            return f"{event.step_key}: {cause.message.strip()}"
    return ""
