"""Which index snapshots something names: they are kept whatever their age.

Belongs here: asking the table and the releases of a home. Does not belong here: what follows from
it (`assets/corpus/snapshots`).
"""

import json
from pathlib import Path

from assets import keys
from orchestration.lake import read_table
from orchestration.releases_cli import read_current
from serving.errors import InvalidInputError, ReleaseError
from serving.home import Home
from serving.releases.bundle import CURRENT, MANIFEST
from serving.releases.manifest import IndexEntry, hash_stored

ATTEMPTED = "finding out which index snapshots are named"
KEPT = "no snapshot was removed"


def find_named(home: Home) -> dict[str, list[str]]:
    """Return who names each fingerprint: the table of the current index, and every release.

    Whoever cannot be read may name any snapshot, so that all are kept then. A release that is
    damaged beside its manifest still names its own.

    Raises:
        InvalidInputError: the table is missing or damaged, or the folder is not this home's own.
        ReleaseError: a release cannot be read, or CURRENT names one that is not there.
    """
    _require_own_folder(home)
    key = keys.VECTOR_INDEX.to_user_string()
    named = {_read_current_index(home, key): [key]}
    releases = _list_releases(home)
    for folder in releases:
        named.setdefault(_read_release(folder), []).append(f"release {folder.name}")
    current = read_current(home)
    if current is not None and current.release_id not in {folder.name for folder in releases}:
        raise ReleaseError(
            ATTEMPTED,
            expected=f"the release {current.release_id}, which {CURRENT} names",
            found=f"none in {home.releases}; {KEPT}",
            next_step="restore its folder, or publish another release",
        )
    return named


def _require_own_folder(home: Home) -> None:
    """Refuse a folder that is linked from elsewhere: what other homes name in it is not known."""
    own, found = home.root.resolve() / home.index.name, home.index.resolve()
    if found != own:
        raise InvalidInputError(
            ATTEMPTED,
            expected=f"the index folder of this home alone at {home.index}",
            found=f"a link to {found}, where other homes may name snapshots; {KEPT}",
            next_step="remove snapshots that no home names by hand",
        )


def _read_current_index(home: Home, key: str) -> str:
    table = read_table(
        home.table(key), attempted=ATTEMPTED, next_step="run `understudy run --select corpus`"
    )
    if table.height != 1 or "index_fingerprint" not in table.columns:
        raise InvalidInputError(
            ATTEMPTED,
            expected=f"one row with an index_fingerprint in {key}",
            found=f"{table.height} rows with the columns {', '.join(table.columns)}; {KEPT}",
            next_step="run `understudy run --select corpus --force`",
        )
    return str(table["index_fingerprint"].item())


def _list_releases(home: Home) -> list[Path]:
    if not home.releases.is_dir():
        return []
    return sorted(
        path for path in home.releases.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _read_release(folder: Path) -> str:
    """Return the snapshot that a release names, whichever version wrote the rest of its manifest.

    A release that nobody has served for years may be rolled back to, so each one counts.
    """
    try:
        stored = (folder / MANIFEST).read_bytes()
        identity = hash_stored(stored)
        index = IndexEntry.model_validate(json.loads(stored)["index"])
    except OSError as error:
        raise _refuse(folder, error.strerror or repr(error)) from error
    except ValueError as error:
        raise _refuse(folder, str(error).splitlines()[0]) from error
    except (TypeError, KeyError, AttributeError) as error:  # JSON of another shape
        raise _refuse(folder, "a manifest that names no index") from error
    if identity != folder.name:
        raise _refuse(folder, f"one whose content is {identity}")
    return index.fingerprint


def _refuse(folder: Path, found: str) -> ReleaseError:
    return ReleaseError(
        ATTEMPTED,
        expected=f"the manifest of this release in {folder}",
        found=f"{found}; {KEPT}",
        next_step="restore the bundle, or move its folder away if nobody will serve it again",
    )
