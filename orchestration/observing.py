"""Observing: telling Dagster which version of every input there is now.

A run records the versions it was made from, so they are reported before every run. Belongs here:
the reporting. Does not belong here: how a version is computed (`resources`), what is stale
(`planning`).
"""

import dagster as dg

from assets import keys
from assets.students.recipe import load_recipe
from orchestration.bindings import Bindings
from orchestration.config import Config
from serving.models.protocols import Progress


def report_sources(
    config: Config, instance: dg.DagsterInstance, progress: Progress, recipe: str
) -> dict[dg.AssetKey, str]:
    """Report the current data version of every input and of the recipe; return them."""
    bindings = Bindings(config, progress)
    own = observe_recipe(config, recipe) | bindings.observe_smaller(recipe)
    sources = bindings.observe_sources() | own
    for key, version in sources.items():
        partition = recipe if key in own else None
        instance.report_runless_asset_event(
            dg.AssetObservation(
                asset_key=key, partition=partition, tags={"dagster/data_version": version}
            )
        )
    return sources


def observe_recipe(config: Config, recipe: str) -> dict[dg.AssetKey, str]:
    """Return the data version of the recipe file."""
    return {keys.RECIPE_FILE: load_recipe(config.recipes / f"{recipe}.yaml").fingerprint}
