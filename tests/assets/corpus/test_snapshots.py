"""Snapshots go when nothing names them any more, whole and for good, and nothing else goes."""

import asyncio
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from assets.corpus import snapshots
from assets.corpus.snapshots import (
    PruningPlan,
    list_leftovers,
    list_snapshots,
    mark_as_current,
    plan_pruning,
    prune,
)
from serving.errors import IndexMismatchError
from serving.files import atomic_folder
from serving.pipeline.indexing import IndexedChunk, build_index, plan_index
from serving.pipeline.retrieval import LanceRetriever
from tests.counting_embedder import CountingEmbedder

NOW = datetime(2026, 11, 23, tzinfo=UTC)
SIZE = 1000


def lay(folder: Path, letter: str, *, days: float) -> Path:
    """Write what looks like a snapshot that was built so many days ago."""
    snapshot = folder / (letter * 16)
    (snapshot / "chunks.lance").mkdir(parents=True)
    (snapshot / "chunks.lance" / "data").write_bytes(b"x" * (SIZE // 2))
    (snapshot / "windows").write_bytes(b"x" * (SIZE // 2))
    age(snapshot, days=days)
    return snapshot


def age(folder: Path, *, days: float) -> None:
    at = (NOW - timedelta(days=days)).timestamp()
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (at, at))


def plan(folder: Path, *named: str, keep_days: int = 7) -> PruningPlan:
    return plan_pruning(
        list_snapshots(folder),
        list_leftovers(folder, now=NOW),
        named_by={letter * 16: ["somebody"] for letter in named},
        keep_days=keep_days,
        now=NOW,
    )


def letters(folder: Path) -> str:
    return "".join(sorted(path.name[0] for path in folder.glob("[0-9a-f]*")))


def test_what_nothing_names_goes_and_its_room_is_free(tmp_path):
    for letter, days in (("a", 40), ("b", 30), ("c", 20), ("d", 10)):
        lay(tmp_path, letter, days=days)
    made = plan(tmp_path, "b", "d")
    assert [(each.fingerprint[0], why) for each, why in made.kept] == [
        ("b", "named by somebody"),
        ("d", "named by somebody"),
    ]
    assert prune(made) >= 2 * SIZE
    assert letters(tmp_path) == "bd"
    assert {path.name for path in tmp_path.iterdir()} == {"b" * 16, "d" * 16}


def test_the_days_count_from_when_a_snapshot_was_replaced(tmp_path):
    """A server or a run may have opened one of last year just before the next was built."""
    for letter, days in (("a", 300), ("b", 200), ("c", 3), ("d", 1)):
        lay(tmp_path, letter, days=days)
    assert [each.fingerprint[0] for each in plan(tmp_path, "d").unnamed] == ["a"]
    assert [each.fingerprint[0] for each in plan(tmp_path, "d", keep_days=2).unnamed] == ["a", "b"]
    all_days = plan(tmp_path, "d", keep_days=0).unnamed
    assert [each.fingerprint[0] for each in all_days] == ["a", "b", "c"]


def test_an_unnamed_newest_snapshot_is_as_old_as_it_is(tmp_path):
    lay(tmp_path, "a", days=8)
    assert len(plan(tmp_path).unnamed) == 1
    (before,) = list_snapshots(tmp_path)
    mark_as_current(tmp_path / ("a" * 16))
    (marked,) = list_snapshots(tmp_path)
    assert marked.built_at - before.built_at > timedelta(days=-1)  # any clock
    assert marked.built_at != before.built_at
    mark_as_current(tmp_path / ("b" * 16))  # not built yet: nothing to mark
    assert letters(tmp_path) == "a"


def test_what_a_run_may_be_about_to_name_stays_whatever_the_days(tmp_path):
    for letter, days in (("a", 9), ("b", 5), ("c", 0.01)):
        lay(tmp_path, letter, days=days)
    made = plan(tmp_path, "a", keep_days=0)  # the table names a, and c was built minutes ago
    told = "replaced less than an hour ago"  # b by c, and c not at all
    assert [(each.fingerprint[0], why) for each, why in made.kept[1:]] == [("b", told), ("c", told)]


def test_what_is_finished_while_it_is_listed_is_nobodys(tmp_path, monkeypatch):
    (tmp_path / ".tmp" / "build").mkdir(parents=True)
    gone = lay(tmp_path, "a", days=9).rename(tmp_path / f".{'a' * 16}.1.removed")

    def vanish(*_):
        raise FileNotFoundError(gone)

    monkeypatch.setattr(snapshots, "_measure", vanish)
    monkeypatch.setattr(snapshots, "_find_last_write", vanish)
    assert list_leftovers(tmp_path, now=NOW) == []


def test_nothing_else_in_the_folder_is_touched(tmp_path):
    elsewhere = lay(tmp_path / "elsewhere", "e", days=90)
    folder = tmp_path / "index"
    others = [folder / "notes", folder / "abc", folder / ("A" * 16), folder / ("f" * 17)]
    for other in others:
        other.mkdir(parents=True)
        age(other, days=90)
    (folder / ("b" * 16)).write_text("a file of that name")
    (folder / ("c" * 16)).symlink_to(elsewhere)
    (folder / f".{'d' * 16}.removed").symlink_to(elsewhere)
    before = {path.name for path in folder.iterdir()}
    assert prune(plan(folder, keep_days=0)) == 0
    assert {path.name for path in folder.iterdir()} == before
    assert elsewhere.is_dir()
    assert list_snapshots(tmp_path / "none") == list_leftovers(tmp_path / "none", now=NOW) == []


def test_a_removal_that_was_interrupted_is_finished_by_the_next(tmp_path, monkeypatch):
    lay(tmp_path, "a", days=40)
    lay(tmp_path, "b", days=30)
    lay(tmp_path, "c", days=20)
    made = plan(tmp_path, "c")

    def die_midway(folder: Path, **_: object) -> None:
        (folder / "windows").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", die_midway)
        with pytest.raises(KeyboardInterrupt):
            prune(made)
    assert letters(tmp_path) == "bc"  # half a snapshot is never under its name
    again = plan(tmp_path, "c")
    assert [each.fingerprint[0] for each in again.unnamed] == ["b"]
    (leftover,) = again.leftovers
    assert leftover.size_bytes >= SIZE // 2
    prune(again)
    assert [path.name for path in tmp_path.iterdir()] == ["c" * 16]


def test_a_build_under_way_stays_and_a_killed_one_goes(tmp_path):
    with atomic_folder(tmp_path / ("a" * 16)) as staging:
        (staging / "data").write_bytes(b"x")
        killed = staging.with_name("killed")
        shutil.copytree(staging, killed)
        age(killed, days=1.1)
        age(staging, days=1.1)
        os.utime(staging / "data", (NOW.timestamp(), NOW.timestamp()))  # it has just written
        made = plan(tmp_path)
        assert [leftover.path.name for leftover in made.leftovers] == ["killed"]
        prune(made)
        assert staging.is_dir()
        assert not killed.exists()
    assert letters(tmp_path) == "a"


def test_a_snapshot_that_a_run_names_again_meanwhile_stays(tmp_path):
    snapshot = lay(tmp_path, "a", days=40)
    made = plan(tmp_path)
    mark_as_current(snapshot)
    assert prune(made) == 0
    assert snapshot.is_dir()


def test_two_removals_at_once_do_not_disturb_each_other(tmp_path):
    lay(tmp_path, "a", days=40)
    both = [plan(tmp_path), plan(tmp_path)]
    assert [prune(made) > 0 for made in both] == [True, False]
    leftover = tmp_path / f".{'b' * 16}.removed"
    lay(tmp_path, "b", days=40).rename(leftover)
    both = [plan(tmp_path), plan(tmp_path)]
    for made in both:
        prune(made)
    assert list(tmp_path.iterdir()) == []


async def test_whoever_reads_a_snapshot_that_is_gone_is_told_which(tmp_path):
    embedder = CountingEmbedder()
    chunks = [
        IndexedChunk(
            chunk_id=f"docs:{topic}/1", content_hash=topic, title=topic, url=f"/{topic}/",
            heading_path=(topic,), text=f"The {topic} is set to 1300 degrees.",
        )
        for topic in ("kiln", "glaze", "shelf")
    ]  # fmt: skip
    planned = plan_index(chunks, maximum_tokens=64, count_tokens=embedder.count_tokens)
    vectors = embedder.embed(planned.texts)
    fingerprint = await asyncio.to_thread(
        build_index, tmp_path, chunks, planned, vectors, embedder.fingerprint
    )
    retriever = await LanceRetriever.open(tmp_path, fingerprint=fingerprint, embedder=embedder, k=2)
    before = await retriever.retrieve("how hot is the kiln?")
    age(tmp_path / fingerprint, days=40)
    assert prune(plan(tmp_path)) > 0
    # LanceDB opens files when it needs them: the same hits, or an error that names the snapshot.
    (after,) = await asyncio.gather(
        retriever.retrieve("how hot is the kiln?"), return_exceptions=True
    )
    assert after == before or (isinstance(after, RuntimeError) and fingerprint in str(after))
    with pytest.raises(IndexMismatchError, match=fingerprint) as told:
        await LanceRetriever.open(tmp_path, fingerprint=fingerprint, embedder=embedder, k=2)
    assert "understudy run" in told.value.next_step
