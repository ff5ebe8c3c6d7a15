"""The one bridge to dbt: the models of `dbt_traces/` as assets, their tests as checks.

Models are keyed `traces/<model>`, depend on `traces/hourly_records` and leave one Parquet file each
in the lake. dbt costs seconds whenever it starts, so they belong to the job `nightly_traces` alone.
Belongs here: preparing the manifest and declaring the models. Does not belong here: SQL
(`dbt_traces/`), who is owner of an asset (`orchestration/definitions`).
"""

import json
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets import tables
from assets.traces.hours import find_folder, keep_columns_known
from serving.errors import InvalidInputError
from serving.files import PRIVATE_MODE, atomic_path
from serving.hashing import folder_sha256
from serving.home import Home

if TYPE_CHECKING:
    from dagster_dbt import DbtCliResource

CODE_VERSION = "1"


def find_marts(home: Home) -> list[Path]:
    """Return the Parquet files of the marts, built or not."""
    return [home.table(f"traces/{name}") for name in tables.MARTS]


def connect_dbt(project: Path) -> "DbtCliResource":
    """Return dbt's command line for the project."""
    from dagster_dbt import DbtCliResource

    return DbtCliResource(
        project_dir=str(project),
        profiles_dir=str(project),
        dbt_executable=_find_dbt(),
        global_config_flags=["--no-use-colors"],  # its lines end in logs and pipes
    )


def _find_dbt() -> str:
    """Return the dbt of this very environment, which need not be on PATH, or else PATH's."""
    installed_beside = Path(sysconfig.get_path("scripts")) / "dbt"
    return str(installed_beside) if installed_beside.exists() else "dbt"


def prepare_manifest(project: Path, home: Home) -> Path:
    """Return the manifest of exactly these project files, parsing them when they changed.

    Raises:
        InvalidInputError: dbt cannot parse the project.
    """
    path = home.root / "dbt" / f"manifest-{folder_sha256(project)[:12]}.json"
    if path.exists():
        return path
    parsing = connect_dbt(project).cli(
        ["parse", *_pass_folders(home)], raise_on_error=False, target_path=home.root / "dbt"
    )
    parsing.wait()
    if not parsing.is_successful():
        raise InvalidInputError(
            f"parsing the dbt project in {project}",
            expected="models, sources and tests that dbt can read",
            found=str(parsing.get_error()),
            next_step="mend the project; `dbt parse` there says the same",
        )
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(parsing.get_artifact("manifest.json")), encoding="utf-8")
    return path


def declare_marts(manifest: Path, home: Home) -> Any:
    """Return the models as one definition of assets, with tests as checks; dbt runs once."""
    from dagster_dbt import DagsterDbtTranslator, DbtCliResource, dbt_assets

    class Translator(DagsterDbtTranslator):
        """Names a model like every other asset of the stage."""

        def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str:  # noqa: ARG002
            return "traces"

        def get_code_version(self, dbt_resource_props: Mapping[str, Any]) -> str:
            return f"{CODE_VERSION}.{super().get_code_version(dbt_resource_props)}"

        def get_asset_key(self, dbt_resource_props: Mapping[str, Any]) -> Any:
            key = super().get_asset_key(dbt_resource_props)
            name = str(dbt_resource_props["name"])
            return type(key)(["traces", name])

    @dbt_assets(manifest=manifest, dagster_dbt_translator=Translator(), name="trace_marts")
    def trace_marts(context, dbt: DbtCliResource) -> Iterator[Any]:  # type: ignore[no-untyped-def]
        keep_columns_known(find_folder(home))
        home.table("traces/asks").parent.mkdir(parents=True, exist_ok=True)
        build = dbt.cli(
            ["build", *_pass_folders(home)], context=context, target_path=home.root / "dbt"
        )
        yield from build.stream()
        for path in find_marts(home):
            if path.exists():
                path.chmod(PRIVATE_MODE)

    return trace_marts


def _pass_folders(home: Home) -> list[str]:
    folders = {
        "traces_folder": str(find_folder(home).absolute()),
        "marts_folder": str((home.lake / "traces").absolute()),
    }
    return ["--vars", json.dumps(folders)]
