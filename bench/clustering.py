"""What an edit of the seeds costs by how they are clustered, and how well the clusters fit.

Run: `python bench/clustering.py [--draws 200] [--edited 3] [--json]`. The seeds the configuration
names are embedded once. Then, draw by draw, a few are added, replaced by others or reworded; the
set before and the set after are clustered, and what the second makes necessary is counted in calls:
a medoid that was none before is reworded, and its paraphrases are answered and judged; a new or
reworded seed is answered and judged. The share is of the calls of a full run over the seeds.

Rewording is simulated: a seed's vector moves to a cosine of 0.93 with what it was, in a direction
drawn at random. Fit is the mean cosine of the seeds that are no medoids to the nearest one. Arms:

- `ours`: k-means that starts from seeds drawn by the hash of their ids, medoids with ties;
- `strict medoid`: the same, the medoid being the one most central member;
- `k-means++`: scikit-learn's starts with a fixed seed, our medoids;
- `average linkage`: a dendrogram cut into as many clusters, our medoids;
- `drawn by hash`: no clustering, the starting seeds are the medoids: the least that can move.
"""

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from assets.paraphrases import clustering
from assets.paraphrases.clustering import cluster_questions
from orchestration.bindings import Bindings
from orchestration.config import Config, load_config
from serving.hashing import content_hash
from serving.models.embedder import load_embedder
from serving.models.protocols import NoProgress

REWORDED_COSINE = 0.93
CALLS_PER_QUESTION = 2  # one answer, one judgement
LIMIT_RATIO = 0.03
LIBRARIES = ("numpy", "scikit-learn")

Vectors = np.ndarray
FindMedoids = Callable[[Sequence[str], Vectors, int], list[int]]
"""Rows of the medoids of questions (ids, vectors) at so many questions per cluster."""


@dataclass(frozen=True)
class Seeds:
    """Seeds by id; a reworded one has another version, and is another text under the same id."""

    ids: tuple[str, ...]
    versions: tuple[int, ...]
    vectors: Vectors

    def take(self, rows: Sequence[int]) -> "Seeds":
        """Return these rows, in their order."""
        return Seeds(
            tuple(self.ids[row] for row in rows),
            tuple(self.versions[row] for row in rows),
            self.vectors[list(rows)],
        )

    def name_texts(self, rows: Sequence[int] | None = None) -> set[tuple[str, int]]:
        """Return what identifies the texts of these rows; of all where none are given."""
        chosen = range(len(self.ids)) if rows is None else rows
        return {(self.ids[row], self.versions[row]) for row in chosen}


def find_ours(ids: Sequence[str], vectors: Vectors, size: int) -> list[int]:
    """Return the medoids of the product's own clustering."""
    members = cluster_questions(ids, vectors, questions_per_cluster=size)
    return [row for row, member in enumerate(members) if member.is_medoid]


@contextmanager
def strict_medoids() -> Iterator[None]:
    """Let only the most central member be a medoid."""
    kept = clustering.MEDOID_TIE_DISTANCE
    clustering.MEDOID_TIE_DISTANCE = 0.0
    try:
        yield
    finally:
        clustering.MEDOID_TIE_DISTANCE = kept


def find_strict(ids: Sequence[str], vectors: Vectors, size: int) -> list[int]:
    """Return the most central member of each of our clusters."""
    with strict_medoids():
        return find_ours(ids, vectors, size)


def find_by_plus_plus(ids: Sequence[str], vectors: Vectors, size: int) -> list[int]:
    """Return the medoids of k-means as scikit-learn starts it."""
    from sklearn.cluster import KMeans

    model = KMeans(math.ceil(len(ids) / size), n_init=1, random_state=0)
    return choose_medoids(ids, vectors, model.fit_predict(vectors))


def find_by_linkage(ids: Sequence[str], vectors: Vectors, size: int) -> list[int]:
    """Return the medoids of average linkage by cosine, cut into as many clusters."""
    from sklearn.cluster import AgglomerativeClustering

    model = AgglomerativeClustering(math.ceil(len(ids) / size), metric="cosine", linkage="average")
    return choose_medoids(ids, vectors, model.fit_predict(vectors))


def find_by_hash(ids: Sequence[str], vectors: Vectors, size: int) -> list[int]:  # noqa: ARG001
    """Return the seeds that come first by the hash of their ids."""
    order = sorted(range(len(ids)), key=lambda row: content_hash(ids[row]))
    return order[: math.ceil(len(ids) / size)]


def choose_medoids(ids: Sequence[str], vectors: Vectors, labels: np.ndarray) -> list[int]:
    """Return one medoid per label by the product's rule: each cluster is clustered as one."""
    medoids = []
    for label in np.unique(labels):
        rows: list[int] = np.flatnonzero(labels == label).tolist()
        (medoid,) = find_ours([ids[row] for row in rows], vectors[rows], len(rows))
        medoids.append(rows[medoid])
    return medoids


ARMS: dict[str, FindMedoids] = {
    "ours": find_ours,
    "strict medoid": find_strict,
    "k-means++": find_by_plus_plus,
    "average linkage": find_by_linkage,
    "drawn by hash": find_by_hash,
}


def draw_edit(seeds: Seeds, kind: str, count: int, draw: int) -> tuple[Seeds, Seeds]:
    """Return the seeds before and after an edit of `count` of them, the same for every arm."""
    random = np.random.default_rng([draw, count])
    chosen = random.permutation(len(seeds.ids))[: 2 * count]
    away, back = set(chosen[:count].tolist()), set(chosen[count:].tolist())
    every = range(len(seeds.ids))
    if kind == "added":
        return seeds.take([row for row in every if row not in away]), seeds
    if kind == "replaced":
        before = [row for row in every if row not in away]
        return seeds.take(before), seeds.take([row for row in every if row not in back])
    vectors, versions = seeds.vectors.copy(), list(seeds.versions)
    for row in sorted(away):
        vectors[row] = turn(vectors[row], random)
        versions[row] += 1
    return seeds, Seeds(seeds.ids, tuple(versions), vectors)


def turn(vector: Vectors, random: np.random.Generator) -> Vectors:
    """Return a unit vector at `REWORDED_COSINE` with this one, in a random direction."""
    away = random.standard_normal(len(vector))
    away -= (away @ vector) * vector
    away /= np.linalg.norm(away)
    moved = REWORDED_COSINE * vector + math.sqrt(1 - REWORDED_COSINE**2) * away
    return (moved / np.linalg.norm(moved)).astype(vector.dtype)


def count_calls(
    before: Seeds, after: Seeds, find: Callable[[Seeds], list[int]], terms: "Terms"
) -> tuple[int, int]:
    """Return the medoids and the calls that `after` needs beyond `before`."""
    new = after.name_texts(find(after)) - before.name_texts(find(before))
    new_seeds = after.name_texts() - before.name_texts()
    return len(new), len(new) * terms.calls_per_medoid + len(new_seeds) * CALLS_PER_QUESTION


@dataclass(frozen=True)
class Terms:
    """How seeds multiply: questions per cluster, paraphrases per medoid."""

    size: int
    paraphrases: int

    @property
    def calls_per_medoid(self) -> int:
        """Calls for a medoid: one that rewords it, and those of every paraphrase."""
        return 1 + self.paraphrases * CALLS_PER_QUESTION

    def count_full(self, seed_count: int) -> int:
        """Return the calls of a full run over so many seeds."""
        clusters = math.ceil(seed_count / self.size)
        return clusters * self.calls_per_medoid + seed_count * CALLS_PER_QUESTION


def measure_arm(
    seeds: Seeds, find: FindMedoids, terms: Terms, *, count: int, draws: int
) -> dict[str, Any]:
    """Return fit and, by kind of edit, new medoids and the share of the calls of a full run."""
    medoids = find(seeds.ids, seeds.vectors, terms.size)
    others = np.delete(seeds.vectors, medoids, axis=0)
    nearest = (others @ seeds.vectors[medoids].T).max(axis=1)
    figures: dict[str, Any] = {"medoid_count": len(medoids), "fit": float(nearest.mean())}

    def find_in(edited: Seeds) -> list[int]:
        return medoids if edited is seeds else find(edited.ids, edited.vectors, terms.size)

    full = terms.count_full(len(seeds.ids))
    for kind in ("added", "replaced", "reworded"):
        found = [
            count_calls(*draw_edit(seeds, kind, count, draw), find_in, terms)
            for draw in range(draws)
        ]
        shares = np.array([calls for _, calls in found]) / full
        figures[kind] = {
            "new_medoids_mean": float(np.mean([medoid_count for medoid_count, _ in found])),
            "share_mean": float(shares.mean()),
            "share_max": float(shares.max()),
            "over_limit_ratio": float((shares > LIMIT_RATIO).mean()),
        }
    return figures


def read_seeds(config: Config) -> Seeds:
    """Embed the seeds of a configuration; nothing is kept in its home."""
    questions = Bindings(config, NoProgress()).seeds.read()
    section = config.embedder
    embedder = load_embedder(section.model, section.revision, config.home / "models", NoProgress())
    ids = tuple(question.question_id for question in questions)
    vectors = embedder.embed([question.text for question in questions])
    return Seeds(ids, (0,) * len(ids), vectors)


def show(figures: dict[str, Any]) -> None:
    """Print one table per kind of edit."""
    print(f"{figures['machine']}; {figures['versions']}")
    print(
        f"{figures['seed_count']} seeds, {figures['edited']} edited at a time, {figures['draws']} "
        f"draws; a full run makes {figures['full_calls']} calls, a new medoid "
        f"{figures['calls_per_medoid']} of them"
    )
    for kind in ("added", "replaced", "reworded"):
        over = f"over {LIMIT_RATIO:.0%}"
        print(f"\n{kind:<16}{'fit':>6}{'new medoids':>13}{'calls, mean':>13}{'max':>8}{over:>10}")
        for name, arm in figures["arms"].items():
            edit = arm[kind]
            print(
                f"{name:<16}{arm['fit']:>6.3f}{edit['new_medoids_mean']:>13.2f}"
                f"{edit['share_mean']:>13.1%}{edit['share_max']:>8.1%}"
                f"{edit['over_limit_ratio']:>10.1%}"
            )


def main() -> None:
    """Print the figures, and with --json one object last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--draws", type=int, default=200, help="edits of each kind")
    parser.add_argument("--edited", type=int, default=3, help="seeds per edit")
    options = parser.parse_args()
    config = load_config()
    seeds = read_seeds(config)
    terms = Terms(config.seeds.seeds_per_cluster, config.seeds.paraphrases_per_medoid)
    figures = {
        "seed_count": len(seeds.ids),
        "edited": options.edited,
        "draws": options.draws,
        "full_calls": terms.count_full(len(seeds.ids)),
        "calls_per_medoid": terms.calls_per_medoid,
        "arms": {
            name: measure_arm(seeds, find, terms, count=options.edited, draws=options.draws)
            for name, find in ARMS.items()
        },
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{platform.system()}",
        "versions": {"python": platform.python_version()} | {n: version(n) for n in LIBRARIES},
    }
    show(figures)
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
