"""The direction of dependencies where a linter cannot see it: what importing really loads."""

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "torch",
    "transformers",
    "sentence_transformers",
    "peft",
    "evidently",
    "great_expectations",
)
OF_ONE_COMMAND = ("orchestration.drill", "orchestration.flywheel")
ENVIRONMENT_READERS = {"serving/settings.py", "orchestration/config.py"}
PACKAGES = ("serving", "resources", "assets", "orchestration")


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_definitions_load_without_heavy_libraries():
    loaded = run_python(
        "import sys; from orchestration.definitions import build_defs; "
        "build_defs().resolve_asset_graph(); "
        f"print([m for m in {HEAVY + OF_ONE_COMMAND!r} if m in sys.modules])"
    )
    assert loaded == "[]"


def test_serving_imports_with_dagster_absent():
    code = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"dagster", "dagster_pipes", "dbt", "polars", "trl"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import pkgutil, importlib, serving
for module in pkgutil.walk_packages(serving.__path__, "serving."):
    importlib.import_module(module.name)
first_party = {"assets", "resources", "orchestration"} & {m.split(".")[0] for m in sys.modules}
print(sorted(first_party))
"""
    assert run_python(code) == "[]"


@pytest.mark.parametrize("project", ["pyproject.toml", "serving/pyproject.toml"])
def test_every_command_of_a_package_exists(project: str):
    with (ROOT / project).open("rb") as stream:
        scripts = tomllib.load(stream)["project"]["scripts"]
    for target in scripts.values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name)), target


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_module_opens_with_its_charter_and_keeps_the_rules(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    relative = path.relative_to(ROOT).as_posix()
    assert ast.get_docstring(tree), f"{relative} has no charter"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            reads_environment = node.value.id == "os" and node.attr in {"environ", "getenv"}
            assert not reads_environment or relative in ENVIRONMENT_READERS, (
                f"{relative}:{node.lineno} reads the environment; only {ENVIRONMENT_READERS} may"
            )
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative}:{node.lineno} imports relatively"
            modules = [node.module or ""]
        for module in modules:
            assert not module.startswith("dagster._"), f"{relative}:{node.lineno} imports {module}"
            assert module.split(".")[0] not in {"pickle", "requests"}, f"{relative}: {module}"
