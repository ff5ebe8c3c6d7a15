"""`understudy index prune`: whatever is named stays, and where that is not known, everything."""

import io
import os
import time
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console
from typer.testing import CliRunner

from assets import tables
from orchestration import cli, explaining, index_cli
from serving.home import Home
from serving.releases.bundle import CURRENT, MANIFEST, build_bundle, ensure_signing_key, publish
from tests.serving.fakes import make_manifest

DAY = 86_400
CURRENT_ONE, RELEASED, OLDER_RELEASE, UNNAMED = "aa", "bb", "cc", "dd"


class Site:
    """A home whose snapshots were built one after the other, the last of them today."""

    def __init__(self, folder: Path, screen: io.StringIO) -> None:
        self.home = Home(folder)
        self._screen = screen

    def lay(self, *names: str) -> None:
        """Write snapshots, each ten days older than the next, the last of yesterday."""
        for age, name in enumerate(reversed(names)):
            snapshot = self.home.index / spell(name)
            snapshot.mkdir(parents=True)
            (snapshot / "data").write_bytes(b"x" * 2_000_000)
            at = time.time() - (10 * age + 1) * DAY
            os.utime(snapshot, (at, at))

    def name(self, name: str) -> Path:
        """Write the table of the current index."""
        path = self.home.table("corpus/vector_index")
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {
            "index_fingerprint": spell(name), "embedder_fingerprint": "e0e0", "chunk_count": 1,
            "dimension": 8, "uri": f"index/{spell(name)}",
        }  # fmt: skip
        pl.DataFrame([row], schema=tables.VECTOR_INDEX).write_parquet(path)
        return path

    def release(self, name: str, *, parent: str | None = None) -> str:
        index = {"uri": f"index/{spell(name)}", "fingerprint": spell(name)}
        manifest = make_manifest(students={}, phase="hitchhiker", index=index)
        release = build_bundle(self.home.releases, manifest, {})
        key = ensure_signing_key(self.home.keys)
        publish(self.home.releases, release, expected_parent=parent, signing_key=key)
        return release

    def prune(self, *options: str, exit_code: int = 0) -> str:
        """Return what the command prints."""
        self._screen.truncate(self._screen.seek(0))
        done = CliRunner().invoke(cli.app, ["index", "prune", *options])
        assert done.exit_code == exit_code, done.output + self._screen.getvalue()
        return self._screen.getvalue()

    @property
    def left(self) -> list[str]:
        return sorted(path.name[:2] for path in self.home.index.iterdir())


def spell(name: str) -> str:
    return name * 8


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Site:
    text = io.StringIO()
    for module in (explaining, index_cli):
        monkeypatch.setattr(module, "CONSOLE", Console(file=text, width=300, highlight=False))
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path))
    return Site(tmp_path, text)


@pytest.fixture
def full(site: Site) -> Site:
    site.lay("00", OLDER_RELEASE, UNNAMED, RELEASED, "ee", CURRENT_ONE)
    site.name(CURRENT_ONE)
    site.release(RELEASED, parent=site.release(OLDER_RELEASE))
    return site


EVERYTHING = ["00", "aa", "bb", "cc", "dd", "ee"]


def test_the_current_index_and_those_of_all_releases_stay(full: Site) -> None:
    told = full.prune()
    assert full.left == ["aa", "bb", "cc", "ee"]
    for name, why in (
        (CURRENT_ONE, "kept: named by corpus/vector_index"),
        (RELEASED, "kept: named by release "),
        (OLDER_RELEASE, "kept: named by release "),
        ("ee", "kept: replaced less than 7 days ago"),
        (UNNAMED, "goes"),
        ("00", "goes"),
    ):
        (line,) = [line for line in told.splitlines() if spell(name) in line]
        assert why in line
        assert "2.0" in line
    assert "Removed: 4.0 MB are free again" in told
    assert "nothing to remove" in full.prune()


def test_the_days_say_how_long_a_replaced_one_stays(full: Site) -> None:
    full.prune("--days", "31")
    assert full.left == ["aa", "bb", "cc", "dd", "ee"]
    full.prune("--days", "0")
    assert full.left == ["aa", "bb", "cc"]


def test_a_dry_run_removes_nothing_and_says_what_would_go(full: Site) -> None:
    told = full.prune("--dry-run", "--days", "0")
    assert told.count("goes") == 3
    assert "Nothing was removed: 6.0 MB would be free again" in told
    assert full.left == EVERYTHING


def test_what_a_killed_removal_left_goes_too(full: Site) -> None:
    leftover = full.home.index / f".{spell('99')}.0123.removed"
    (full.home.index / spell("00")).rename(leftover)
    assert "a killed build or removal left it" in full.prune("--dry-run")
    assert leftover.is_dir()
    full.prune()
    assert full.left == ["aa", "bb", "cc", "ee"]


def test_without_snapshots_there_is_nothing_to_ask(site: Site) -> None:
    assert "nothing to remove" in site.prune()
    assert not site.home.index.exists()


def break_manifest(site: Site) -> None:
    manifest = next(site.home.releases.glob(f"*/{MANIFEST}"))
    manifest.write_text(manifest.read_text(encoding="utf-8")[:-9], encoding="utf-8")


def rewrite_manifest(site: Site) -> None:
    for manifest in site.home.releases.glob(f"*/{MANIFEST}"):
        text = manifest.read_text(encoding="utf-8")
        manifest.write_text(text.replace(spell(RELEASED), spell("77")), encoding="utf-8")


def empty_index_entry(site: Site) -> None:
    for manifest in site.home.releases.glob(f"*/{MANIFEST}"):
        manifest.write_text("{}", encoding="utf-8")


def list_manifest(site: Site) -> None:
    for manifest in site.home.releases.glob(f"*/{MANIFEST}"):
        manifest.write_text("[]", encoding="utf-8")


def lose_manifest(site: Site) -> None:
    next(site.home.releases.glob(f"*/{MANIFEST}")).unlink()


def lose_current_release(site: Site) -> None:
    gone = site.release("ee", parent=site.release("dd", parent=read_current_id(site)))
    (site.home.releases / gone).rename(site.home.root / gone)


def read_current_id(site: Site) -> str:
    from orchestration.releases_cli import read_current

    current = read_current(site.home)
    assert current is not None
    return current.release_id


def forge_current(site: Site) -> None:
    current = site.home.releases / CURRENT
    current.write_text(current.read_text(encoding="utf-8").replace(": 2", ": 3"), encoding="utf-8")


def cut_table(site: Site) -> None:
    path = site.home.table("corpus/vector_index")
    path.write_bytes(path.read_bytes()[:-100])


def empty_table(site: Site) -> None:
    tables.VECTOR_INDEX.to_frame().write_parquet(site.home.table("corpus/vector_index"))


def drop_column(site: Site) -> None:
    pl.DataFrame({"uri": ["x"]}).write_parquet(site.home.table("corpus/vector_index"))


def lose_table(site: Site) -> None:
    site.home.table("corpus/vector_index").unlink()


def share_folder(site: Site) -> None:
    elsewhere = site.home.root / "shared"
    site.home.index.rename(elsewhere)
    site.home.index.symlink_to(elsewhere)


@pytest.mark.parametrize(
    "damage",
    [
        break_manifest, rewrite_manifest, empty_index_entry, list_manifest, lose_manifest,
        lose_current_release, forge_current, cut_table, empty_table, drop_column, lose_table,
        share_folder,
    ],
)  # fmt: skip
def test_where_it_is_not_known_who_names_what_everything_stays(full: Site, damage) -> None:
    damage(full)
    (full.home.index / ".9999999999999999.0123.removed").mkdir()
    told = full.prune("--days", "0", exit_code=2)
    assert "Failed" in told
    assert "next" in told
    assert "Error(" not in told
    assert full.left == [".9", *EVERYTHING]


def test_a_release_of_another_version_still_names_its_snapshot(full: Site) -> None:
    """Damage to adapters and keys nobody knows today change nothing about which index it needs."""
    (full.home.releases / ".tmp" / "being-built").mkdir(parents=True)
    for bundle in full.home.releases.glob(f"*/{MANIFEST}"):
        (bundle.parent / "stray.json").write_text("{}", encoding="utf-8")
    full.prune("--days", "0")
    assert full.left == ["aa", "bb", "cc"]
