"""Seed assets: the hand-written and the harvested questions, as one table.

Belongs here: declarations. Does not belong here: reading the files (`resources/input_files`), who
is admitted (`harvesting`).
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Protocol

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.reuse import LastTables
from assets.seeds.harvesting import harvest_seeds
from serving.models.protocols import Embedder
from serving.pipeline.questions import normalise_question


class Seed(Protocol):
    """One hand-written question."""

    question_id: str
    text: str
    tags: tuple[str, ...]


class Seeds(Protocol):
    """The seed file."""

    def fingerprint(self) -> str:
        """Return the identity of the file."""
        ...

    def read(self) -> Sequence[Seed]:
        """Return the questions in file order."""
        ...


class Harvested(Protocol):
    """The file of curated production questions; without one, there are none."""

    def fingerprint(self) -> str:
        """Return the identity of the file."""
        ...

    def read(self) -> pl.DataFrame:
        """Return rows of `tables.HARVESTED_QUESTIONS`."""
        ...


@dg.observable_source_asset(key=keys.SEED_FILE)
def seed_file(seeds: dg.ResourceParam[Seeds]) -> dg.DataVersion:
    """The hand-written seed file; its version is the hash of its bytes."""
    return dg.DataVersion(seeds.fingerprint())


@dg.observable_source_asset(key=keys.HARVESTED_FILE)
def harvested_file(harvested: dg.ResourceParam[Harvested]) -> dg.DataVersion:
    """The curated production questions; the version is the hash of the file's bytes, or none."""
    return dg.DataVersion(harvested.fingerprint())


@dg.asset(
    key=keys.SEED_QUESTIONS,
    deps=[keys.SEED_FILE, keys.HARVESTED_FILE],
    kinds={"jsonl", "parquet", "polars"},
    code_version="4",
)
def seed_questions(
    seeds: dg.ResourceParam[Seeds],
    harvested: dg.ResourceParam[Harvested],
    embedder: dg.ResourceParam[Embedder],
    recorded_tables: dg.ResourceParam[LastTables],
) -> dg.MaterializeResult[pl.DataFrame]:
    """The questions everything that trains grows from: hand-written first, then harvested."""
    known = read_times_added(recorded_tables.read(keys.SEED_QUESTIONS.path))
    written = tabulate_handwritten(seeds.read(), added_at=datetime.now(UTC), known=known)
    harvest = harvest_seeds(
        harvested.read(), known_texts=written["text"].to_list(), embed=embedder.embed
    )
    frame = pl.concat([written, harvest.seeds])
    topics = frame["tags"].list.first().drop_nulls().value_counts(sort=True).head(20)
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "seed_count": frame.height,
            "harvested_count": harvest.seeds.height,
            "harvested_dropped_by_reason": harvest.dropped_by_reason,
            "seeds_by_topic": dict(topics.iter_rows()),
        },
    )


def read_times_added(last: pl.DataFrame) -> dict[tuple[str, str], datetime]:
    """Return when each hand-written question of the last table, by id and text, was added."""
    written = last.filter(pl.col("source") == "handwritten", pl.col("added_at").is_not_null())
    return {
        (question_id, text): added_at
        for question_id, text, added_at in written.select(
            "question_id", "text", "added_at"
        ).iter_rows()
    }


def tabulate_handwritten(
    seeds: Sequence[Seed],
    *,
    added_at: datetime,
    known: Mapping[tuple[str, str], datetime] = MappingProxyType({}),
) -> pl.DataFrame:
    """Return the seed file's questions as rows of `tables.SEED_QUESTIONS`, as production asks.

    Args:
        seeds: the questions.
        added_at: the time of this run, at which a question that is not known was added.
        known: when the others were, by id and text; a time after this run's was a wrong clock's.
    """
    rows = []
    for seed in seeds:
        text = normalise_question(seed.text)
        rows.append(
            {
                "question_id": seed.question_id,
                "text": text,
                "source": "handwritten",
                "source_trace_id": None,
                "tags": list(seed.tags),
                "added_at": min(added_at, known.get((seed.question_id, text), added_at)),
            }
        )
    return pl.DataFrame(rows, schema=tables.SEED_QUESTIONS)
