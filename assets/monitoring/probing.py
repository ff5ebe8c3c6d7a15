"""The embedder's probe: does it still write the vectors that the index was built from?

Texts of the index are embedded again and compared with what is stored of them, so that a model that
changed behind its name is seen before retrieval quietly is worse. Belongs here: reading probes,
comparing vectors, and the fingerprints of traces. Does not belong here: building an index
(`serving/pipeline/indexing`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from assets.monitoring.measurements import Measurement, compare_number, leave_open
from assets.monitoring.traffic import Traffic
from serving.home import Home
from serving.models.protocols import Embedder, Vectors
from serving.pipeline.index_tables import CHUNKS, WINDOWS
from serving.pipeline.indexing import IndexedChunk, plan_index
from serving.releases.manifest import ReleaseManifest

if TYPE_CHECKING:
    from lancedb.table import Table

PROBES = 64
SPARE = 4  # times as many chunks are read: those that are cut otherwise now are left out
SMALLEST_COSINE: Mapping[str, float] = {"local": 0.9999, "hosted": 0.999}
NEIGHBOURS = 10
SMALLEST_OVERLAP = 0.98
LARGEST_COMPARED = 200_000  # stored vectors that neighbours are looked for among


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Texts with the vectors the index holds of them, and the vectors to find neighbours among."""

    texts: tuple[str, ...]
    stored: Vectors
    neighbours: Vectors


def read_probes(snapshot: Path, embedder: Embedder, count: int = PROBES) -> Probes:
    """Return the first windows of chunks spread over an index snapshot, with their vectors.

    The texts of windows are not stored: chunks are cut again. One that is cut into another number
    of windows than the snapshot has of it, which another version wrote, is left out.
    """
    import lancedb

    database = lancedb.connect(snapshot)
    table, windows = (database.open_table(name) for name in (CHUNKS, WINDOWS))
    columns = ["row", "chunk", "vector"]
    stored = windows.search().select(columns).limit(windows.count_rows()).to_arrow().sort_by("row")
    owners = stored["chunk"].to_numpy()
    flat = stored["vector"].combine_chunks().flatten().to_numpy()
    vectors: Vectors = flat.reshape(len(owners), -1).astype(np.float32)
    _, first, counts = np.unique(owners, return_index=True, return_counts=True)
    # More than are needed: some may be cut otherwise.
    chosen = _spread(len(first), SPARE * count)
    chunks = _read_chunks(table, chosen.tolist())
    plan = plan_index(
        chunks, maximum_tokens=embedder.maximum_tokens, count_tokens=embedder.count_tokens
    )
    _, begins, cut = np.unique(plan.windows.chunks, return_index=True, return_counts=True)
    equal = np.flatnonzero(cut == counts[chosen])
    equal = equal[_spread(len(equal), count)]
    return Probes(
        texts=tuple(plan.texts[plan.windows.texts[n]] for n in begins[equal]),
        stored=vectors[first[chosen[equal]]],
        neighbours=vectors[_spread(len(vectors), LARGEST_COMPARED)],
    )


def _read_chunks(table: "Table", positions: Sequence[int]) -> list[IndexedChunk]:
    """Return the chunks at these positions, in their order."""
    fields = [field.name for field in dataclasses.fields(IndexedChunk)]
    query = table.search().where(f"chunk IN ({', '.join(map(str, positions))})")
    rows = query.select(["chunk", *fields]).limit(len(positions)).to_arrow().sort_by("chunk")
    return [
        IndexedChunk(**{**row, "heading_path": tuple(row["heading_path"])})
        for row in rows.drop_columns("chunk").to_pylist()
    ]


def _spread(size: int, count: int) -> npt.NDArray[np.int64]:
    """Return at most `count` positions spread over 0 to size - 1, ascending."""
    return np.unique(np.linspace(0, size - 1, min(count, size)).astype(np.int64))


def measure_embedder(probes: Probes, embedder: Embedder, *, place: str) -> list[Measurement]:
    """Return the smallest cosine of the probes with their stored vectors, and shared neighbours.

    Args:
        probes: of the index that is searched.
        embedder: that embeds questions now, without any store before it.
        place: `local` or `hosted`: a server's vectors move a little with its batches.
    """
    limit = SMALLEST_COSINE[place]
    if embedder.dimension != probes.neighbours.shape[1]:
        held = probes.neighbours.shape[1]
        told = f"vectors of {embedder.dimension} numbers, the index holds {held}"
        return [
            compare_number("min_cosine", 0.0, relation="at least", limit=limit,
                           n=len(probes.texts), detail=told)
        ]  # fmt: skip
    if len(probes.texts) < PROBES:
        reason = f"{len(probes.texts)} chunks of the index to compare, {PROBES} are needed"
        return [
            leave_open("min_cosine", reason, n=len(probes.texts), relation="at least", limit=limit),
            leave_open("overlap_at_10", reason, n=len(probes.texts), relation="at least",
                       limit=SMALLEST_OVERLAP),
        ]  # fmt: skip
    fresh = embedder.embed(probes.texts)
    cosines = (fresh * probes.stored).sum(axis=1)
    overlap = _share_neighbours(fresh, probes)
    worst = probes.texts[int(cosines.argmin())].splitlines()[0]
    return [
        compare_number("min_cosine", float(cosines.min()), relation="at least", limit=limit,
                       n=len(probes.texts), detail=f"lowest at “{worst[:80]}”"),
        compare_number("overlap_at_10", overlap, relation="at least", limit=SMALLEST_OVERLAP,
                       n=len(probes.texts), detail="share of the ten nearest that stayed"),
    ]  # fmt: skip


def _share_neighbours(fresh: Vectors, probes: Probes) -> float:
    k = min(NEIGHBOURS, len(probes.neighbours))

    def find(vectors: Vectors) -> list[set[int]]:
        scores = vectors @ probes.neighbours.T
        nearest = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        return [set(row.tolist()) for row in nearest]

    pairs = zip(find(fresh), find(probes.stored), strict=True)
    return float(np.mean([len(now & then) / k for now, then in pairs]))


def read_pinned(home: Home) -> dict[str, tuple[str, str]]:
    """Return the index and embedder that each release pins, by its id."""
    pinned = {}
    for path in sorted(home.releases.glob("*/manifest.json")):
        manifest = ReleaseManifest.model_validate_json(path.read_text(encoding="utf-8"))
        pinned[manifest.release_id] = manifest.index.fingerprint, manifest.embedder.fingerprint
    return pinned


def measure_fingerprints(
    traffic: Traffic, pinned: Mapping[str, tuple[str, str]], current: tuple[str, str]
) -> Measurement:
    """Count traces that were answered from another index or embedder than their release pins.

    Args:
        traffic: the window.
        pinned: index and embedder fingerprint by release id.
        current: those of the newest index, for releases that are not stored here.
    """
    columns = ("release_id", "index_fingerprint", "embedder_fingerprint")
    asks = traffic.asks.select(columns)
    if asks.is_empty():
        return leave_open("foreign_traces", "no traffic in the window", relation="at most", limit=0)
    empty = pl.any_horizontal(pl.col(columns[1:]).fill_null("") == "")
    missing = asks.filter(empty).height
    counted = asks.filter(~empty).group_by(columns).agg(pl.len().alias("n"))
    foreign = [
        (row["release_id"], row["n"])
        for row in counted.sort("n", *columns).iter_rows(named=True)
        if (row["index_fingerprint"], row["embedder_fingerprint"])
        != pinned.get(row["release_id"] or "", current)
    ]
    if not foreign and missing:
        reason = f"{missing} of {asks.height} traces name no fingerprint"
        return leave_open("foreign_traces", reason, n=asks.height, relation="at most", limit=0)
    return compare_number(
        "foreign_traces",
        sum(count for _, count in foreign),
        relation="at most",
        limit=0,
        n=asks.height,
        detail=_tell(foreign, missing),
    )


def _tell(foreign: Sequence[tuple[str | None, int]], missing: int) -> str:
    told = [f"{count} of release {name or 'unnamed'}" for name, count in foreign[-5:]]
    return "; ".join([*told, *([f"{missing} name none"] if missing else [])])
