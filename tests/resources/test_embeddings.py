"""Kept vectors: a text is embedded once ever, by whoever asks, however often a process dies."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from resources import embeddings, kept_file
from resources.embeddings import CachedEmbedder, VectorsNotKeptError
from serving.errors import InvalidInputError
from serving.models.protocols import Embedder
from tests.counting_embedder import CountingEmbedder

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [f"text {n}" for n in range(100)]

WRITER = """
import sys
from pathlib import Path
from resources.embeddings import CachedEmbedder
from tests.counting_embedder import CountingEmbedder
name, folder, count = sys.argv[1:]
embedder = CachedEmbedder(CountingEmbedder(), Path(folder))
for start in range(0, int(count), 16):
    embedder.embed([f"{name} {n}" for n in range(start, start + 16)])
    print(start, flush=True)
"""


def start_writer(name: str, folder: Path, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, name, str(folder), str(count)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_it_fills_the_role_with_the_inner_vectors(tmp_path):
    cached = CachedEmbedder(CountingEmbedder(), tmp_path)
    assert isinstance(cached, Embedder)
    assert np.array_equal(cached.embed(TEXTS), CountingEmbedder().embed(TEXTS))
    assert cached.embed([]).shape == (0, 8)
    assert cached.count_tokens(["a b", "c"]) == [2, 1]
    assert (cached.fingerprint, cached.dimension, cached.maximum_tokens) == ("counting", 8, 64)


def test_a_text_is_embedded_once_ever(tmp_path):
    inner = CountingEmbedder()
    cached = CachedEmbedder(inner, tmp_path)
    assert cached.count_missing([*TEXTS, *TEXTS]) == 100
    first = cached.embed([*TEXTS, *reversed(TEXTS)])
    assert inner.embedded == TEXTS
    assert np.array_equal(first[:100], first[100:][::-1])
    again = CountingEmbedder()
    reopened = CachedEmbedder(again, tmp_path)
    assert reopened.count_missing(TEXTS) == 0
    assert np.array_equal(reopened.embed(TEXTS), first[:100])  # bit for bit, from the disk
    reopened.embed(["new", *TEXTS, "new"])
    assert again.embedded == ["new"]


def test_calls_longer_than_a_window_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "WINDOW_TEXTS", 7)
    inner = CountingEmbedder()
    shuffled = [TEXTS[n] for n in np.random.default_rng(3).integers(0, 100, size=250)]
    vectors = CachedEmbedder(inner, tmp_path).embed(shuffled)
    assert np.array_equal(vectors, CountingEmbedder().embed(shuffled))
    assert len(inner.embedded) == len(set(shuffled))


def test_another_embedder_has_other_vectors(tmp_path):
    one, other = CountingEmbedder("one"), CountingEmbedder("other")
    first = CachedEmbedder(one, tmp_path).embed(TEXTS)
    assert not np.allclose(CachedEmbedder(other, tmp_path).embed(TEXTS), first)
    assert other.embedded == TEXTS


def test_a_killed_writer_loses_at_most_its_batch(tmp_path):
    for round_number in range(3):
        writer = start_writer(f"round {round_number}", tmp_path, 100_000)
        done = -1
        for line in writer.stdout:
            done = int(line)
            if done >= 160:
                break
        writer.send_signal(signal.SIGKILL)  # somewhere inside the next batch
        writer.wait()
        inner = CountingEmbedder()
        committed = [f"round {round_number} {n}" for n in range(done + 16)]
        kept = CachedEmbedder(inner, tmp_path).embed(committed)
        assert inner.embedded == []
        assert np.array_equal(kept, CountingEmbedder().embed(committed))


def test_processes_share_one_store(tmp_path):
    writers = [start_writer("shared", tmp_path, 320) for _ in range(3)]
    for writer in writers:
        writer.stdout.read()
        assert writer.wait() == 0
    inner = CountingEmbedder()
    CachedEmbedder(inner, tmp_path).embed([f"shared {n}" for n in range(320)])
    assert inner.embedded == []


def test_threads_share_one_embedder(tmp_path):
    cached = CachedEmbedder(CountingEmbedder(), tmp_path)
    expected = CountingEmbedder().embed(TEXTS)
    wrong: list[int] = []

    def ask(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(100)
        if not np.array_equal(cached.embed([TEXTS[n] for n in order]), expected[order]):
            wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_query_does_not_wait_for_a_bulk_that_is_being_embedded(tmp_path):
    class Slow(CountingEmbedder):
        bulk_may_end = threading.Event()

        def embed(self, texts):
            if len(texts) > 1:
                self.bulk_may_end.wait(timeout=60)
            return super().embed(texts)

    inner = Slow()
    cached = CachedEmbedder(inner, tmp_path)
    bulk = threading.Thread(target=cached.embed, args=(TEXTS,))
    bulk.start()
    cached.embed(["a query"])
    assert inner.embedded == ["a query"]
    inner.bulk_may_end.set()
    bulk.join()


@pytest.mark.parametrize("size", [0, 3])
def test_a_file_that_is_no_store_is_named_with_what_to_do(tmp_path, size):
    file = tmp_path / "counting.sqlite"
    CachedEmbedder(CountingEmbedder(), tmp_path).embed(TEXTS)
    for path in tmp_path.iterdir():
        path.unlink()
    file.write_bytes(b"not a database, and longer than its header" * size)
    cached = CachedEmbedder(CountingEmbedder(), tmp_path)
    if size == 0:  # an empty file is an empty store
        assert len(cached.embed(TEXTS)) == 100
        return
    with pytest.raises(InvalidInputError, match=r"counting\.sqlite.*remove that file"):
        cached.embed(TEXTS)


@pytest.mark.parametrize(
    ("blob", "found"), [(b"\0" * 32, "unit length"), (b"\0" * 31, "another length")]
)
def test_a_damaged_vector_is_an_error_and_never_an_answer(tmp_path, blob, found):
    cached = CachedEmbedder(CountingEmbedder(), tmp_path)
    cached.embed(TEXTS)
    cached.close()
    with sqlite3.connect(tmp_path / "counting.sqlite") as connection:
        connection.execute("UPDATE vectors SET vector = ? WHERE rowid = 17", (blob,))
    connection.close()
    with pytest.raises(InvalidInputError, match=found):
        CachedEmbedder(CountingEmbedder(), tmp_path).embed(TEXTS)


def test_a_store_that_is_held_or_unwritable_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_file, "LOCK_SECONDS", 0.05)
    CachedEmbedder(CountingEmbedder(), tmp_path).embed(["first"])
    holder = sqlite3.connect(tmp_path / "counting.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    cached = CachedEmbedder(CountingEmbedder(), tmp_path)
    with pytest.raises(VectorsNotKeptError, match="locked"):
        cached.embed(["second"])
    holder.execute("ROLLBACK")
    holder.close()
    assert cached.embed(["second"]).shape == (1, 8)  # and goes on once it is free


def test_the_store_is_its_owners_alone_also_one_that_was_not(tmp_path):
    before = os.umask(0o022)
    try:
        cached = CachedEmbedder(CountingEmbedder(), tmp_path)
        first = cached.embed(TEXTS)
        assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
        cached.close()
        (store,) = tmp_path.iterdir()
        store.chmod(0o644)
        assert np.array_equal(cached.embed(TEXTS), first)
        assert store.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
