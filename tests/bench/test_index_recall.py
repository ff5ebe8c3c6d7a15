"""What the bench says of an index's search: exact in memory, measured on disk."""

import asyncio
from dataclasses import dataclass
from functools import partial

import lancedb.index
import pytest

from bench import indexes
from bench.indexes import build, describe_search, measure_recall
from serving.pipeline import index_tables, vector_search
from serving.pipeline.indexing import IndexedChunk
from tests.counting_embedder import CountingEmbedder

COUNT = 600
BROUGHT = 24  # far fewer than a partition holds
QUESTIONS = [f"question {number}" for number in range(20)]


@dataclass(frozen=True)
class Measured:
    recall: dict[str, float] | None

    @property
    def told(self) -> str:
        return describe_search(self.recall)


def measure(folder) -> Measured:
    embedder = CountingEmbedder()
    chunks = [
        IndexedChunk(
            chunk_id=f"docs:page/{n}", content_hash=str(n), title="Page", url="",
            heading_path=("Page",), text=" ".join(f"word{n}-{m}" for m in range(20 + n % 90)),
        )
        for n in range(COUNT)
    ]  # fmt: skip
    built = build(chunks, embedder, folder)
    assert built.window_count > COUNT  # longer chunks have several windows
    return Measured(asyncio.run(measure_recall(folder / built.fingerprint, embedder, QUESTIONS)))


def test_of_vectors_in_memory_no_recall_is_told(tmp_path):
    found = measure(tmp_path)
    assert found.recall is None
    assert "exact" in found.told
    assert "nearest" not in found.told


@pytest.mark.parametrize(("partitions", "is_whole"), [(10_000, True), (1, False)])
def test_on_disk_the_products_own_search_is_measured(tmp_path, monkeypatch, partitions, is_whole):
    """It finds all where it asks every partition, and misses some where it asks one."""
    monkeypatch.setattr(indexes, "BROUGHT", BROUGHT)
    monkeypatch.setattr(index_tables, "VECTORS_IN_MEMORY_MIB", 0)
    monkeypatch.setattr(vector_search, "PARTITIONS_ASKED", partitions)
    # By itself LanceDB divides so few vectors into one.
    monkeypatch.setattr(lancedb.index, "IvfFlat", partial(lancedb.index.IvfFlat, num_partitions=16))
    found = measure(tmp_path)
    assert set(found.recall) == {"3", str(BROUGHT)}
    assert (found.recall["3"] == found.recall[str(BROUGHT)] == 1) == is_whole
    assert 0 < found.recall[str(BROUGHT)] <= 1
    assert f"of the {BROUGHT} nearest" in found.told
