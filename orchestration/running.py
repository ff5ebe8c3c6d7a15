"""Launching runs in this process: observe, plan, materialize, say what happened.

Belongs here: the run the CLI and the demo launch. Does not belong here: how it looks (`console`,
`cli`), which assets are stale (`planning`).
"""

import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.students.factory import refuse_unfit
from assets.students.recipe import load_recipe
from orchestration.bindings import Bindings
from orchestration.config import PROJECT_ROOT, Config, prepare_environment
from orchestration.definitions import build_defs
from orchestration.failures import describe_failure, is_interrupted
from orchestration.jobs import EVERYTHING
from orchestration.lost_runs import end_lost_runs
from orchestration.observing import report_sources
from orchestration.planning import (
    AssetState,
    PlannedAsset,
    find_blockers,
    plan_run,
    read_states,
)
from orchestration.recipes import choose_recipe, list_recipes
from resources.last_tables import NoTables
from serving.errors import InvalidInputError
from serving.home import Home
from serving.models.embedded import check_model_name
from serving.models.protocols import NoProgress, Progress
from serving.pipeline.indexing import RETRIEVAL_VERSION
from serving.pipeline.snapshot_receipt import is_whole

Announce = Callable[[Sequence[PlannedAsset]], None]
FOLDERS: dict[str, Callable[[Home, dict[str, str]], Path]] = {
    "corpus/vector_index": lambda home, row: home.root / row["uri"],
    "students/student_adapter": lambda home, row: home.adapters / row["adapter"],
    "releases/release_bundle": lambda home, row: home.releases / row["release_id"],
}
"""Folders that a table stands for: the table without its folder is worth nothing."""
IS_THERE: dict[str, Callable[[Path], bool]] = {
    "corpus/vector_index": lambda snapshot: is_whole(snapshot, RETRIEVAL_VERSION)
}
"""What tells a damaged folder, which is worth nothing either; any other need only be there."""


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """What a run did, or would do."""

    planned: tuple[PlannedAsset, ...]
    succeeded: bool
    failure: str = ""


def run_chain(
    config: Config,
    *,
    progress: Progress,
    recipe: str,
    select: Sequence[str] = (),
    force: bool = False,
    dry_run: bool = False,
    announce: Announce = lambda _plan: None,
    instance: dg.DagsterInstance | None = None,
    tags: Mapping[str, str] | None = None,
    **overrides: object,
) -> RunOutcome:
    """Materialize what is stale (or, with `force`, all that is selected) for one recipe.

    Args:
        config: the product.
        progress: told how far long steps are.
        recipe: the recipe, and so the partition of students, parity and releases.
        select: stages (`labels`) or assets (`labels/teacher_answers`); empty is the whole chain.
        force: run the selection even if nothing changed, and make its rows anew.
        dry_run: plan and announce, and make nothing.
        announce: told the plan before anything is made.
        instance: Dagster's storage; by default the one under the home.
        tags: what the run is found again by.
        overrides: resources by key (tests).

    Raises:
        InvalidInputError: recipe, selected name or input is wrong; the selection needs more.
        KeyboardInterrupt: a person stopped the run.
    """
    _check_recipe(config, recipe)
    prepare_environment(config)
    instance = instance or dg.DagsterInstance.get()
    end_lost_runs(instance)  # a run that was killed would hold its pools against this one
    instance.add_dynamic_partitions("recipes", list_recipes(config))
    if force:  # on purpose means anew: no row is carried over, though no answer is bought twice
        overrides = {"last_tables": NoTables(tables.BY_KEY), **overrides}
    definitions = build_defs(config, progress=progress, **overrides)
    states = _observe(config, definitions, instance, progress, recipe)
    planned = choose_plan(states, select, force=force)
    announce(planned)
    if dry_run or not planned:
        return RunOutcome(planned=tuple(planned), succeeded=True)
    return _execute(config, definitions, instance, planned, recipe, tags or {})


def _check_recipe(config: Config, recipe: str) -> None:
    """Refuse a recipe or an embedder that cannot be had, before a label is bought for it."""
    check_model_name(config.embedder.model, config.embedder.revision)
    choose_recipe(config, recipe)
    made_by = load_recipe(config.recipes / f"{recipe}.yaml")
    student = Bindings(config, NoProgress()).students.find(made_by.student)
    refuse_unfit(recipe, made_by, provider=student.provider)
    if student.provider == "local":
        check_model_name(student.base_model, student.revision)


def _observe(
    config: Config,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    progress: Progress,
    recipe: str,
) -> list[AssetState]:
    sources = report_sources(config, instance, progress, recipe)
    home = Home(config.home)
    return read_states(
        definitions,
        instance,
        partition=recipe,
        sources=sources,
        is_stored=lambda key, of: is_stored(home, key, of),
    )


def is_stored(home: Home, key: str, partition: str | None) -> bool:
    """Say whether a table, and the folder it stands for if any, lie in the home."""
    path = home.table(key, partition)
    if not path.is_file():
        return False
    if key not in FOLDERS:
        return True
    try:
        folder = FOLDERS[key](home, pl.read_parquet(path).row(0, named=True))
    # A table that cannot be read, or names no folder, is made again; Polars panics on some damage.
    except (
        OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException, KeyError, TypeError
    ):  # fmt: skip
        return False
    return IS_THERE.get(key, Path.is_dir)(folder)


def choose_plan(
    states: Sequence[AssetState], select: Sequence[str], *, force: bool
) -> list[PlannedAsset]:
    """Return what a run of the selection makes.

    Raises:
        InvalidInputError: a name does not exist, or the selection needs what was never made.
    """
    made = [state.key for state in states if state.source_version is None]
    chosen = choose_assets(made, select)
    planned = [PlannedAsset(key=key, reason="forced") for key in chosen]
    if not force:
        planned = [asset for asset in plan_run(states) if asset.key in chosen]
    _refuse_gaps(states, {asset.key for asset in planned}, select)
    return planned


def _refuse_gaps(
    states: Sequence[AssetState], planned: Collection[str], select: Sequence[str]
) -> None:
    blockers = find_blockers(states, planned)
    if not blockers:
        return
    stages = dict.fromkeys(key.split("/")[0] for key in blockers)
    raise InvalidInputError(
        f"planning {' '.join(f'--select {name}' for name in select)}",
        expected="everything that the selection is made from to be there, with its checks passed",
        found="; ".join(f"{key} {why}" for key, why in blockers.items()),
        next_step=f"add {' '.join(f'--select {stage}' for stage in stages)}, "
        "or run without --select",
    )


def choose_assets(names: Sequence[str], select: Sequence[str]) -> list[str]:
    """Return the keys that a selection of stages and assets names; all when it is empty.

    What is made on demand alone is left out unless it is named itself, or its stage makes nothing
    else: the stage is named for its sake then.

    Raises:
        InvalidInputError: a name is neither a stage nor an asset.
    """
    stages = {key.split("/")[0] for key in names}
    unknown = [name for name in select if name not in stages and name not in set(names)]
    if unknown:
        raise InvalidInputError(
            f"selecting {', '.join(unknown)}",
            expected=f"a stage ({', '.join(sorted(stages))}) or an asset (stage/name)",
            found=", ".join(unknown),
            next_step="see the assets in `understudy ui`, or run without --select",
        )
    on_demand = {key.to_user_string() for key in keys.ON_DEMAND}
    in_chain = {name.split("/")[0] for name in names if name not in on_demand}

    def is_chosen(name: str) -> bool:
        stage = name.split("/")[0]
        if name in on_demand:
            return name in select or (stage in select and stage not in in_chain)
        return not select or name in select or stage in select

    return [name for name in names if is_chosen(name)]


def _execute(
    config: Config,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    planned: Sequence[PlannedAsset],
    recipe: str,
    tags: Mapping[str, str],
) -> RunOutcome:
    graph = definitions.resolve_asset_graph()
    chosen = [dg.AssetKey.from_user_string(asset.key) for asset in planned]
    partition = recipe if any(graph.get(key).is_partitioned for key in chosen) else None
    result = definitions.resolve_job_def(EVERYTHING).execute_in_process(
        asset_selection=chosen,
        partition_key=partition,
        instance=instance,
        tags=tags,
        raise_on_error=False,
        run_config={"loggers": {"console": {}}},
    )
    if is_interrupted(result):
        raise KeyboardInterrupt  # Dagster has swallowed it
    return RunOutcome(
        planned=tuple(planned),
        succeeded=result.success,
        failure=describe_failure(result, config.home),
    )


def launch_ui(config: Config, port: int) -> int:
    """Run the Dagster UI on loopback until it is stopped; return its exit code."""
    prepare_environment(config)
    instance = dg.DagsterInstance.get()
    end_lost_runs(instance)
    instance.add_dynamic_partitions("recipes", list_recipes(config))
    command = [sys.executable, "-m", "dagster", "dev", "-w", str(PROJECT_ROOT / "workspace.yaml")]
    try:
        return subprocess.run(  # noqa: S603  (our own interpreter, no shell)
            [*command, "-h", "127.0.0.1", "-p", str(port)], cwd=PROJECT_ROOT, check=False
        ).returncode
    except KeyboardInterrupt:
        return 0
