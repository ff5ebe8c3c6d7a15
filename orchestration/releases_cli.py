"""The commands `understudy releases …`: what was built, what is served, one step back.

Belongs here: arguments and what is printed. Does not belong here: bundles and the signed pointer
(`serving.releases`).
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated

import typer
from rich.table import Table

from orchestration.config import load_config
from orchestration.console import CONSOLE
from orchestration.explaining import explain_errors
from orchestration.options import Json
from serving.errors import ReleaseError
from serving.home import Home
from serving.releases.bundle import CURRENT, MANIFEST, ensure_signing_key, publish, verify_bundle
from serving.releases.signing import CurrentPointer, load_public_key, read_pointer

releases_app = typer.Typer(help="Releases: list them, step back.", no_args_is_help=True)


@dataclass(frozen=True, kw_only=True)
class BuiltRelease:
    """A bundle in the releases folder. `state` is `current`, `parent`, or why it is unusable."""

    release_id: str
    created_at: str
    verdict: str
    students: tuple[str, ...]
    state: str
    skills: Mapping[str, str] = field(default_factory=dict)
    """The adapter that serves each skill."""


@releases_app.command("list", epilog="Example: understudy releases list --json")
@explain_errors
def list_releases(as_json: Json = False) -> None:
    """List the bundles, newest first; every byte of each is verified."""
    home = Home(load_config().home)
    built = find_releases(home)
    if as_json:
        sys.stdout.write(json.dumps([asdict(release) for release in built]) + "\n")
        return
    if not built:
        CONSOLE.print("No releases yet: make one with `understudy run --select releases`.")
        return
    table = Table(box=None)
    for name in ("release", "created", "verdict", "students", "state"):
        table.add_column(name)
    for release in built:
        table.add_row(
            release.release_id,
            release.created_at,
            release.verdict,
            " ".join(_name_students(release)),
            release.state,
        )
    CONSOLE.print(table)


@releases_app.command("rollback", epilog="Example: understudy releases rollback")
@explain_errors
def rollback(
    to: Annotated[
        str | None, typer.Option(help="A release id; the current one's parent without it.")
    ] = None,
) -> None:
    """Publish an earlier release again. Servers follow within seconds, without a restart.

    A second rollback undoes the first: to go back further, name the release with --to.
    """
    home = Home(load_config().home)
    current = read_current(home)
    target = to or (current.parent if current else None)
    if current is None or target is None:
        raise ReleaseError(
            "rolling back",
            expected="a current release with a parent, or --to",
            found="nothing published" if current is None else "the first release",
            next_step="list the releases with `understudy releases list`",
        )
    pointer = publish(
        home.releases,
        target,
        expected_parent=current.release_id,
        signing_key=ensure_signing_key(home.keys),
    )
    CONSOLE.print(
        f"CURRENT names {pointer.release_id} again (was {current.release_id}); "
        "running servers follow within seconds."
    )


def _name_students(release: BuiltRelease) -> list[str]:
    """Return the adapters of a release, those of skills as `skill=adapter`."""
    skilled = release.skills.values()
    general = [adapter for adapter in release.students if adapter not in skilled]
    return [*general, *(f"{skill}={adapter}" for skill, adapter in release.skills.items())]


def read_current(home: Home) -> CurrentPointer | None:
    """Return the verified pointer, None where nothing was published."""
    if not (home.releases / CURRENT).exists():
        return None
    return read_pointer(home.releases / CURRENT, load_public_key(home.keys))


def find_releases(home: Home) -> list[BuiltRelease]:
    """Return every bundle, newest first; one that does not verify says so in its state."""
    current = read_current(home)
    names = {current.release_id: "current", current.parent: "parent"} if current else {}
    built = [
        _describe(home, folder.name, names.get(folder.name, ""))
        for folder in home.releases.glob("*/")
        if (folder / MANIFEST).exists()
    ]
    return sorted(built, key=lambda release: release.created_at, reverse=True)


def _describe(home: Home, name: str, state: str) -> BuiltRelease:
    try:
        manifest = verify_bundle(home.releases / name)
    except ReleaseError as error:
        return BuiltRelease(
            release_id=name, created_at="", verdict="", students=(), state=f"damaged: {error.found}"
        )
    return BuiltRelease(
        release_id=name,
        created_at=manifest.created_at.isoformat(timespec="seconds"),
        verdict=manifest.gate.verdict,
        students=tuple(student.adapter for student in manifest.students.values()),
        state=state,
        skills={
            name: manifest.students[skill.student].adapter
            for name, skill in manifest.skills.items()
        },
    )
